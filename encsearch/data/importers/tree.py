"""The files of a data set, unpacked or in its archives, as one list of names.

A tree is made of folders and archives. The archives of a folder that are named for it are read in their
place: zip and tar files member by member, a compressed tar once it is unpacked to a plain one.
"""

import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from encsearch.data.codec import IMAGE_SUFFIXES
from encsearch.errors import UserError, one_line
from encsearch.text import format_bytes, format_count

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MISSING = -1  # the size of a file that a list promises, but that the source does not have
_LARGEST_FILE = 2**31  # bytes; a member of an archive can claim any size
_SHOWN = 3  # names shown of the files that are left out for one reason


@dataclass(frozen=True)
class File:
    """A file of a tree and where its bytes are: a file, a zip's member, or a span of another file.

    `size` is in bytes; `stamp` changes when the file does. `shown` names it where `path` does not.
    """

    path: Path
    size: int
    stamp: int
    member: str = ""
    offset: int = -1
    shown: str = ""

    def read(self) -> bytes:
        """Raises UserError when it is missing or too large, cannot be read, or is damaged in its archive."""
        if self.size == MISSING:
            raise UserError(f"{self}: not in the source")
        if self.size > _LARGEST_FILE:
            raise UserError(f"{self}: {format_bytes(self.size)}, over {format_bytes(_LARGEST_FILE)}")
        try:
            if self.member:
                return _open_zip(self.path, self.stamp).read(self.member)
            if self.offset < 0:
                return self.path.read_bytes()
            data = os.pread(_open_span(self.path, self.stamp), self.size, self.offset)
            if len(data) != self.size:
                raise EOFError("the archive ends before it does")
            return data
        except _ARCHIVE_DAMAGE as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise UserError(f"{self}: cannot be read ({reason})") from None

    def __str__(self) -> str:
        return self.shown or (f"{self.path}:{self.member}" if self.member else str(self.path))


@dataclass(frozen=True)
class ParquetCell:
    """An image or mask column of one row of a Parquet file, as Hugging Face writes it: bytes and path."""

    path: Path
    size: int
    stamp: int
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        """Raises UserError when the file is damaged or the cell holds no bytes."""
        try:
            value = _open_row_group(self.path, self.stamp, self.group, self.column)[self.row].as_py()
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise UserError(f"{self}: cannot be read ({one_line(error)})") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{self}: holds no bytes of an image file")
        return data

    def __str__(self) -> str:
        return f"{self.path}: column {self.column}, row group {self.group}, row {self.row}"


