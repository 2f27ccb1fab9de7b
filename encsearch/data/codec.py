"""Convert image files to arrays and back; any damage is reported in one line.

PIL decodes: on damaged PNGs torchvision 0.29 ends the process, and one bad file must not kill a worker. What
PIL does not verify, `png` does.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from encsearch.data.png import check_chunks, check_pixels
from encsearch.errors import UserError, one_line
from encsearch.text import format_bytes, format_count

MAX_PIXELS = 2**26
"""Largest image, 8192 x 8192: a file of 0.4 MB can claim 60000 x 60000 and take 10 GB of memory."""

# PIL warns from 89 million pixels on, which are over MAX_PIXELS and refused in one line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of metadata that it passes over: five lines of a terminal that name no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Of the files of a folder that are taken for images."""

# By content, not by name: data sets carry GIF and BMP files named .jpg.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_EXIF_ORIENTATION = 0x0112
TURNED = "turned by its EXIF orientation"
_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_TIFF_BITS_PER_SAMPLE = 258
# As PIL names them; the others are lossy, or not known to be exact.
_LOSSLESS_TIFF = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "group3", "group4"}
_LOSSLESS_TIFF |= {"tiff_ccitt", "tiff_raw_16", "lzma", "zstd"}


@dataclass(frozen=True)
class RawMask:
    """A mask as somebody saved it: `codes` (H, W) int32 are values, or colours as 0xRRGGBB.

    `form` says how the file held them, such as "palette PNG"; `turned` whether it had an EXIF orientation.
    `palette` has the colours of a palette file.
    """

    codes: NDArray[np.int32]
    form: str
    palette: tuple[tuple[int, int, int], ...] = ()
    turned: bool = False


def decode_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """The pixels of an image file, (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey, palette, CMYK and alpha become RGB (alpha is dropped). Raises UserError, which begins with
    `where`, if it is not an image, is damaged, is larger than MAX_PIXELS, or has more than 8 bits of grey.
    """
    with _open_image(data, where) as image:
        return _to_rgb(image, data, where)


def canonical_image(data: bytes, where: str) -> tuple[bytes, NDArray[np.uint8]]:
    """The file that a store keeps, and its pixels (H, W, 3) uint8 RGB.

    The file is `data` itself if it is a PNG or JPEG in upright RGB, else the same picture as a PNG. Raises
    what `decode_image` raises.
    """
    with _open_image(data, where) as image:
        check_pixels(data, where)
        plain = image.format in {"PNG", "JPEG", "MPO"} and image.mode == "RGB"
        pixels = _to_rgb(image, data, where)
        kept = plain and orientation(image, data, where) == 1
    return (data if kept else encode_png(pixels)), pixels


def image_form(data: bytes, where: str) -> str:
    """What `canonical_image` changes in a file, in words: "turned by its EXIF orientation"; "" for nothing.

    Only the header is read. Raises UserError as `decode_image` does.
    """
    with _open_image(data, where) as image:
        _check_depth(image, where)
        changes = []
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            changes.append("transparency dropped")
        elif image.mode != "RGB":
            kinds = {"L": "grey", "1": "black and white", "P": "palette"}
            changes.append(f"{kinds.get(image.mode, image.mode)} made RGB")
        if orientation(image, data, where) != 1:
            changes.append(TURNED)
    return ", ".join(changes)


def orientation(image: Image.Image, data: bytes, where: str) -> int:
    """The EXIF orientation, 1 = upright. Raises UserError for metadata that cannot be read."""
    # PIL decodes a PNG to look for metadata behind its pixels; most have none.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_METADATA):
        return 1
    if image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}:  # what PIL would look into
        return 1
    with _report_damage(image, where):
        found = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    return found if 2 <= found <= 8 else 1  # some cameras write 0


