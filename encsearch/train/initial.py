"""What a training takes of a trained model that it begins with, whose classes may be others."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from encsearch.config import ModelConfig
from encsearch.errors import PreflightError, UserError
from encsearch.files import sha256
from encsearch.model.backbones.weights import read_tensors
from encsearch.model.encnet import EncNet, without_storage
from encsearch.text import format_count, format_list
from encsearch.train.checkpoint_files import MODEL_FILE

_COUNTER = "num_batches_tracked"  # of BN, not read here
SHOWN = 6  # new layers that are named


@dataclass(frozen=True)
class InitialWeights:
    """The tensors of a file that fit a model, by name; `description` says what is taken and what is new."""

    tensors: dict[str, Tensor]
    description: str


def read_initial(source: str, model: EncNet) -> InitialWeights:
    """What a model can take of another EncNet: every tensor of the same name and shape.

    `source`, the value of `train.init_from`, is the folder of a bundle or of a checkpoint, or a file with
    such a state dict. The backbone must fit as a whole. Above it, layers for another number of classes or of
    another kind stay as they are. Raises PreflightError if there is no such file, UserError for one that is
    damaged or whose backbone is another.
    """
    path = Path(source)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise PreflightError(
            f"train.init_from={source}: no such file as {path}; name a model's folder, RUN/artifacts/bundle"
        )
    found = read_tensors(path)
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(_COUNTER)}
    kinds = {name: (value.shape, value.is_floating_point()) for name, value in found.items()}
    fits = {
        name for name, value in wanted.items() if kinds.get(name) == (value.shape, value.is_floating_point())
    }
    backbone = [name for name in wanted if name.startswith("backbone.")]
    unfit = [name for name in backbone if name not in fits]
    if unfit:
        problem = "of another shape or kind" if unfit[0] in found else "missing"
        raise UserError(
            f"train.init_from={source}: not a model with this recipe's model.backbone: {len(unfit)} of its "
            f"{format_count(len(backbone), 'tensor')} do not fit, the first is {unfit[0]}, {problem}"
        )
    new = list(dict.fromkeys(name.rpartition(".")[0] for name in wanted if name not in fits))
    new = new if len(new) <= SHOWN else [*new[: SHOWN - 1], f"{len(new) - SHOWN + 1} more"]
    unused = sum(name not in fits and not name.endswith(_COUNTER) for name in found)
    parts = [f"{len(fits)} of {format_count(len(wanted), 'tensor')} are taken"]
    parts += [f"new: {format_list(new)}"] if new else []
    parts += [f"{format_count(unused, 'tensor')} of the file not used"] if unused else []
    return InitialWeights(
        {name: found[name] for name in fits},
        f"begins with the weights of {path} (SHA-256 {sha256(path)[:12]}): {'; '.join(parts)}",
    )


def describe_initial(source: str, model: ModelConfig, num_classes: int) -> str:
    """The description alone, of a network that is not built. Raises as `read_initial` does."""
    with without_storage(model):
        network = EncNet.from_config(model, num_classes)
    return read_initial(source, network).description
