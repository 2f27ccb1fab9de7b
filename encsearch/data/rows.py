"""A row of a store: a sample and the facts derived from it, so that statistics need no decoding."""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encsearch.data.codec import decode_image, decode_mask
from encsearch.data.datasets import IGNORE, EncodedSample
from encsearch.errors import UserError


@dataclass(frozen=True)
class StoreRow:
    """A sample as a shard holds it.

    `histogram` counts the pixels of each class; the rest of height x width is ignored. `encoded_sha256`
    hashes the bytes; `image_sha256` and `mask_sha256` hash the pixels, whatever file held them.
    """

    id: str
    image: bytes
    mask: bytes
    height: int
    width: int
    histogram: tuple[int, ...]
    group: str
    encoded_sha256: str
    image_sha256: str
    mask_sha256: str


def make_row(sample: EncodedSample, num_classes: int, where: str) -> StoreRow:
    """Decode a sample and derive its row.

    Raises UserError, which begins with `where`, when a file is damaged, the sizes of image and mask differ,
    or the mask holds a value that is neither a class nor 255.
    """
    image = decode_image(sample.image, where)
    mask = decode_mask(sample.mask, f"{where} (mask)")
    check_pair(image.shape[:2], mask, num_classes, where)
    return describe(sample, image, mask, num_classes)


def describe(
    sample: EncodedSample, image: NDArray[np.uint8], mask: NDArray[np.uint8], num_classes: int
) -> StoreRow:
    """The row of a sample whose image (H, W, 3) and mask (H, W) are decoded and fit each other."""
    counts = np.bincount(mask.ravel(), minlength=num_classes)[:num_classes]
    height, width = mask.shape
    return StoreRow(
        id=sample.id,
        image=sample.image,
        mask=sample.mask,
        height=height,
        width=width,
        histogram=tuple(counts.tolist()),
        group=sample.group,
        encoded_sha256=encoded_sha256(sample.id, sample.image, sample.mask),
        image_sha256=_array_sha256(image),
        mask_sha256=_array_sha256(mask),
    )


def check_pair(image_size: tuple[int, ...], mask: NDArray[np.uint8], num_classes: int, where: str) -> None:
    """Raises UserError when the mask does not fit an image of `image_size` (H, W) or the classes."""
    if image_size != mask.shape:
        (height, width), (mask_height, mask_width) = image_size, mask.shape
        raise UserError(f"{where}: the image is {width}x{height} but its mask {mask_width}x{mask_height}")
    values = np.unique(mask)
    strangers = values[(values >= num_classes) & (values != IGNORE)]
    if strangers.size:
        raise UserError(
            f"{where}: mask value {strangers[0]} is not a class; the {num_classes} classes are "
            f"0..{num_classes - 1}, and {IGNORE} is ignored"
        )


def check_split_name(name: str) -> None:
    """Raises UserError for a name that its shards cannot have."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"split {name!r}: a split's name has only letters, digits, _ and -")


def encoded_sha256(sample_id: str, image: bytes, mask: bytes) -> str:
    """SHA-256 of the id and the two files, each preceded by its length."""
    digest = hashlib.sha256()
    for part in (sample_id.encode(), image, mask):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def content_line(row: StoreRow) -> bytes:
    """A row's contribution to the digest of its split; it depends on the pixels, not on the files."""
    return f"{row.id}\0{row.image_sha256}\0{row.mask_sha256}\n".encode()


def _array_sha256(array: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
