"""A training's state on disk: safetensors for the weights, weights-only archives for the rest.

checkpoint.json has the step and a SHA-256 of each file, made when it is written and verified when it is read:
neither format notices a flipped bit. `checkpoint_files` keeps and finds the folders.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from encsearch.errors import StorageError, UserError, one_line
from encsearch.files import sha256, way_out
from encsearch.train.checkpoint_files import (
    CONTENT_FILE,
    FILES,
    MODEL_FILE,
    OPTIMIZER_FILE,
    PARTS_FILE,
    RAW_FILE,
    checkpoint_name,
    copy_files,
    find_best,
    read_content,
    write_best,
    write_newest,
)
from encsearch.train.state import TrainState, copy_buffers


@dataclass(frozen=True)
class _Snapshot:
    """A state at one step; `weights`, those that are evaluated, `raw` and `optimizer` are on the CPU."""

    weights: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None
    optimizer: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...]
    step: int
    samples_seen: int

    @classmethod
    def of(cls, state: TrainState, *, copy: bool) -> "_Snapshot":
        """With `copy` it stays as it is while the training goes on."""
        copy_buffers(state)  # inside an epoch the average has those of the last validation

        def take(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", copy=copy)

        def take_all(model: torch.nn.Module) -> dict[str, Tensor]:
            return {name: take(tensor).contiguous() for name, tensor in model.state_dict().items()}

        return cls(
            weights=take_all(state.evaluated),
            raw=None if state.average is None else take_all(state.model),
            optimizer=tree_map_only(Tensor, take, state.optimizer.state_dict()),
            parts=state.parts,
            step=state.step,
            samples_seen=state.samples_seen,
        )

    def write(self, folder: Path) -> None:
        files: tuple[str, ...] = FILES
        save_file(dict(self.weights), folder / MODEL_FILE)
        torch.save({"optimizer": self.optimizer}, folder / OPTIMIZER_FILE)
        if self.raw is not None:
            files += (RAW_FILE,)
            save_file(dict(self.raw), folder / RAW_FILE)
        if self.parts:
            files += (PARTS_FILE,)
            torch.save({"parts": [dict(part) for part in self.parts]}, folder / PARTS_FILE)
        content = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "sha256": {name: sha256(folder / name) for name in files},
        }
        (folder / CONTENT_FILE).write_text(json.dumps(content), encoding="utf-8")


class CheckpointWriter:
    """Writes checkpoints into a training's folder, one at a time, in a thread; the training goes on.

    Close it in any case: that waits for the last one. An error of a write is raised by the next call, as
    StorageError that names the place.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def write(self, state: TrainState, epochs: int, *, best: bool = False) -> None:
        """Copy the state and return; it becomes the newest checkpoint, and with `best` the best one too.

        `epochs` is how many are complete. Waits for the checkpoint before.
        """
        self.wait()
        snapshot = _Snapshot.of(state, copy=True)
        name = checkpoint_name(epochs, state.step if state.parts else None)
        self._last = self._pool.submit(self._store, snapshot, name, best)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk. Raises StorageError if it could not be written."""
        if self._last is None:
            return
        last, self._last = self._last, None
        try:
            last.result()
        except (OSError, SafetensorError, RuntimeError) as error:  # as the three kinds of files do
            reason = getattr(error, "strerror", None) or one_line(error)
            raise StorageError(
                f"{self._folder}: a checkpoint cannot be written ({reason}); {way_out(reason)}, and resume"
            ) from None

    def close(self) -> None:
        self._pool.shutdown()

    def _store(self, snapshot: _Snapshot, name: str, best: bool) -> None:
        fill = snapshot.write
        if best:  # first: no newest one is without the best one up to it
            write_best(self._folder, snapshot.write)
            fill = partial(copy_files, find_best(self._folder))
        write_newest(self._folder, name, fill, keep=self._keep)


def save_checkpoint(state: TrainState, folder: Path) -> None:
    """Write the state into an existing `folder`; the caller makes the folder visible in one step."""
    _Snapshot.of(state, copy=False).write(folder)


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Put a saved state into `state`, whose model and optimizer were built from the same config.

    Raises UserError when the files are missing, damaged, not finite or of another model; `state` may then be
    half of each.
    """
    content = read_content(folder)
    if (RAW_FILE in content.files) != (state.average is not None):
        raise UserError(f"{folder}: of a training {'without' if state.average else 'with'} train.ema")
    _read_weights(state.evaluated, folder / MODEL_FILE)
    if state.average is not None:
        _read_weights(state.model, folder / RAW_FILE)
    try:
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        for group in saved["optimizer"]["param_groups"]:
            if "fused" in state.optimizer.defaults:
                group["fused"] = state.optimizer.defaults["fused"]  # of this device, not of the one before
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
    state.parts = _read_parts(folder) if PARTS_FILE in content.files else ()
    state.step, state.samples_seen = content.step, content.samples_seen


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load only the model's weights from a checkpoint folder, whose optimizer state may be damaged.

    Raises UserError as `load_checkpoint` does.
    """
    read_content(folder, (MODEL_FILE,))
    _read_weights(model, folder / MODEL_FILE)


def _read_weights(model: torch.nn.Module, file: Path) -> None:
    try:
        tensors = load_file(file)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file.parent}: the model weights cannot be read ({one_line(error)})") from None
    _check_finite(tensors.values(), file)


def _read_parts(folder: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        saved = torch.load(folder / PARTS_FILE, map_location="cpu", weights_only=True)
        return tuple(saved["parts"])
    except Exception as error:  # as of the optimizer's
        raise UserError(f"{folder}: the epoch's sums cannot be read ({one_line(error)})") from None


def _check_finite(tensors: Iterable[Tensor], file: Path) -> None:
    for tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{file}: holds values that are not finite, as it was saved: the training has diverged; "
                "begin another with a smaller optim.lr"
            )
