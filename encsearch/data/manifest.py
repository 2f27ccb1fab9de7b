"""The manifest of a store: its content and the hashes that verify it."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from encsearch.data.datasets import DatasetInfo
from encsearch.errors import UserError

VERSION = 1
MANIFEST_FILE = "manifest.json"


class StoreError(UserError):
    """The store is missing, damaged, of another version, or has no such split."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file, named relative to the store.

    `footer_sha256` is of its footer alone, "" in stores of before: the pages have checksums of their own, so
    some columns can be read without the whole file.
    """

    file: str
    sha256: str
    bytes: int
    num_samples: int
    footer_sha256: str = ""


@dataclass(frozen=True)
class SplitManifest:
    """The shards of a split in order, and `digest`, a SHA-256 of its samples' ids, pixels and masks."""

    num_samples: int
    digest: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Origin:
    """Where a store is from: the importer (or a data set of one's own), the licence, what the import said.

    `quarantine` names each sample that was skipped, with the reason.
    """

    importer: str
    licence: str = ""
    lines: tuple[str, ...] = ()
    quarantine: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a store without opening a shard; `origin` None: it was generated."""

    version: int
    info: DatasetInfo
    fingerprint: str
    splits: Mapping[str, SplitManifest]
    origin: Origin | None = None

    def split(self, name: str) -> SplitManifest:
        """The split `name`. Raises StoreError, listing the splits that exist, if there is none."""
        if name not in self.splits:
            raise StoreError(f"split {name!r} is not in the store; it has {', '.join(self.splits)}")
        return self.splits[name]


def content_fingerprint(info: DatasetInfo, digests: Mapping[str, str]) -> str:
    """SHA-256 of the classes and of every split's digest.

    It identifies the content, not the files: the same samples written with other shard sizes or another
    Parquet library have the same fingerprint.
    """
    content = {"info": info.to_dict(), "splits": dict(digests)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """Read and verify the manifest of the store at `path`. Raises StoreError."""
    store = Path(path)
    file = store / MANIFEST_FILE
    try:
        if not store.is_dir():
            beside = {path.parent.name: str(path.parent) for path in store.parent.glob(f"*/{MANIFEST_FILE}")}
            near = difflib.get_close_matches(store.name, beside, n=1)
            hint = f"did you mean {beside[near[0]]}? Or make" if near else "make"
            raise StoreError(
                f"{store}: no such store; {hint} one with `encsearch data import` or `data scenes`"
            )
        if file.exists() and not file.is_file():
            raise StoreError(f"{file}: not a regular file; import the data again")
        values = json.loads(file.read_bytes())
        version = values["version"]
    except FileNotFoundError:
        raise StoreError(f"{store}: not a store, it has no {MANIFEST_FILE}; import the data again") from None
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreError(f"{file}: damaged, not a manifest; import the data again") from None
    if version != VERSION:
        raise StoreError(
            f"{store}: the store has version {version}, but this program reads version {VERSION}; "
            "import the data again"
        )
    try:
        manifest = _parse_manifest(values)
    except (ValueError, KeyError, TypeError, AttributeError, UserError):
        raise StoreError(f"{file}: damaged, not a manifest; import the data again") from None
    digests = {name: split.digest for name, split in manifest.splits.items()}
    if content_fingerprint(manifest.info, digests) != manifest.fingerprint:
        raise StoreError(f"{file}: damaged, its fingerprint does not match; import the data again")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    values = asdict(manifest) | {"info": manifest.info.to_dict()}
    return json.dumps(values, indent=1) + "\n"


def _parse_manifest(values: Mapping[str, Any]) -> Manifest:
    json.dumps(values, ensure_ascii=False).encode()  # raises ValueError for half a character
    splits = {
        name: SplitManifest(
            num_samples=_count(split["num_samples"]),
            digest=str(split["digest"]),
            shards=tuple(_parse_shard(shard) for shard in split["shards"]),
        )
        for name, split in values["splits"].items()
    }
    for name, split in splits.items():
        if sum(shard.num_samples for shard in split.shards) != split.num_samples:
            raise ValueError(f"{name} has not as many samples as its shards")
    info, origin = DatasetInfo.from_dict(values["info"]), values.get("origin")
    return Manifest(
        values["version"], info, values["fingerprint"], splits, _parse_origin(origin) if origin else None
    )


def _count(value: Any) -> int:
    """Raises ValueError unless it is a whole number from 0 on, as sizes and counts are."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is not a count")
    return value


def _parse_origin(values: Mapping[str, Any]) -> Origin:
    return Origin(
        str(values["importer"]),
        str(values["licence"]),
        tuple(map(str, values["lines"])),
        tuple(map(str, values["quarantine"])),
    )


def _parse_shard(values: Mapping[str, Any]) -> Shard:
    """Raises ValueError for a name or hash that would lead out of the store or its cache."""
    shard = Shard(**values)
    if min(_count(shard.bytes), _count(shard.num_samples)) < 1:
        raise ValueError(f"{shard.file} is empty")
    if Path(shard.file).name != shard.file or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise ValueError(f"{shard.file}, {shard.sha256}")
    return shard
