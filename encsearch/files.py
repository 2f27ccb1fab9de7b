"""Files that survive a kill, a power cut or a full disk: text, folders, JSON lines. Also locks and hashes."""

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

from encsearch.errors import PreflightError, StorageError, UserError, one_line

RETRY_S = 0.1

T = TypeVar("T")


def check_name(name: str) -> None:
    """Raise UserError for a name that is no plain name of a folder, on any system and in a URL."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise UserError(f"--name: {name!r} is not of letters, digits, '_', '.' and '-' alone, 100 at most")


def write_whole(path: Path, text: str) -> None:
    """Write a file; a kill or a power cut leaves the old content or the new. Raises TrainingError."""
    with _report_write_errors(path):
        with beside(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
            sync(scratch)
        sync(path.parent)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A free place beside `path` for a new file or folder, renamed to `path` once the block has succeeded.

    If the block raises, `path` stays as it was and nothing is left beside it. The rename replaces a file or
    an empty folder; it raises OSError for a folder with files in it. A power cut may lose content that was
    not synced in the block, and the rename unless the parent folder is synced after it.
    """
    path = path.absolute()
    scratch = path.with_name(f".{_stem(path)}.{uuid4().hex}.tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            scratch.unlink()


@contextmanager
def instead_of(folder: Path) -> Iterator[Path]:
    """A free place for a new folder, which takes the place of `folder` once the block has succeeded.

    Its files and the renames are synced. If the block raises, `folder` stays as it was. A kill leaves the old
    folder or the new one, between two renames beside its place: `settle` puts it back, here or in a reader.
    One writer at a time.
    """
    folder = folder.absolute()
    settle(folder)
    try:
        with beside(folder) as scratch:
            yield scratch
            sync(*scratch.iterdir(), scratch)
            if folder.is_dir():
                os.replace(folder, _set_aside(folder))
        sync(folder.parent)
    finally:
        settle(folder)


def settle(folder: Path) -> None:
    """Put back or delete what a kill in `instead_of` has left; only for the process that may write now."""
    old = _set_aside(folder)
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    for left in (old, *folder.parent.glob(f".{glob.escape(_stem(folder))}.*.tmp")):
        shutil.rmtree(left, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{_stem(folder)}.old")


def _stem(path: Path) -> str:
    """The name, cut where it would leave no room for an ending: a file's name has 255 bytes at most."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def sync(*paths: Path) -> None:
    """Flush the bytes of each file, and the names in each folder, to disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_free(folder: Path) -> None:
    """Raises UserError unless `folder` is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; give another folder or delete it")


def read_regular(path: Path) -> bytes:
    """A file's content. Raises OSError, also for what is no file: a pipe in its place would never end."""
    with _open_regular(path) as file:
        return file.read()


def read_object(path: Path, kind: type[T]) -> T:
    """A dataclass from a file of JSON. Raises FileNotFoundError, and UserError for a damaged file."""
    try:
        values = json.loads(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or error) from None
    return to_object(kind, values, path)


def to_object(kind: type[T], values: object, place: object) -> T:
    """A dataclass from what JSON holds, every field of its type. Raises UserError that names a wrong one."""
    from pydantic import ValidationError

    if isinstance(values, dict) and (
        unknown := values.keys() - getattr(kind, "__dataclass_fields__", values)
    ):
        raise _damaged(place, f"{min(unknown)} is not known; or written by another version of encsearch")
    try:
        made: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise _damaged(place, f"{field}: {first['msg']}" if field else first["msg"]) from None
    return made


@cache
def _adapter(kind: type) -> Any:
    """Made once for each kind: it takes milliseconds, and a file may have a hundred thousand lines."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON; it is on disk when this returns. A line that a crash has torn is removed first.

    One writer at a time, any number of readers: a line counts once its newline is written. The file is closed
    at once, which makes the line visible over NFS too. Raises TrainingError, as on a full disk.
    """
    line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
    with _report_write_errors(path), open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; see `lines_after`. Raises PreflightError for a damaged one."""
    try:
        return [values for values, _ in lines_after(path)]
    except PreflightError as error:
        raise PreflightError(f"{error}, or cut it off before that line to go on from there") from None


def lines_after(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Each complete line from `offset` (bytes) on, with the offset after it; none if there is no file.

    Raises PreflightError for a line that is not a JSON object, which a kill cannot cause.
    """
    try:
        with _open_regular(path) as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                values = _parse(line)
                if values is None:
                    raise _damage_error(path, offset)
                offset += len(line)
                yield values, offset
    except FileNotFoundError:
        return
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror}); restore the file") from None


def count_lines(path: Path, offset: int = 0) -> int:
    """How many complete lines `lines_after` would read; what they hold is not looked at."""
    try:
        with _open_regular(path) as file:
            file.seek(offset)
            return sum(line.endswith(b"\n") for line in file)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror}); restore the file") from None


def remove_torn_line(path: Path) -> None:
    """Remove what a killed writer left after the last newline; only for the process that may write now."""
    with open(path, "rb+") as file:
        _cut_torn_line(file)


@contextmanager
def hold_lock(path: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock until the block ends, and yield whether it was free within `wait_s`.

    The kernel releases it when the process dies. It may not work across machines.
    """
    with open(path, "a") as lock:
        is_held = _try_lock(lock.fileno(), wait_s)
        try:
            yield is_held
        finally:
            # Closing the file is not enough while a forked process, such as a data loader, has it open too.
            if is_held:
                fcntl.flock(lock, fcntl.LOCK_UN)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with _open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def user_cache() -> Path:
    """This user's cache folder, whose content may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "encsearch"


@contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); {way_out(str(error))}, or choose another folder"
        ) from None


def way_out(reason: str) -> str:
    """What to do about a write that failed for this reason, in the system's words."""
    return "make room" if "No space" in reason or "quota" in reason else "mend that"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


@contextmanager
def _open_regular(path: Path) -> Iterator[BufferedReader]:
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _damaged(place: object, reason: object) -> UserError:
    return UserError(f"{place}: damaged ({one_line(reason, 200)}); restore the file")


def _damage_error(path: Path, offset: int) -> PreflightError:
    number = path.read_bytes()[:offset].count(b"\n") + 1
    return PreflightError(f"{path}: line {number} is damaged; restore the file")


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _try_lock(descriptor: int, wait_s: float) -> bool:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(RETRY_S)
