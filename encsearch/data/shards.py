"""The files of a store: Parquet shards with checksums, and the Arrow cache for random access.

Parquet is the source of truth, with a checksum on every page; its row groups decode too slowly for random
access (0.4 to 0.9 of the speed of plain decoding), so each shard is copied once to an Arrow IPC file, which
is memory-mapped: all workers of a machine share its pages. Neither format detects a flipped byte by default,
so a shard is hashed before it is copied, and every row of the cache is hashed when it is read.
"""

import bisect
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encsearch.data.datasets import IGNORE, DatasetInfo
from encsearch.data.manifest import VERSION, Shard, StoreError
from encsearch.data.rows import StoreRow, encoded_sha256
from encsearch.errors import one_line
from encsearch.files import beside, sha256, sync, user_cache
from encsearch.text import format_bytes, format_count, format_list

ROW_GROUP_BYTES = 8 * 2**20

_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # HuggingFace's form of an image column
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", _FILE),
        ("mask", _FILE),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("presence", pa.list_(pa.bool_())),  # by class: does any pixel have it
        ("histogram", pa.list_(pa.int64())),  # by class: pixels; the rest of height x width is ignored
        ("group", pa.string()),
        ("sha256", pa.struct([("encoded", pa.string()), ("image", pa.string()), ("mask", pa.string())])),
    ]
)
_CACHE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image.bytes", pa.binary()),
        ("mask.bytes", pa.binary()),
        ("sha256.encoded", pa.string()),
    ]
)
_SHARD = b"shard"  # key in the metadata of a copy: the SHA-256 of the shard that it is of


@dataclass(frozen=True)
class CachedRow:
    """The encoded files of one sample."""

    id: str
    image: bytes
    mask: bytes


class ShardWriter:
    """Writes rows to one Parquet file, a row group at a time; `close` makes it durable."""

    def __init__(self, file: Path, info: DatasetInfo) -> None:
        about = {"version": VERSION, "info": info.to_dict(), "ignore": IGNORE}
        self.file = file
        self.num_bytes = 0
        self._num_rows = 0
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._sink = file.open("wb")
        self._writer = pq.ParquetWriter(
            self._sink,
            _SCHEMA.with_metadata({"encsearch": json.dumps(about)}),
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )

    def write(self, row: StoreRow) -> None:
        self._pending.append(_to_columns(row))
        self._pending_bytes += len(row.image) + len(row.mask)
        self.num_bytes += len(row.image) + len(row.mask)
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def close(self) -> Shard:
        if self._pending:
            self._write_row_group()
        self._writer.close()
        self._sink.close()
        sync(self.file)
        size = self.file.stat().st_size
        return Shard(self.file.name, sha256(self.file), size, self._num_rows, _footer_sha256(self.file))

    def abort(self) -> None:
        """Close the file, which is about to be deleted; the original error is already on its way."""
        with suppress(OSError, ValueError):
            self._writer.close()
        self._sink.close()

    def _write_row_group(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._writer.schema))
        self._num_rows += len(self._pending)
        self._pending, self._pending_bytes = [], 0


def read_rows(store: Path, shard: Shard) -> Iterator[StoreRow]:
    """Every row of a shard in order. Raises StoreError, also if the SHA-256 differs from the manifest's."""
    _check_shard(store, shard)
    for batch in _read_columns(store, shard, _SCHEMA.names):
        for columns in batch.to_pylist():
            yield _from_columns(columns)


@dataclass(frozen=True)
class Facts:
    """What the columns of N samples say without decoding.

    `sizes` (N, 2) are height and width, `histogram` (N, num_classes) pixels, both int64.
    """

    ids: list[str]
    sizes: NDArray[np.int64]
    histogram: NDArray[np.int64]
    groups: list[str]
    image_sha256: list[str]


