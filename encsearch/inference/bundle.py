"""A trained model as a folder that stands on its own: weights, configuration, classes and scores.

model.safetensors   the state dict; nothing in a bundle is ever unpickled
weights.sha256      its SHA-256, as `sha256sum --check` reads it
config.yaml         every default written out, so that later defaults do not change the model
preprocessing.json  how an image is prepared for the network
dataset.json        name, classes, palette and groups, images a split, and the fingerprint of the data
code/, code.json    with own parts alone: the modules that they are made of, and the SHA-256 of each
metrics.json        the scores that the model had on that data's validation split, overall and by class
README.md           the model card, for people: purpose, scores and limits of the model
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encsearch.config import CONFIG_FILE, AblateConfig, Config, load_config, named_parts, to_yaml
from encsearch.data.datasets import DatasetInfo
from encsearch.data.statistics import absent_classes
from encsearch.data.store import Store
from encsearch.data.transforms import MEAN, STD
from encsearch.errors import PreflightError, UserError, one_line
from encsearch.files import instead_of, read_regular, sha256
from encsearch.inference.card import ModelFacts, model_card
from encsearch.inference.segment import Network
from encsearch.model.encnet import EncNet, EncNetOutput, without_storage
from encsearch.parts import CODE_FOLDER, Code, code_from, find_code
from encsearch.reports import REPORTS_FILE, Report, best_report, distinct_reports, no_job_error
from encsearch.text import format_names
from encsearch.train.checkpoint import load_weights
from encsearch.train.checkpoint_files import CHECKPOINTS, find_weights
from encsearch.train.kernels import Kernels, has_bf16
from encsearch.train.preflight import count_padded

WEIGHTS_FILE = "model.safetensors"
DIGEST_FILE = "weights.sha256"
PREPROCESSING_FILE = "preprocessing.json"
DATASET_FILE = "dataset.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
CODE_FILE = "code.json"
CALLED_KINDS = ("backbone", "head", "context", "metric")  # of own parts, where a model is used
READ_FILES = (WEIGHTS_FILE, DIGEST_FILE, CONFIG_FILE, PREPROCESSING_FILE, DATASET_FILE, METRICS_FILE)

PREPROCESSING: Mapping[str, Any] = MappingProxyType(
    {
        "orientation": "as EXIF says",
        "colour_order": "RGB",
        "divide_by": 255,
        "mean": list(MEAN),
        "std": list(STD),
        "resize": "none",
    }
)
"""The work of `data.codec.decode_image` and `data.transforms.to_image_tensor`: (pixel / 255 - mean) / std."""


@dataclass(frozen=True)
class Bundle:
    """A model in eval mode on the CPU, and the facts about it.

    `metrics` are figures of all classes, `class_iou` those by class, on the validation split; `num_images`
    counts the images of each split, `untrained` are the classes without a training pixel, and `num_padded`
    counts the training images that were smaller than the crop. The weights are those of `epoch`, and
    `unfinished_at` is the last epoch of a training that had not finished. A fact that was not recorded is
    empty. `code` is what its own parts are made of, None without any.
    """

    model: EncNet
    config: Config
    info: DatasetInfo
    fingerprint: str
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float] = field(default_factory=dict)
    num_images: Mapping[str, int] = field(default_factory=dict)
    untrained: Sequence[str] = ()
    num_padded: int = 0
    epoch: int | None = None
    unfinished_at: int | None = None
    code: Code | None = None


def checkpoint_model(config: Config, store: Store, checkpoint: Path, scored: Report | None = None) -> Bundle:
    """Make a bundle of a checkpoint that was trained with `config`, with the metrics in `scored`."""
    shape = config.model.model_copy(update={"weights": None})
    with code_from(config.code):
        model = EncNet.from_config(shape, len(store.info.classes))
        names = named_parts(config.model_copy(update={"search": None, "ablate": AblateConfig()}))
        code = find_code(names) if names else None
    load_weights(model, checkpoint)
    num_images = {name: split.num_samples for name, split in store.manifest.splits.items()}
    train = store.stats(config.data.train_split)
    return Bundle(
        model.eval(),
        config,
        store.info,
        store.fingerprint,
        metrics=scored.metrics if scored else {},
        class_iou=scored.class_iou if scored else {},
        epoch=scored.epoch if scored else None,
        num_images=num_images,
        untrained=absent_classes(train),
        num_padded=count_padded(config.augment, train),
        code=code,
    )


@dataclass(frozen=True)
class Unfinished:
    """The best model so far of a training; `lost` scored higher, but its weights are damaged or gone."""

    bundle: Bundle
    best: Report
    lost: Report | None


def unfinished_model(folder: Path) -> Unfinished | None:
    """The best model so far of a training's folder; None before its first checkpoint and if none is intact.

    Raises UserError when the recipe, the store or the checkpoint cannot be read.
    """
    config = load_config(folder / CONFIG_FILE)
    checkpoints = folder / CHECKPOINTS
    reports = tuple(distinct_reports(checkpoints / REPORTS_FILE))
    kept = {content.step: place for place, content in find_weights(checkpoints)}
    scored = tuple(report for report in reports if report.step in kept)
    if not scored:
        return None
    best, of_all = best_report(scored, config.metric), best_report(reports, config.metric)
    bundle = checkpoint_model(config, Store(config.data.store), kept[best.step], best)
    bundle = replace(bundle, unfinished_at=reports[-1].epoch)
    return Unfinished(bundle, best, lost=None if of_all is best else of_all)


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle, whole or not at all; an existing one at `folder` is replaced."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.model.state_dict().items()}
    scores = {
        "overall": dict(bundle.metrics),
        "class_iou": dict(bundle.class_iou),
        "epoch": bundle.epoch,
        "unfinished_at": bundle.unfinished_at,
    }
    source = {
        "fingerprint": bundle.fingerprint,
        "num_images": dict(bundle.num_images),
        "untrained": list(bundle.untrained),
        "num_padded": bundle.num_padded,
    }
    with instead_of(folder) as scratch:
        scratch.mkdir(parents=True)
        save_file(tensors, scratch / WEIGHTS_FILE)
        digest = sha256(scratch / WEIGHTS_FILE)
        (scratch / DIGEST_FILE).write_text(f"{digest}  {WEIGHTS_FILE}\n", encoding="utf-8")
        shutil.copymode(scratch / DIGEST_FILE, scratch / WEIGHTS_FILE)  # safetensors' is for its owner alone
        # The modules of own parts are the bundle's, wherever it is.
        config = bundle.config.model_copy(update={"code": None})
        (scratch / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
        if bundle.code:
            _write_code(scratch, bundle.code)
        _write_json(scratch / PREPROCESSING_FILE, PREPROCESSING)
        _write_json(scratch / DATASET_FILE, bundle.info.to_dict() | source)
        _write_json(scratch / METRICS_FILE, scores)
        (scratch / CARD_FILE).write_text(model_card(_collect_facts(bundle, digest)), encoding="utf-8")


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle; the backbone's own weight file is not needed.

    Code of its own parts is run only if `code.json` has its SHA-256, and a line of the log says so before.
    Raises UserError when a file is missing or damaged, when the weights belong to another model, and when the
    model was trained on images that were prepared in another way than here.
    """
    for name in READ_FILES:
        if not (folder / name).is_file():
            raise no_job_error(folder, f"a trained model's folder ({name} is missing)")
    _check_preprocessing(folder / PREPROCESSING_FILE)
    config = load_config(folder / CONFIG_FILE)
    dataset, scores = _read_json(folder / DATASET_FILE), _read_json(folder / METRICS_FILE)
    try:
        info = DatasetInfo.from_dict(dataset)
        fingerprint, num_images = dataset["fingerprint"], dataset["num_images"]
        # Models of older versions have not recorded these.
        untrained, num_padded = dataset.get("untrained", ()), dataset.get("num_padded", 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / DATASET_FILE}: damaged, {error!r}") from None
    try:
        metrics, class_iou = scores["overall"], scores["class_iou"]
        epochs = scores.get("epoch"), scores.get("unfinished_at")
    except KeyError as error:
        raise UserError(f"{folder / METRICS_FILE}: damaged, it has no {error}") from None
    code = _read_code(folder, config)
    with code_from(code):
        model = _read_model(folder, config, len(info.classes))
    return Bundle(
        model, config, info, fingerprint, metrics, class_iou, num_images, untrained, num_padded, *epochs, code
    )


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a bundle that `read_bundle` needs, by path below its folder."""
    paths = [folder / name for name in READ_FILES]
    if (folder / CODE_FILE).is_file():
        paths += [folder / CODE_FILE, *(path for path in (folder / CODE_FOLDER).rglob("*") if path.is_file())]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def weights_digest(folder: Path) -> str:
    """The SHA-256 of a bundle's weights, as stored with them."""
    return next(iter(_digests(folder)), "")


