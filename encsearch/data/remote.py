"""A store in object storage: its files come to this machine's cache when they are first needed.

An address is a URI that `pyarrow.fs` knows, such as s3://bucket/folder. Credentials and region are looked for
as AWS's tools do; AWS_ENDPOINT_URL, or `?endpoint_override=HOST:PORT&scheme=http`, names another server.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from encsearch.data.manifest import MANIFEST_FILE, Shard, StoreError
from encsearch.errors import UserError, one_line
from encsearch.files import beside, hold_lock, sha256, sync, user_cache
from encsearch.text import format_bytes

_BLOCK_BYTES = 2**22
_OTHER_PROCESS_S = 3600.0  # how long another process may take to fetch a shard


def is_remote(address: str | Path) -> bool:
    return "://" in str(address)


def fetch_manifest(address: str) -> Path:
    """The folder of this machine that holds what is fetched of a store, with its manifest of now.

    Raises StoreError when the storage cannot be reached or has no manifest there.
    """
    try:
        filesystem, base = fs.FileSystem.from_uri(address)
        with filesystem.open_input_stream(f"{base}/{MANIFEST_FILE}") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise StoreError(f"{address}: no store there, it has no {MANIFEST_FILE}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{address}: cannot be read ({one_line(error)})") from None
    folder = user_cache() / "stores" / hashlib.sha256(content).hexdigest()[:16]  # other data, other folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with beside(folder / MANIFEST_FILE) as scratch:
            scratch.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None
    return folder


def check_local(store: str | Path) -> None:
    """Raise UserError for a URI, which `Path` takes for a folder called s3:, as the place of a new store."""
    if re.match(r"[a-z][a-z0-9+]*:/", str(store)):
        raise UserError(f"{store}: a store is written to a folder; copy it to object storage from there")


def fetch_shards(address: str, folder: Path, shards: Iterable[Shard], *, verify: bool) -> None:
    """Fetch the shards that are not in `folder` yet, one process at a time; `verify`: or that are damaged.

    Raises StoreError.
    """
    for shard in shards:
        file = folder / shard.file
        with hold_lock(folder / f".{shard.file}.lock", _OTHER_PROCESS_S) as is_held:
            if not is_held:
                raise StoreError(f"{file}: another process has been fetching it for an hour; stop it")
            is_there = file.exists() and file.stat().st_size == shard.bytes
            if not is_there or (verify and sha256(file) != shard.sha256):
                _fetch(address, file, shard)


def _fetch(address: str, file: Path, shard: Shard) -> None:
    try:
        free = shutil.disk_usage(file.parent).free
        if free < 2 * shard.bytes:  # the shard, and its copy for random access
            raise StoreError(
                f"{file.parent}: {format_bytes(free)} free, but a shard of {address} needs twice "
                f"{format_bytes(shard.bytes)}; make room, or set XDG_CACHE_HOME"
            )
        filesystem, base = fs.FileSystem.from_uri(address)
        with (
            beside(file) as scratch,
            filesystem.open_input_stream(f"{base}/{shard.file}") as stream,
        ):
            with scratch.open("wb") as out:
                while block := stream.read(_BLOCK_BYTES):
                    out.write(block)
            if sha256(scratch) != shard.sha256:
                raise StoreError(f"{address}/{shard.file}: not the shard of the manifest; store it again")
            sync(scratch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{address}/{shard.file}: cannot be fetched ({one_line(error)})") from None
