"""Read the images that callers hand over, in the form that the predictor takes.

Text is never a path: it may come from a stranger over HTTP, who must not read this machine's files.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encsearch.data.codec import decode_image
from encsearch.errors import UserError
from encsearch.inference.predictor import read_image

COLUMN = "image"


def read_pictures(given: Any) -> list[NDArray[np.uint8]]:
    """Read one or several images as pixels (H, W, 3) uint8.

    An image is an array (H, W, 3) uint8, a PNG or JPEG file's bytes, such bytes as base64 text, or a
    `pathlib.Path`. Several are an array (B, H, W, 3), a list or an object array of images, and either may be
    the value of "image" in a mapping. Raises UserError for anything else.
    """
    if isinstance(given, Mapping):
        if COLUMN not in given:
            raise UserError(f"no {COLUMN!r} among {', '.join(map(str, given)) or 'nothing'}")
        return read_pictures(given[COLUMN])
    if isinstance(given, np.ndarray) and given.dtype.kind in "OSU":  # objects, bytes or text
        return _read_all(given.ravel().tolist())
    if isinstance(given, np.ndarray) and given.ndim == 4:
        return list(given)
    if isinstance(given, list | tuple):
        return _read_all(given)
    return [_read_picture(given)]


def base64_bytes(text: str, where: str) -> bytes:
    """Decode base64. Raises UserError, which begins with `where`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where}: not base64; encode the bytes of a PNG or JPEG file") from None


def _read_all(values: Iterable[Any]) -> list[NDArray[np.uint8]]:
    return [_read_picture(value, f"image {number}") for number, value in enumerate(values)]


def _read_picture(value: Any, where: str = "image 0") -> NDArray[np.uint8]:
    if isinstance(value, np.ndarray) and value.ndim == 0:  # MLflow's server wraps each item of "instances"
        return _read_picture(value.item(), where)
    if isinstance(value, np.ndarray):
        return value  # the predictor judges shape and type
    if isinstance(value, Path):
        return read_image(value)
    if isinstance(value, str):
        return decode_image(base64_bytes(value, where), where)
    if isinstance(value, bytes):
        return decode_image(value, where)
    raise UserError(
        f"{where}: a {type(value).__name__} is no image; give (H, W, 3) uint8, the bytes of a PNG or JPEG, "
        "these as base64 text, or a pathlib.Path"
    )
