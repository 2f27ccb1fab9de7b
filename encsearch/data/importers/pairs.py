"""Pair images and masks by name, for every importer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encsearch.data.codec import canonical_image, decode_mask, image_size
from encsearch.data.datasets import IGNORE
from encsearch.data.rows import check_pair
from encsearch.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_MASK_SUFFIXES = (".png",)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file; `id` is the name that they share, without the suffix."""

    id: str
    image: Path
    mask: Path


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """The pairs of two folders, by name.

    Raises UserError for a folder that is missing or has no image, a file without its partner, two files of
    one name, and a name that is not UTF-8.
    """
    image_files = _files_by_id(images, _IMAGE_SUFFIXES)
    mask_files = _files_by_id(masks, _MASK_SUFFIXES)
    if not image_files:
        raise UserError(f"{images}: no images here; they end in {', '.join(_IMAGE_SUFFIXES)}")
    without_mask = sorted(image_files.keys() - mask_files.keys())
    if without_mask:
        raise UserError(
            f"{image_files[without_mask[0]]}: no mask {masks / without_mask[0]}.png"
            f" ({len(without_mask)} of {len(image_files)} images have none)"
        )
    without_image = sorted(mask_files.keys() - image_files.keys())
    if without_image:
        raise UserError(
            f"{mask_files[without_image[0]]}: no image of that name in {images}"
            f" ({len(without_image)} of {len(mask_files)} masks have none)"
        )
    return [Pair(name, image_files[name], mask_files[name]) for name in sorted(image_files)]


def read_pair(pair: Pair, num_classes: int, void: int | None = None) -> tuple[bytes, NDArray[np.uint8]]:
    """The image as a store keeps it, and the mask (H, W) with `void` made 255.

    Raises UserError that names the file when one is unreadable or they do not fit each other or the classes.
    """
    image = canonical_image(_read(pair.image), str(pair.image))
    mask = decode_mask(_read(pair.mask), str(pair.mask))
    if void is not None:
        mask = np.where(mask == void, np.uint8(IGNORE), mask)
    check_pair(image_size(image, str(pair.image)), mask, num_classes, str(pair.mask))
    return image, mask


def _files_by_id(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in suffixes:
            continue
        if not file.name.isprintable():  # bytes that are not UTF-8 arrive as unprintable surrogates
            raise UserError(f"{folder}: the file name {file.name!r} is not printable UTF-8; rename it")
        if file.stem in files:
            raise UserError(f"{file}: {files[file.stem].name} has the same name; rename one of them")
        files[file.stem] = file
    return files


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