# What the readers of archives raise for damage; zipfile has ValueError for names, RuntimeError for passwords.
_ARCHIVE_DAMAGE = (
    OSError,
    EOFError,
    MemoryError,
    ValueError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class LeftOut:
    """What an importer does not use, and why: reason -> names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, reason: str, names: Iterable[str]) -> None:
        for name in names:
            self.counts[reason] += 1
            shown = self.first.setdefault(reason, [])
            if len(shown) < _SHOWN:
                shown.append(name)

    def lines(self) -> Iterator[str]:
        """One line a reason, the most frequent first."""
        for reason, count in self.counts.most_common():
            shown = self.first[reason]
            more = ", ..." if count > len(shown) else ""
            yield f"{format_count(count, 'file')}: {reason} ({', '.join(shown)}{more})"


class Tree:
    """The regular files below some folders and archives, by their name in POSIX form, `images/0001.jpg`.

    Links are followed. `odd` has what is not a regular file, such as a FIFO, with the reason; it is in
    `left_out` too, to which importers add what they do not use; `read` are lists and tables that were read.
    """

    def __init__(self, sources: Sequence[Path], scratch: Path | None, archives: Sequence[str] = ()) -> None:
        """`archives` are patterns of file names; an archive of a folder that fits one is read in its place.

        A compressed tar is unpacked into `scratch`; without one it is refused. Raises UserError for a source
        that does not exist, an archive that cannot be read, and a name that is not UTF-8.
        """
        self.sources = tuple(sources)
        self.files: dict[str, File] = {}
        self.odd: dict[str, str] = {}
        self.read: set[str] = set()
        self.left_out = LeftOut()
        self._scratch = scratch
        for source in sources:
            if source.is_dir():
                self._add_folder(source, archives)
            elif not source.exists():
                raise UserError(f"{source}: no such folder or archive")
            elif source.name.lower().endswith(ARCHIVES):
                self._add_archive(source)
            else:
                self._add_file(source, source.name)

    def __str__(self) -> str:
        return ", ".join(map(str, self.sources))

    def names(self, folder: str = "") -> Iterator[str]:
        """The names below a folder, in order; "" means all."""
        prefix = f"{folder}/" if folder else ""
        return (name for name in sorted(self.files) if name.startswith(prefix))

    def find(self, ending: str) -> str | None:
        """The shortest name that is `ending` or ends in "/" and `ending`."""
        found = [name for name in self.files if name == ending or name.endswith(f"/{ending}")]
        return min(found, key=len, default=None)

    def read_lines(self, name: str) -> list[str]:
        """The lines of a text file, stripped, without empty ones. Raises UserError."""
        if name not in self.files:
            raise UserError(f"{self}: no {name}")
        self.read.add(name)
        return read_lines(self.files[name])

    def _add_folder(self, root: Path, archives: Sequence[str]) -> None:
        for parent, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
            within = Path(parent).relative_to(root)
            for name in sorted(folders):
                if _is_loop(root, within / name):
                    self._add_odd(str(within / name), "a link that leads back to a folder above it")
                    folders.remove(name)
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    self._add_odd(str(within / name), "a folder that is named like a picture")
            for name in sorted(names):
                path = Path(parent) / name
                if name.lower().endswith(ARCHIVES) and any(fnmatch(name, pattern) for pattern in archives):
                    self._add_archive(path)
                else:
                    self._add_file(path, str(PurePosixPath(within / name)))

    def _add_file(self, path: Path, name: str) -> None:
        _check_name(name, path.parent)
        try:
            info = path.stat()
        except OSError as error:
            self._add_odd(name, f"cannot be read ({error.strerror})")
            return
        if stat.S_ISREG(info.st_mode):
            self.files[name] = File(path, info.st_size, info.st_mtime_ns)
        else:
            kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
            kind = kinds.get(stat.S_IFMT(info.st_mode), "a device")
            self._add_odd(name, f"{kind}, not a regular file")

    def _add_odd(self, name: str, reason: str) -> None:
        self.odd[name] = reason
        self.left_out.add(reason, [name])

    def _add_archive(self, path: Path) -> None:
        stamp = regular_file(path).stamp
        try:
            if path.name.lower().endswith(".zip"):
                self._add_zip(path, stamp)
            else:
                plain = path if path.name.lower().endswith(".tar") else self._unpack(path)
                self._add_tar(plain, path, stamp)
        except _ARCHIVE_DAMAGE as error:
            raise UserError(f"{path}: not a whole archive ({one_line(error)}); fetch it again") from None

    def _add_zip(self, path: Path, stamp: int) -> None:
        names: set[str] = set()
        for member in _open_zip(path, stamp).infolist():
            if not member.is_dir():
                _check_name(member.filename, path)
                if member.filename in names:
                    raise zipfile.BadZipFile(f"{member.filename} is in it twice")
                names.add(member.filename)
                self.files[member.filename] = File(path, member.file_size, stamp, member.filename)

    def _add_tar(self, plain: Path, path: Path, stamp: int) -> None:
        """Members of `plain`, a tar, which is called `path` in messages."""
        with tarfile.open(plain, "r:") as tar:
            for entry in tar:
                name = entry.name.removeprefix("./")
                linked = self.files.get(entry.linkname.removeprefix("./")) if entry.islnk() else None
                if entry.issparse() or entry.size < 0:
                    raise tarfile.ReadError(f"{name} has holes or no size")
                if not entry.isdir():
                    _check_name(name, path)
                if entry.isreg():
                    self.files[name] = File(
                        plain, entry.size, stamp, offset=entry.offset_data, shown=f"{path}:{name}"
                    )
                elif linked:  # tar keeps one copy of a file that has several names
                    self.files[name] = linked
                elif not entry.isdir():
                    self._add_odd(name, "not a regular file of its archive")
            # A damaged header ends the list of tarfile without a word, as two blocks of zeros do.
            with plain.open("rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"damaged or cut after {format_count(tar.offset, 'byte')}")

    def _unpack(self, path: Path) -> Path:
        """A compressed tar as a plain one, in which members can be found; it may be there already."""
        import gzip
        import shutil

        if self._scratch is None or not path.name.lower().endswith((".tar.gz", ".tgz")):
            raise UserError(f"{path}: archives are read as {', '.join(ARCHIVES)}; unpack it")
        self._scratch.mkdir(parents=True, exist_ok=True)
        plain = self._scratch / f"{path.name}-{path.stat().st_mtime_ns}.tar"
        if not plain.exists():
            part = plain.with_suffix(".part")
            with gzip.open(path, "rb") as packed, part.open("wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
            part.rename(plain)
        return plain


def read_lines(file: File) -> list[str]:
    """The lines of a text file, stripped, without empty ones. Raises UserError unless it is UTF-8."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    # Not splitlines, which splits at form feeds and other characters within a name.
    return [line.strip() for line in re.split("\r\n|\r|\n", text) if line.strip()]


def regular_file(path: Path) -> File:
    """A file that people name, such as a table. Raises UserError unless it is a regular file."""
    try:
        info = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path}: not a regular file")
    return File(path, info.st_size, info.st_mtime_ns)


def _check_name(name: str, place: Path) -> None:
    if not name.isprintable():  # bytes that are not UTF-8 arrive as unprintable surrogates
        raise UserError(f"{place}: the file name {name!r} is not printable UTF-8; rename it")


def _is_loop(root: Path, within: Path) -> bool:
    """Whether root/within is a link to a folder on the way to it, from the file system's root on."""
    if not (root / within).is_symlink():
        return False
    above = {Path(os.path.realpath(root / folder)) for folder in within.parents}
    above |= set(Path(os.path.realpath(root)).parents)
    return Path(os.path.realpath(root / within)) in above


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")


@lru_cache(maxsize=8)
def _open_zip(path: Path, stamp: int) -> zipfile.ZipFile:
    """Open once a process: the directory of an archive of 118,000 images takes a second to read.

    `stamp`, here and below, is of the file that is meant: another one may have the same name by now.
    """
    return zipfile.ZipFile(path)


@lru_cache(maxsize=8)
def _open_span(path: Path, stamp: int) -> int:
    return os.open(path, os.O_RDONLY)


@lru_cache(maxsize=4)
def _open_row_group(path: Path, stamp: int, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        return parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
