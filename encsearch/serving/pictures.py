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

from encsearch.data.codec import decode_image, image_size
from encsearch.errors import UserError
from encsearch.inference.predictor import read_image
from encsearch.text import format_bytes, format_count

COLUMN = "image"

MAX_SCANS = 200
"""Of a JPEG; cameras and browsers know about ten. A file of 0.4 MB can have 10,000, and libjpeg goes over all
pixels for each: 55 s for 4 million."""

_PNG, _JPEG, _JPEG_SCAN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xda"


def read_pictures(given: Any, max_text_pixels: int | None = None) -> list[NDArray[np.uint8]]:
    """Read one or several images as pixels (H, W, 3) uint8.

    An image is an array (H, W, 3) uint8, a PNG or JPEG file's bytes, such bytes as base64 text, or a
    `pathlib.Path`. Several are an array (B, H, W, 3), a list or an object array of images, and either may be
    the value of "image" in a mapping. Raises UserError for anything else, and for text whose images have more
    than `max_text_pixels` together, by their headers; other images are the caller's own.
    """
    if isinstance(given, Mapping):
        if COLUMN not in given:
            raise UserError(f"no {COLUMN!r} among {', '.join(map(str, given)) or 'nothing'}")
        return read_pictures(given[COLUMN], max_text_pixels)
    if isinstance(given, np.ndarray) and given.dtype.kind in "OSU":  # objects, bytes or text
        return _read_all(given.ravel().tolist(), max_text_pixels)
    if isinstance(given, np.ndarray) and given.ndim == 4:
        return list(given)
    if isinstance(given, list | tuple):
        return _read_all(given, max_text_pixels)
    return _read_all([given], max_text_pixels)


def count_pixels(data: bytes, where: str) -> int:
    """The number of pixels of a stranger's PNG or JPEG, by its header: nothing is decoded.

    Raises UserError, which begins with `where`, for another file and for what would take long to decode.
    """
    if not data.startswith((_PNG, _JPEG)):
        raise UserError(f"{where}: not a readable image ({format_bytes(len(data))}); formats: PNG, JPEG")
    # In the data of a scan these two bytes do not occur; in metadata they are rare.
    if data.startswith(_JPEG) and data.count(_JPEG_SCAN) > MAX_SCANS:
        raise UserError(f"{where}: a JPEG of over {MAX_SCANS} scans; save it anew")
    height, width = image_size(data, where)
    return height * width


def base64_bytes(text: str, where: str) -> bytes:
    """Decode base64. Raises UserError, which begins with `where`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where}: not base64; encode the bytes of a PNG or JPEG file") from None


def _read_all(values: Iterable[Any], max_text_pixels: int | None) -> list[NDArray[np.uint8]]:
    pictures, text_pixels = [], 0
    for number, value in enumerate(values):
        where = f"image {number}"
        if (
            isinstance(value, np.ndarray) and value.ndim == 0
        ):  # MLflow's server wraps each item of "instances"
            value = value.item()
        if isinstance(value, str):
            value = base64_bytes(value, where)
            text_pixels += count_pixels(value, where)
            if max_text_pixels is not None and text_pixels > max_text_pixels:
                given, allowed = format_count(text_pixels, "pixel"), format_count(max_text_pixels)
                raise UserError(
                    f"{where}: {given} up to here in one request, but {allowed} are allowed; send fewer or "
                    "smaller ones"
                )
        pictures.append((value, where))
    return [_read_picture(value, where) for value, where in pictures]


def _read_picture(value: Any, where: str) -> NDArray[np.uint8]:
    if isinstance(value, np.ndarray):
        return value  # the predictor judges shape and type
    if isinstance(value, Path):
        return read_image(value)
    if isinstance(value, bytes):
        return decode_image(value, where)
    raise UserError(
        f"{where}: a {type(value).__name__} is no image; give (H, W, 3) uint8, the bytes of a PNG or JPEG, "
        "these as base64 text, or a pathlib.Path"
    )
