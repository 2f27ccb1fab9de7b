"""Convert PNG and JPEG bytes to arrays and back; any damage is reported in one line.

PIL decodes: on damaged PNGs torchvision 0.29 ends the process, and one bad file must not kill a worker.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from encsearch.errors import UserError
from encsearch.text import format_bytes, format_count

MAX_PIXELS = 2**26
"""Largest image, 8192 x 8192: a file of 0.4 MB can claim 60000 x 60000 and take 10 GB of memory."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF")  # by content: data sets carry GIF and BMP files named .jpg
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_EXIF_ORIENTATION = 0x0112


def decode_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """The pixels of an image file, (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey, palette, CMYK and alpha become RGB (alpha is dropped). Raises UserError, which begins with
    `where`, if it is not an image, is damaged, is larger than MAX_PIXELS, or has more than 8 bits of grey.
    """
    with _open_image(data, where) as image:
        return _to_rgb(image, where)


def canonical_image(data: bytes, where: str) -> bytes:
    """`data` itself if it is a PNG or JPEG in upright RGB, else the same picture as a PNG.

    The picture is decoded in any case, so that damage is found. Raises what `decode_image` raises.
    """
    with _open_image(data, where) as image:
        plain = image.format in {"PNG", "JPEG"} and image.mode == "RGB"
        pixels = _to_rgb(image, where)
        with _report_damage(image, where):
            kept = plain and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
    return data if kept else encode_png(pixels)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of an image file from its header. Raises UserError as `decode_image` does."""
    with _open_image(data, where) as image:
        return image.height, image.width


def decode_mask(data: bytes, where: str) -> NDArray[np.uint8]:
    """The class indices of a mask, (H, W) uint8: an 8-bit grey PNG, or a palette PNG read as its indices.

    Raises UserError, which begins with `where`, for every other kind of file: colours are not indices, and
    PIL stretches grey of 1, 2 or 4 bits to 0..255.
    """
    with _open_image(data, where) as image:
        if image.format != "PNG":
            raise UserError(
                f"{where}: a mask is a PNG, but this is {image.format}; save class indices as an 8-bit PNG"
            )
        bits, colour_type = data[24], data[25]  # of the IHDR chunk, which PIL has found in its place
        palette, grey = colour_type == 3, colour_type == 0
        if not (palette or grey):
            kind = {2: "RGB", 4: "grey with alpha", 6: "RGBA"}[colour_type]
            raise UserError(f"{where}: colours ({kind}) are not class indices; save indices as an 8-bit PNG")
        if grey and bits != 8:
            raise UserError(f"{where}: a {bits}-bit grey mask; save the class indices as an 8-bit grey PNG")
        with _report_damage(image, where):
            return np.asarray(image)


def encode_png(array: NDArray[np.uint8]) -> bytes:
    """A PNG of (H, W, 3) RGB or of (H, W) grey; the same array gives the same pixels back."""
    assert array.dtype == np.uint8, array.dtype
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=6)
    return file.getvalue()


def _open_image(data: bytes, where: str) -> Image.Image:
    """Read only the header of an image, so that its size is checked before any pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{where}: over {format_count(MAX_PIXELS, 'pixel')}; cut it into tiles") from None
    except _DAMAGE:
        raise UserError(
            f"{where}: not a readable image ({format_bytes(len(data))}); formats: PNG, JPEG"
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where}: {width}x{height} is over {format_count(MAX_PIXELS, 'pixel')}; cut it into tiles"
        )
    return image


def _to_rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        raise UserError(f"{where}: a 16-bit grey image; save it with 8 bits, scaled as you see fit")
    with _report_damage(image, where):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _report_damage(image: Image.Image, where: str) -> Iterator[None]:
    """Turn the parser errors that PIL raises, late, for damaged pixels and metadata into UserError."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{where}: damaged {image.format} ({error}); replace the file") from None
