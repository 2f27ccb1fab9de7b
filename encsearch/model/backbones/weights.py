"""Weights of a backbone: published files in their cache, and state dicts from any file, never unpickled."""

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encsearch.errors import PreflightError, UserError, first_line

# The downloads have no time limit for a silent server, so one request with a limit comes first.
REPLY_TIMEOUT_S = 10
LFS_POINTER = b"version https://git-lfs"

# Errors that torch.load (2.15, weights_only) raises for junk, found with random and mutated files.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    struct.error,
    SafetensorError,
)


def find_published_file(url: str) -> Path:
    """The file of that name in torch's cache, downloaded if it is not there, as torchvision does it.

    The name ends with the start of the content's SHA-256, which a download must have. Raises PreflightError
    if the file is neither there nor available.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if path.is_file():
        return path
    check_reply(url, path.name, path.parent)
    sha256_start = path.stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256_start)
    except (OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise unreachable_error(path.name, path.parent, url, error) from None
    return path


def check_reply(url: str, name: str, folder: Path) -> None:
    """Raises PreflightError if no server answers for `url`; any answer will do, whether yes or no."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=REPLY_TIMEOUT_S).close()
    except HTTPError:
        return
    except OSError as error:
        raise unreachable_error(name, folder, url, error) from None


def unreachable_error(name: str, folder: Path, url: str, error: Exception) -> PreflightError:
    """The error for published weights that are neither in their cache nor available."""
    cause = error.reason if isinstance(error, URLError) else error
    reason = first_line(cause)
    return PreflightError(
        f"model.weights=imagenet: {name} is not in {folder}, and {url} cannot be read ({reason}); "
        "download it elsewhere and give model.weights=FILE"
    )


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of any other that `torch.save` wrote.

    A checkpoint of a training may hold them under "state_dict", and DataParallel puts "module." before every
    name; both are taken off. Raises UserError for a file that is damaged or that holds anything else.
    """
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        if is_pointer:
            raise UserError(f"{path}: a pointer of Git LFS, not the weights; fetch them by `git lfs pull`")
        if path.suffix == ".safetensors":
            return _check_finite(load_file(path), path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # PyTorch's own message is hidden, since it advises to unpickle the file all the same.
        raise UserError(
            f"{path}: cannot be read as weights (damaged, or more than tensors); save a plain state dict"
        ) from None
    except _DAMAGE as error:
        reason = first_line(error)
        raise UserError(f"{path}: cannot be read as weights ({reason}); save a plain state dict") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path}: holds more than tensors by name; save the state dict alone")
    odd = [key for key, value in state.items() if not _is_plain(value)]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} tensors are sparse, quantized, complex or without data, {odd[0]} the first; "
            "save dense ones"
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return _check_finite(state, path)


def select_fitting(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    owner: str,
    path: Path,
    classifiers: Iterable[str] = (),
) -> dict[str, Tensor]:
    """The tensors of `found` without those of the classifiers, which may be absent or of any shape.

    `owner` is whose state dict the file must hold. Raises UserError if what remains is not `wanted`.
    """
    prefixes = tuple(f"{name}." for name in classifiers)
    found = {key: value for key, value in found.items() if not key.startswith(prefixes)}
    # Files written before PyTorch 0.4.1 lack the BN counters, which nothing here reads.
    needed = [
        key for key in wanted if not key.endswith("num_batches_tracked") and not key.startswith(prefixes)
    ]
    missing = [key for key in needed if key not in found]
    unknown = [key for key in found if key not in wanted]
    misshapen = [key for key in needed if key in found and wanted[key].shape != found[key].shape]
    for problem, keys in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen)):
        if keys:
            raise UserError(
                f"{path}: not the state dict of {owner}: {len(keys)} keys {problem}, {keys[0]} the first"
            )
    return found


def _check_finite(state: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    odd = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} of {len(state)} tensors hold NaN or infinity, {odd[0]} the first; save "
            "weights from before the training diverged"
        )
    return state


def _is_plain(tensor: Tensor) -> bool:
    other = tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    return tensor.layout == torch.strided and not other