def read_facts(store: Path, shard: Shard) -> Iterator[Facts]:
    """The facts of a shard, a row group at a time. Raises StoreError.

    Only these columns are read, a hundredth of the file, and verified by the checksums of their pages.
    """
    _check_size(store, shard)
    if not shard.footer_sha256:
        _check_shard(store, shard)
    elif _footer_sha256(store / shard.file) != shard.footer_sha256:
        raise StoreError(f"{store / shard.file}: damaged, its footer is not the manifest's; restore the file")
    for batch in _read_columns(store, shard, ["id", "height", "width", "histogram", "group", "sha256"]):
        histogram = batch.column("histogram").flatten().to_numpy(zero_copy_only=False)
        yield Facts(
            ids=batch.column("id").to_pylist(),
            sizes=np.stack(
                [batch.column(name).to_numpy().astype(np.int64) for name in ("height", "width")], axis=1
            ),
            histogram=histogram.reshape(batch.num_rows, -1).astype(np.int64),
            groups=batch.column("group").to_pylist(),
            image_sha256=batch.column("sha256").field("image").to_pylist(),
        )


class RowCache:
    """Random access to the rows of several shards through their Arrow copies; thread-safe."""

    def __init__(self, store: Path, shards: tuple[Shard, ...]) -> None:
        self._store, self._shards = store, shards
        self._columns: list[list[Any]] = []  # of each batch
        self._starts: list[int] = []
        self._num_rows = 0
        for shard in shards:
            _check_size(store, shard)
            for batch in _cached_batches(store, shard):
                self._columns.append(batch.columns)
                self._starts.append(self._num_rows)
                self._num_rows += batch.num_rows

    def __reduce__(self) -> tuple[type["RowCache"], tuple[Path, tuple[Shard, ...]]]:
        """For another process, which maps the same files; otherwise all rows would be sent."""
        return RowCache, (self._store, self._shards)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> CachedRow:
        """Raises StoreError when the row differs in any byte from the row that was written."""
        number = bisect.bisect_right(self._starts, index) - 1
        offset = index - self._starts[number]
        sample_id, image, mask, sha256 = (column[offset].as_py() for column in self._columns[number])
        parts = (sample_id, image, mask)
        if None in parts or encoded_sha256(*parts) != sha256:
            folders = format_list([str(folder) for folder in _cache_folders(self._store)], "or")
            raise StoreError(f"row {index} is damaged in the cache; delete {folders}, they are rebuilt")
        return CachedRow(sample_id, image, mask)


def _to_columns(row: StoreRow) -> dict[str, Any]:
    image_suffix = "png" if row.image.startswith(b"\x89PNG") else "jpg"
    return {
        "id": row.id,
        "image": {"bytes": row.image, "path": f"{row.id}.{image_suffix}"},
        "mask": {"bytes": row.mask, "path": f"{row.id}.png"},
        "height": row.height,
        "width": row.width,
        "presence": [count > 0 for count in row.histogram],
        "histogram": list(row.histogram),
        "group": row.group,
        "sha256": {"encoded": row.encoded_sha256, "image": row.image_sha256, "mask": row.mask_sha256},
    }


def _from_columns(columns: dict[str, Any]) -> StoreRow:
    return StoreRow(
        id=columns["id"],
        image=columns["image"]["bytes"],
        mask=columns["mask"]["bytes"],
        height=columns["height"],
        width=columns["width"],
        histogram=tuple(columns["histogram"]),
        group=columns["group"],
        encoded_sha256=columns["sha256"]["encoded"],
        image_sha256=columns["sha256"]["image"],
        mask_sha256=columns["sha256"]["mask"],
    )


def _read_columns(store: Path, shard: Shard, columns: list[str]) -> Iterator[Any]:
    """One record batch per row group; the checksums of the pages are verified."""
    try:
        with pq.ParquetFile(store / shard.file, page_checksum_verification=True) as parquet:
            for number in range(parquet.num_row_groups):
                yield from parquet.read_row_group(number, columns=columns, use_threads=False).to_batches()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{store / shard.file}: damaged ({one_line(error)}); import it again") from None


