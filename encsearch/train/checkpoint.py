"""A training's state on disk: safetensors for the weights, a weights-only archive for the optimizer."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encsearch.errors import UserError, one_line
from encsearch.train.state import TrainState

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"


def save_checkpoint(state: TrainState, folder: Path) -> None:
    """Write the state into an existing `folder`; the caller makes the folder visible in one step."""
    tensors = {name: tensor.contiguous() for name, tensor in state.model.state_dict().items()}
    save_file(tensors, folder / MODEL_FILE)
    torch.save(
        {
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "samples_seen": state.samples_seen,
        },
        folder / OPTIMIZER_FILE,
    )


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Put a saved state into `state`, whose model and optimizer were built from the same config.

    Raises UserError when the files are missing, damaged or of another model.
    """
    load_weights(state.model, folder)
    try:
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(saved["optimizer"])
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}: the optimizer state cannot be read ({one_line(error)})") from None
    state.step = saved["step"]
    state.samples_seen = saved["samples_seen"]


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load only the model's weights from a checkpoint folder."""
    try:
        model.load_state_dict(load_file(folder / MODEL_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}: the model weights cannot be read ({one_line(error)})") from None
