"""The checkpoints that a training's folder keeps, as files; a sweep's driver needs no torch for them."""

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
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
FILES = (MODEL_FILE, OPTIMIZER_FILE)


@dataclass(frozen=True)
class Content:
    """What a checkpoint says of itself: the optimizer step, and the samples that were trained on."""

    step: int
    samples_seen: int


def read_content(folder: Path, files: Collection[str] = FILES) -> Content:
    """Verify `files` of a checkpoint, those that are needed of it, and read its position.

    Raises UserError that names the file when one is missing, damaged or impossible.
    """
    path = folder / CONTENT_FILE
    try:
        values = json.loads(read_regular(path))
        content = Content(values["step"], values["samples_seen"])
        if not all(type(count) is int and count >= 0 for count in (content.step, content.samples_seen)):
            raise ValueError(f"step {content.step}, samples_seen {content.samples_seen}")
        hashes = {name: values["sha256"][name] for name in files}
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


def write_newest(folder: Path, epoch: int, files: Mapping[str, bytes], *, keep: int = 1) -> None:
    """Store a checkpoint's files as the newest in `folder`, whole or not at all; the newest `keep` stay.

    Every file and the folder are synced to disk before an old one is deleted.
    """
    target = folder / f"{CHECKPOINT_PREFIX}{epoch:05d}"
    older = sorted(path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if path != target)
    # Hidden ones are what a kill in this function has left.
    dropped = [*older[: len(older) - (keep - 1)], *folder.glob(f".{CHECKPOINT_PREFIX}*")]
    _write_files(target, files)
    for old in dropped:
        shutil.rmtree(old, ignore_errors=True)


def write_best(folder: Path, files: Mapping[str, bytes]) -> None:
    """Store a checkpoint's files as the best in `folder`, whole or not at all, in the place of another."""
    _write_files(find_best(folder), files)


def find_best(folder: Path) -> Path:
    """Where `write_best` keeps the best checkpoint."""
    return folder / BEST


def find_newest(folder: Path) -> Path | None:
    """The checkpoint that `write_newest` kept last, or None."""
    return max(folder.glob(f"{CHECKPOINT_PREFIX}*"), default=None)


def find_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written, the best one if no other is; None without any.

    One that is damaged is named in the log, and passed over: the training goes on from an earlier step.
    """
    return next((place for place, _ in intact(folder)), None)


def intact(folder: Path) -> Iterator[tuple[Path, Content]]:
    """The checkpoints whose files are what was written, newest first and the best one last.

    Those that are damaged are named in the log. What a kill has left of the best one is put in order first.
    """
    settle(find_best(folder))
    newest_first = sorted(folder.glob(f"{CHECKPOINT_PREFIX}*"), reverse=True)
    return _intact([*newest_first, find_best(folder)])


def find_before(checkpoint: Path) -> Path | None:
    """The newest intact checkpoint beside and before one of Ray Train's, which is damaged."""
    names = sorted((path for path in checkpoint.parent.glob("checkpoint_*") if path.is_dir()), reverse=True)
    before = _intact(path for path in names if path.name < checkpoint.name)
    return next((place for place, _ in before), None)


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
    """Every checkpoint with intact weights in a training's folder, of this package or of Ray Train.

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


def read_newest(folder: Path) -> dict[str, bytes]:
    """The files of the newest intact checkpoint by name; empty if there is none."""
    found = find_intact(folder)
    return {path.name: path.read_bytes() for path in found.iterdir()} if found else {}


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training that has ended: hundreds would fill the disk.

    A kill leaves each as it was, or hidden from `find_newest`.
    """
    for path in folder.glob(f"{CHECKPOINT_PREFIX}*"):
        hidden = folder / f".{path.name}"
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    for hidden in folder.glob(f".{CHECKPOINT_PREFIX}*"):
        shutil.rmtree(hidden, ignore_errors=True)


def _write_files(target: Path, files: Mapping[str, bytes]) -> None:
    with instead_of(target) as scratch:
        scratch.mkdir(parents=True)
        for name, content in files.items():
            (scratch / name).write_bytes(content)