def decode_raw_mask(data: bytes, where: str, *, colours: bool) -> RawMask:
    """The values of a mask or, with `colours`, its colours; turned as its own EXIF orientation says.

    Values come from grey of 1 to 16 bits, from palette files as their indices, and from RGB whose three
    channels are equal. Raises UserError, which begins with `where`, for a JPEG or a lossy WebP, which smear
    values, for transparent pixels, and for colours where values are asked for.
    """
    with _open_image(data, where) as image:
        check_pixels(data, where)
        bits = _check_lossless(image, data, where)
        turned = orientation(image, data, where) != 1
        with _report_damage(image, where):
            palette = _palette(image)
            pixels = np.asarray(ImageOps.exif_transpose(image))
            mode, kind = image.mode, image.format
            if mode in {"RGBA", "LA", "PA"} or (mode == "RGB" and "transparency" in image.info):
                pixels, mode = _opaque(image, where)
        if colours:
            if mode in {"P", "L"}:
                table = np.array(palette or [(v, v, v) for v in range(256)], np.uint8)
                if pixels.max(initial=0) >= len(table):
                    raise UserError(f"{where}: index {pixels.max()} is not in its palette of {len(table)}")
                pixels, mode = table[pixels], "RGB"
            if mode != "RGB":
                raise UserError(f"{where}: a {mode} {kind} has no colours; leave --colours out")
            return RawMask(_pack(pixels), f"RGB {kind}", palette, turned)
        if mode == "RGB":
            if (pixels != pixels[..., :1]).any():
                found = format_count(len(np.unique(_pack(pixels))), "colour")
                raise UserError(
                    f"{where}: {found}, but colours are not class indices; give --colours TABLE, or save "
                    "indices as an 8-bit PNG"
                )
            return RawMask(pixels[..., 0].astype(np.int32), f"grey as RGB {kind}", (), turned)
        if kind == "PNG" and mode == "L" and bits < 8:
            pixels = pixels // (255 // (2**bits - 1))  # PIL stretches grey of 2 and 4 bits to 0..255
        form = f"palette {kind}" if mode == "P" else f"{bits}-bit grey {kind}"
        return RawMask(pixels.astype(np.int32), form, palette, turned)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of an image file from its header. Raises UserError as `decode_image` does."""
    with _open_image(data, where) as image:
        return image.height, image.width


def upright_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of an image file once it is turned as its EXIF orientation says; no pixel is decoded."""
    with _open_image(data, where) as image:
        on_its_side = orientation(image, data, where) in {5, 6, 7, 8}
        return (image.width, image.height) if on_its_side else (image.height, image.width)


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
    except Exception:  # a damaged file leads its parser anywhere
        raise UserError(
            f"{where}: not a readable image ({format_bytes(len(data))}); formats: {', '.join(_FORMATS)}"
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where}: {width}x{height} is over {format_count(MAX_PIXELS, 'pixel')}; cut it into tiles"
        )
    check_chunks(data, where)
    with _report_damage(image, where):
        # The further pictures of a camera's JPEG are previews, or of another focus.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            frames = format_count(getattr(image, "n_frames", None), "picture")
            raise UserError(f"{where}: {frames} in one {image.format}; save the one that you mean")
    return image


def _check_lossless(image: Image.Image, data: bytes, where: str) -> int:
    """Bits of a grey value or palette index of a mask file. Raises UserError where values are not exact."""
    lossy = image.format in {"JPEG", "MPO"} or (image.format == "WEBP" and b"VP8L" not in data[:4096])
    compression = image.info.get("compression")
    if image.format == "TIFF" and compression not in _LOSSLESS_TIFF:
        raise UserError(
            f"{where}: a TIFF of compression {compression}, which may smear the values of a mask; save masks "
            "as PNG"
        )
    if lossy:
        raise UserError(f"{where}: a lossy {image.format} smears the values of a mask; save masks as PNG")
    if image.mode in {"F", "CMYK", "YCbCr", "LAB", "HSV", "I"} and image.format != "PNG":
        raise UserError(f"{where}: a mask of mode {image.mode}; save the class indices as an 8-bit PNG")
    bits = 16 if image.mode.startswith("I") else 1 if image.mode == "1" else 8
    if image.format == "PNG":
        bits = data[24]  # of the IHDR chunk, which is in its place
        if bits == 16 and not image.mode.startswith("I"):
            raise UserError(f"{where}: colours of 16 bits, which would be cut to 8; save 8 bits a channel")
    elif image.format == "TIFF":
        with _report_damage(image, where):
            found = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))[0]  # type: ignore[attr-defined]
        if found not in {1, 8, 16} or (found == 16 and not image.mode.startswith("I")):
            raise UserError(f"{where}: a TIFF of {found} bits a channel; save the class indices with 8")
    return bits


def _palette(image: Image.Image) -> tuple[tuple[int, int, int], ...]:
    values = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return tuple(zip(values[0::3], values[1::3], values[2::3], strict=True))


def _opaque(image: Image.Image, where: str) -> tuple[NDArray[np.uint8], str]:
    """The pixels without their alpha, and their mode. Raises UserError if one is transparent."""
    grey = image.mode == "LA"
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    transparent = int((pixels[..., 3] != 255).sum())
    if transparent:
        count = format_count(transparent, "pixel")
        raise UserError(f"{where}: {count} of the mask are transparent; save it without alpha")
    return (pixels[..., 0], "L") if grey else (pixels[..., :3], "RGB")


def _pack(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H, W, 3) uint8 -> (H, W) int32, 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _to_rgb(image: Image.Image, data: bytes, where: str) -> NDArray[np.uint8]:
    _check_depth(image, where)
    turned = orientation(image, data, where) != 1
    with _report_damage(image, where):
        upright = ImageOps.exif_transpose(image) if turned else image
        return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _check_depth(image: Image.Image, where: str) -> None:
    """Raise UserError for an image that PIL would cut off at 255."""
    if image.mode.startswith("I") or image.mode == "F":
        kind = "floating-point" if image.mode == "F" else "16-bit"
        raise UserError(f"{where}: a {kind} grey image; save it with 8 bits, scaled as you see fit")


@contextmanager
def _report_damage(image: Image.Image, where: str) -> Iterator[None]:
    """Turn whatever PIL raises, late, for damaged pixels and metadata into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: damaged {image.format} ({one_line(error)}); replace the file") from None
