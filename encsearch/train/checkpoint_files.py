"""The checkpoints that a training's folder keeps, as files; a sweep's driver needs no torch for them."""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from encsearch.errors import UserError
from encsearch.files import instead_of, read_regular, settle, sha256

CHECKPOINT_PREFIX = "checkpoint-epoch"
BEST = "best"
CHECKPOINTS = "checkpoints"  # the folder of a training's, in the folder of its job
CONTENT_FILE = "checkpoint.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
RAW_FILE = "raw.safetensors"  # with train.ema: the trained weights, whose average MODEL_FILE has
PARTS_FILE = "epoch.pt"  # inside an epoch: what each rank has of it
FILES = (MODEL_FILE, OPTIMIZER_FILE)

Fill = Callable[[Path], None]
"""Writes a checkpoint's files into an empty folder."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint says of itself: the optimizer step, the samples that were trained on, its files."""

    step: int
    samples_seen: int
    files: frozenset[str]


def checkpoint_name(epochs: int, step: int | None = None) -> str:
    """Of a checkpoint after `epochs` whole epochs, or at `step` of the next one; sorts by the step."""
    inside = "" if step is None else f"-step{step:09d}"
    return f"{CHECKPOINT_PREFIX}{epochs:05d}{inside}"


def read_content(folder: Path, files: Collection[str] | None = None) -> Content:
    """Verify the files of a checkpoint, or only those `files` that are needed of it, and read its position.

    Raises UserError that names the file when one is missing, damaged or impossible.
    """
    path = folder / CONTENT_FILE
    try:
        values = json.loads(read_regular(path))
        content = Content(values["step"], values["samples_seen"], frozenset(values["sha256"]))
        if not all(type(count) is int and count >= 0 for count in (content.step, content.samples_seen)):
            raise ValueError(f"step {content.step}, samples_seen {content.samples_seen}")
        hashes = {name: values["sha256"][name] for name in files or (*FILES, *content.files - {*FILES})}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; this is no whole checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a checkpoint's ({type(error).__name__}: {error})") from None
    for name, expected in hashes.items():
        file = folder / name
        try:
            found = sha256(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise UserError(f"{file}: damaged, its SHA-256 is not the one that was written with it")
    return content


def write_newest(folder: Path, name: str, fill: Fill, *, keep: int = 1) -> None:
    """Store a checkpoint as the newest in `folder`, whole or not at all; the newest `keep` stay.

    Every file and the folder are synced to disk before an old one is deleted. See `checkpoint_name`.
    """
    target = folder / name
    older = sorted(path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if path != target)
    # Hidden ones are what a kill in this function has left.
    dropped = [*older[: len(older) - (keep - 1)], *folder.glob(f".{CHECKPOINT_PREFIX}*")]
    _write(target, fill)
    for old in dropped:
        shutil.rmtree(old, ignore_errors=True)


def write_best(folder: Path, fill: Fill) -> None:
    """Store a checkpoint as the best in `folder`, whole or not at all, in the place of another."""
    _write(find_best(folder), fill)


def copy_files(source: Path, target: Path) -> None:
    """Fill `target` with the files of another checkpoint."""
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def find_best(folder: Path) -> Path:
    """Where `write_best` keeps the best checkpoint."""
    return folder / BEST


def find_newest(folder: Path) -> Path | None:
    """The checkpoint that `write_newest` kept last, or None."""
    return max(folder.glob(f"{CHECKPOINT_PREFIX}*"), default=None)


def intact(folder: Path) -> Iterator[tuple[Path, Content]]:
    """The checkpoints whose files are what was written, newest first and the best one last.

    Those that are damaged are named in the log. What a kill has left of the best one is put in order first.
    """
    settle(find_best(folder))
    newest_first = sorted(folder.glob(f"{CHECKPOINT_PREFIX}*"), reverse=True)
    return _intact([*newest_first, find_best(folder)])


def _intact(candidates: Iterable[Path]) -> Iterator[tuple[Path, Content]]:
    for path in candidates:
        if path.is_dir():
            try:
                content = read_content(path)
            except UserError as error:
                logging.getLogger(__name__).warning("%s; this checkpoint is passed over", error)
            else:
                yield path, content


def find_weights(folder: Path) -> Iterator[tuple[Path, Content]]:
    """Every checkpoint with intact weights in a training's folder.

    Damaged ones are passed over without a word: see in the reports what is missing.
    """
    for path in sorted(folder.glob(f"**/{CONTENT_FILE}")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            with suppress(UserError):
                yield path.parent, read_content(path.parent, (MODEL_FILE,))


def stored_bytes(folder: Path) -> int:
    """The size of the checkpoint that is kept in `folder`; 0 if there is none."""
    newest = find_newest(folder)
    return sum(path.stat().st_size for path in newest.iterdir()) if newest else 0


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training that has ended: hundreds would fill the disk.

    A kill leaves each as it was, or hidden from `find_newest`.
    """
    for path in folder.glob(f"{CHECKPOINT_PREFIX}*"):
        hidden = folder / f".{path.name}"
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(FileNotFoundError):  # a process that was told to stop has replaced it meanwhile
            path.rename(hidden)
    for hidden in folder.glob(f".{CHECKPOINT_PREFIX}*"):
        shutil.rmtree(hidden, ignore_errors=True)


def _write(target: Path, fill: Fill) -> None:
    with instead_of(target) as scratch:
        scratch.mkdir(parents=True)
        fill(scratch)