def code_digest(folder: Path) -> str:
    """The SHA-256 of the files of a bundle's own parts, as stored with them; "" without any."""
    return str(_read_json(folder / CODE_FILE).get("sha256", "")) if (folder / CODE_FILE).is_file() else ""


def code_packages(folder: Path) -> list[str]:
    """The installed packages that a bundle's own parts are of."""
    return list(_read_json(folder / CODE_FILE).get("installed", {})) if (folder / CODE_FILE).is_file() else []


def place_network(bundle: Bundle, device: torch.device) -> Network:
    """The bundle's model, moved to `device`, which computes there as it did in its validation in training.

    On a device without bfloat16 a model that was trained in it computes in float32.
    """
    train = bundle.config.train
    if train.precision == "bf16" and not has_bf16(device):
        train = train.model_copy(update={"precision": "fp32"})
    kernels = Kernels.of(train, device)
    order = torch.channels_last if kernels.channels_last else torch.contiguous_format
    model = bundle.model.to(device).to(memory_format=order)  # type: ignore[call-overload]
    assert not model.training, "a model segments in eval mode"

    def network(images: Tensor) -> EncNetOutput:
        with kernels.chosen(one_size=False), kernels.autocast():
            output: EncNetOutput = model(images.contiguous(memory_format=order))
        return output

    return network