def _footer_sha256(file: Path) -> str:
    """Of the end of a Parquet file, where its metadata are; their length stands 8 bytes before the end."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(size - 8, 0))
        length = int.from_bytes(content.read(4), "little")
        content.seek(max(size - 8 - length, 0))
        return hashlib.sha256(content.read()).hexdigest()


def _check_shard(store: Path, shard: Shard) -> None:
    """Raises StoreError when the file does not match the manifest."""
    _check_size(store, shard)
    found = sha256(store / shard.file)
    if found != shard.sha256:
        raise StoreError(
            f"{store / shard.file}: damaged, its sha256 is {found[:12]}... but the manifest says "
            f"{shard.sha256[:12]}...; restore the file or import the data again"
        )


def _check_size(store: Path, shard: Shard) -> None:
    try:
        size = (store / shard.file).stat().st_size
    except OSError as error:
        raise StoreError(f"{store / shard.file}: cannot be read ({error.strerror}); restore it") from None
    if size != shard.bytes:
        raise StoreError(
            f"{store / shard.file}: damaged, {format_count(size, 'byte')} but the manifest says "
            f"{format_count(shard.bytes)}; restore the file or import the data again"
        )


def _cached_batches(store: Path, shard: Shard) -> list[Any]:
    """The memory-mapped record batches of a shard; the Arrow copy is made first if there is none."""
    name = f"{shard.sha256}.arrow"
    folders = _cache_folders(store)
    file = next((folder / name for folder in folders if _may_be_read(folder / name)), None)
    if file is None:
        file = _first_writable(folders) / name
        _copy_shard(store, shard, file)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # a flipped offset would read outside the file
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{file}: damaged ({one_line(error)}); delete it, it is rebuilt") from None
    is_of_shard = (reader.schema.metadata or {}).get(_SHARD) == shard.sha256.encode()
    num_rows = sum(batch.num_rows for batch in batches)
    if reader.schema != _CACHE_SCHEMA or not is_of_shard or num_rows != shard.num_samples:
        raise StoreError(f"{file}: damaged, not the rows of {shard.file}; delete it, it is rebuilt")
    return batches


def _may_be_read(file: Path) -> bool:
    """Whether there is a copy; one of a version that did not note its shard is made again."""
    if not file.is_file():
        return False
    try:
        with pa.OSFile(str(file)) as source:
            return pa.ipc.open_file(source).schema.metadata is not None
    except (OSError, pa.ArrowException):
        return True  # damaged, as its reader says


def build_cache(store: Path, shard: Shard) -> None:
    """Make the Arrow copy of a shard in its store, which its first reader would make. Raises StoreError."""
    folder = _cache_folders(store)[0]
    folder.mkdir(exist_ok=True)
    _copy_shard(store, shard, folder / f"{shard.sha256}.arrow")


def shard_files(shard: Shard) -> tuple[str, str]:
    """The shard and its Arrow copy, relative to the store."""
    return shard.file, f".cache/{shard.sha256}.arrow"


def _copy_shard(store: Path, shard: Shard, file: Path) -> None:
    """Copy a verified shard. Two processes may do so at once, since each writes and renames its own file."""
    try:
        with beside(file) as scratch:
            schema = _CACHE_SCHEMA.with_metadata({_SHARD: shard.sha256})
            with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                _check_shard(store, shard)
                for batch in _read_columns(store, shard, _CACHE_SCHEMA.names):
                    table = pa.Table.from_batches([batch]).flatten()
                    writer.write_table(table.select(_CACHE_SCHEMA.names).cast(schema))
            sync(scratch)
    except OSError as error:
        raise StoreError(
            f"{file.parent}: cannot write a cache of {format_bytes(shard.bytes)} ({one_line(error)}); make "
            "room"
        ) from None


def _cache_folders(store: Path) -> tuple[Path, Path]:
    """`.cache` in the store and, for a read-only store, the user's cache folder, shared by all stores."""
    return store / ".cache", user_cache()


def _first_writable(folders: tuple[Path, Path]) -> Path:
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise StoreError(
        f"cannot write {folders[0]} or {folders[1]}; set XDG_CACHE_HOME to a folder you can write"
    )
