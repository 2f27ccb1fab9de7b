"""The store: a folder of Parquet shards and a manifest that is written last.

store/
  manifest.json          classes, splits, and a SHA-256 of every shard
  train-00000.parquet    id, image, mask, height, width, presence, histogram, group, sha256
  val-00000.parquet
  .cache/                Arrow copies for random access; may be deleted
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from encsearch.data.codec import decode_image, decode_mask
from encsearch.data.datasets import DatasetInfo, EncodedSample, Sample
from encsearch.data.manifest import (
    MANIFEST_FILE,
    VERSION,
    Manifest,
    Origin,
    Shard,
    SplitManifest,
    StoreError,
    content_fingerprint,
    manifest_json,
    read_manifest,
)
from encsearch.data.remote import check_local, fetch_manifest, fetch_shards, is_remote
from encsearch.data.rows import check_split_name, content_line, make_row
from encsearch.data.shards import RowCache, ShardWriter
from encsearch.data.statistics import (
    SplitStats,
    find_leaks,
    find_rare,
    median_frequency_weights,
    split_stats,
)
from encsearch.errors import UserError
from encsearch.files import beside, check_free, sync


def write_store(
    path: str | Path,
    info: DatasetInfo,
    splits: Mapping[str, Iterable[EncodedSample]],
    *,
    origin: Origin | None = None,
    shard_bytes: int = 128 * 2**20,
) -> Manifest:
    """Write a whole store or nothing: it is built beside `path` and renamed when it is complete.

    Samples are taken one at a time and kept in their order; memory holds one row group of 8 MB. Every
    sample is decoded. Raises UserError when `path` is in use, and for a sample that is damaged, whose image
    and mask differ in size, whose mask holds a value that is not a class, or whose id is taken in its split;
    errors of the iterables pass through.
    """
    store = Path(path)
    check_local(store)
    try:
        check_free(store)
        with beside(store) as building:
            building.mkdir(parents=True)
            written = {
                name: _write_split(building, name, info, samples, shard_bytes)
                for name, samples in splits.items()
            }
            digests = {name: split.digest for name, split in written.items()}
            manifest = Manifest(VERSION, info, content_fingerprint(info, digests), written, origin)
            (building / MANIFEST_FILE).write_text(manifest_json(manifest), encoding="utf-8")
            sync(building / MANIFEST_FILE, building)
            check_free(store)
        sync(store.absolute().parent)
    except OSError as error:
        raise UserError(f"{store}: cannot write the store ({error}); nothing was left behind") from error
    return manifest


class Store:
    """A store, opened once per job and passed on; splits and statistics that were read are kept.

    `address` is what another process opens it by, `path` the local folder. It does not notice when the data
    is replaced: code that must notice opens the store again and compares the fingerprints.
    """

    def __init__(self, path: str | Path) -> None:
        """Read only the manifest. Raises StoreError if it is missing, damaged or of another version.

        `path` is a folder, or a URI of object storage, of which the splits in use come to a local cache.
        """
        self.address = str(path) if is_remote(path) else str(Path(path).absolute())
        self.path = fetch_manifest(self.address) if is_remote(path) else Path(path)
        self.manifest = read_manifest(self.path)
        self.info, self.fingerprint = self.manifest.info, self.manifest.fingerprint
        self._splits: dict[str, StoreSplit] = {}
        self._stats: dict[str, SplitStats] = {}

    def split(self, name: str) -> "StoreSplit":
        """One split for random access. The first process to open it verifies its shards and fills the cache.

        Raises StoreError for a split that is missing or damaged.
        """
        if name not in self._splits:
            shards = self.fetch(name)
            try:
                rows = RowCache(self.path, shards)
            except StoreError:
                if not is_remote(self.address):
                    raise
                rows = RowCache(self.path, self.fetch(name, verify=True))
            self._splits[name] = StoreSplit(self.manifest, rows)
        return self._splits[name]

    def fetch(self, split: str, *, verify: bool = False) -> tuple[Shard, ...]:
        """The shards of a split, which are local files afterwards; `verify` fetches damaged ones again.

        Raises StoreError.
        """
        shards = self.manifest.split(split).shards
        if is_remote(self.address):
            fetch_shards(self.address, self.path, shards, verify=verify)
        return shards

    def stats(self, split: str) -> SplitStats:
        """The classes and sizes of a split. Raises StoreError."""
        if split not in self._stats:
            self.fetch(split)
            self._stats[split] = split_stats(self.path, self.manifest, split)
        return self._stats[split]

    def leaks(self) -> list[str]:
        """What two splits share, a line each. Raises StoreError."""
        for split in self.manifest.splits:
            self.fetch(split)
        return find_leaks(self.path, self.manifest)

    def rare(self, split: str, count: int) -> list[int]:
        """Indices of the samples with most of the rarest classes of a split. Raises StoreError."""
        self.fetch(split)
        return find_rare(self.path, self.manifest, split, count)

    def median_frequency_weights(self, split: str) -> tuple[float, ...]:
        """Weights that balance the classes of a split; see `statistics`. Raises StoreError and UserError."""
        self.fetch(split)
        return median_frequency_weights(self.path, self.manifest, split)


class StoreSplit:
    """A SegmentationDataset in memory-mapped files; safe to read from several threads."""

    def __init__(self, manifest: Manifest, rows: RowCache) -> None:
        self.info = manifest.info
        self.fingerprint = manifest.fingerprint
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        """The samples' ids, in order; no image is decoded."""
        return [self._rows[index].id for index in range(len(self))]

    def __getitem__(self, index: int) -> Sample:
        """Raises StoreError when the cache has been damaged since it was written."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = self._rows[index]
        return Sample(row.id, decode_image(row.image, row.id), decode_mask(row.mask, row.id))


def _write_split(
    folder: Path, name: str, info: DatasetInfo, samples: Iterable[EncodedSample], shard_bytes: int
) -> SplitManifest:
    check_split_name(name)
    shards: list[Shard] = []
    ids: set[str] = set()
    digest = hashlib.sha256()
    with ExitStack() as files:
        writer: ShardWriter | None = None
        for sample in samples:
            where = f"{name}/{sample.id}"
            if sample.id in ids:
                raise UserError(f"{where}: the id is in the split twice; ids must differ")
            ids.add(sample.id)
            row = make_row(sample, len(info.classes), where)
            digest.update(content_line(row))
            if writer is None:
                writer = ShardWriter(folder / f"{name}-{len(shards):05d}.parquet", info)
                files.callback(writer.abort)
            writer.write(row)
            if writer.num_bytes >= shard_bytes:
                shards.append(writer.close())
                writer = None
        if writer:
            shards.append(writer.close())
    if not shards:
        raise UserError(f"split {name} has no samples; leave it out or give it some")
    return SplitManifest(len(ids), digest.hexdigest(), tuple(shards))