def find_device(name: str) -> torch.device:
    """The device to run a model on: "cpu", "cuda", "cuda:1", or "auto", a GPU if there is one.

    Raises UserError for another name, PreflightError for a GPU that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise UserError(f"device={name} is not a device that models run on; try auto, cpu or cuda")
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise PreflightError(
            f"device={name}, but PyTorch {torch.__version__} finds {num_gpus} GPUs here; try cpu"
        )
    return device


def _collect_facts(bundle: Bundle, weights_sha256: str) -> ModelFacts:
    return ModelFacts(
        bundle.config,
        bundle.info,
        bundle.fingerprint,
        weights_sha256,
        num_parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
        metrics=bundle.metrics,
        class_iou=bundle.class_iou,
        num_images=bundle.num_images,
        untrained=bundle.untrained,
        num_padded=bundle.num_padded,
        epoch=bundle.epoch,
        unfinished_at=bundle.unfinished_at,
    )


def _read_model(folder: Path, config: Config, num_classes: int) -> EncNet:
    """Build the model without storage and give it the file's tensors: no random number is drawn."""
    shape = config.model.model_copy(update={"weights": None})
    with without_storage(shape):
        model = EncNet.from_config(shape, num_classes)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: not the weights of this model ({one_line(error)})"
        ) from None
    found = sha256(folder / WEIGHTS_FILE)
    if found not in _digests(folder):
        raise UserError(
            f"{folder / WEIGHTS_FILE}: damaged or exchanged, its SHA-256 {found[:12]} is not the one in "
            f"{DIGEST_FILE}; fetch the model again"
        )
    return model.eval()


def _write_code(folder: Path, code: Code) -> None:
    code.write(folder / CODE_FOLDER)
    files = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(code.files.items())}
    _write_json(
        folder / CODE_FILE, {"sha256": code.digest, "files": files, "installed": dict(code.installed)}
    )


def _read_code(folder: Path, config: Config) -> Code | None:
    """The code that a bundle's own parts are made of, whole and as it was written; None without own parts."""
    names = named_parts(config)
    if not names:
        return None
    if not (folder / CODE_FILE).is_file():
        raise no_job_error(folder, f"a trained model's folder ({CODE_FILE} of its own parts is missing)")
    kept = _read_json(folder / CODE_FILE)
    listed, installed = kept.get("files", {}), kept.get("installed", {})
    root = folder / CODE_FOLDER
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    for path in sorted(found ^ set(listed)):
        state = "missing" if path in listed else f"not named in {CODE_FILE}"
        raise UserError(f"{root / path}: {state}; fetch the model again")
    files = {path: read_regular(root / path) for path in listed}
    for path, data in files.items():
        if hashlib.sha256(data).hexdigest() != listed[path]:
            raise UserError(
                f"{root / path}: changed, its SHA-256 is not the one in {CODE_FILE}; fetch the model again"
            )
    code = Code(root, files, installed)
    if code.digest != kept.get("sha256"):
        raise UserError(f"{folder / CODE_FILE}: damaged, its SHA-256 is not that of the files")
    if files:
        logging.getLogger(__name__).warning(
            "the model's own parts run code: %s (SHA-256 %s)", format_names(sorted(files)), code.digest[:12]
        )
    tops = {path.partition("/")[0].removesuffix(".py") for path in files}
    called = [name for name, (kind, _) in names.items() if kind in CALLED_KINDS]
    if others := [name for name in called if name.partition(":")[0].partition(".")[0] not in tops]:
        logging.getLogger(__name__).warning(
            "the model's own parts run code of installed packages: %s", format_names(others)
        )
    return code


def _digests(folder: Path) -> list[str]:
    return read_regular(folder / DIGEST_FILE).decode(errors="replace").split()


def _check_preprocessing(path: Path) -> None:
    trained = _read_json(path)
    for name in sorted(PREPROCESSING.keys() | trained.keys()):
        if trained.get(name) != PREPROCESSING.get(name):
            raise UserError(
                f"{path}: the model was trained with {name}={trained.get(name)}, but this encsearch prepares "
                f"images with {name}={PREPROCESSING.get(name)}; use the version that trained it"
            )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(values), indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, it is not a mapping")
    return values
