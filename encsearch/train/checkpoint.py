"""A training's state on disk: safetensors for the weights, a weights-only archive for the optimizer.

checkpoint.json has the step and a SHA-256 of each file, made when it is written and verified when it is read:
neither format notices a flipped bit. `checkpoint_files` keeps and finds the folders.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encsearch.errors import UserError, one_line
from encsearch.files import sha256
from encsearch.train.checkpoint_files import CONTENT_FILE, FILES, MODEL_FILE, OPTIMIZER_FILE, read_content
from encsearch.train.state import TrainState


def save_checkpoint(state: TrainState, folder: Path) -> None:
    """Write the state into an existing `folder`; the caller makes the folder visible in one step."""
    tensors = {name: tensor.contiguous() for name, tensor in state.model.state_dict().items()}
    save_file(tensors, folder / MODEL_FILE)
    torch.save({"optimizer": state.optimizer.state_dict()}, folder / OPTIMIZER_FILE)
    content = {
        "step": state.step,
        "samples_seen": state.samples_seen,
        "sha256": {name: sha256(folder / name) for name in FILES},
    }
    (folder / CONTENT_FILE).write_text(json.dumps(content), encoding="utf-8")


def checkpoint_bytes(state: TrainState) -> dict[str, bytes]:
    """The files that `save_checkpoint` writes, by name, to be stored elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(state, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Put a saved state into `state`, whose model and optimizer were built from the same config.

    Raises UserError when the files are missing, damaged, not finite or of another model; `state` may then be
    half of each.
    """
    content = read_content(folder)
    _read_weights(state.model, folder)
    try:
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(saved["optimizer"])
        momenta = [
            value
            for slot in state.optimizer.state.values()
            for value in slot.values()
            if torch.is_tensor(value)
        ]
    except Exception as error:  # a damaged archive raises anything, from KeyError to UnpicklingError
        raise UserError(f"{folder}: the optimizer state cannot be read ({one_line(error)})") from None
    _check_finite(momenta, folder / OPTIMIZER_FILE)
    state.step, state.samples_seen = content.step, content.samples_seen


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load only the model's weights from a checkpoint folder, whose optimizer state may be damaged.

    Raises UserError as `load_checkpoint` does.
    """
    read_content(folder, (MODEL_FILE,))
    _read_weights(model, folder)


def _read_weights(model: torch.nn.Module, folder: Path) -> None:
    try:
        tensors = load_file(folder / MODEL_FILE)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}: the model weights cannot be read ({one_line(error)})") from None
    _check_finite(tensors.values(), folder / MODEL_FILE)


def _check_finite(tensors: Iterable[Tensor], file: Path) -> None:
    for tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{file}: holds values that are not finite, as it was saved: the training has diverged; "
                "begin another with a smaller optim.lr"
            )
