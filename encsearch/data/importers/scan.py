"""Read all masks and the headers of all images before anything is written: what do they hold?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from encsearch.data.codec import TURNED, image_form, upright_size
from encsearch.data.datasets import Colour
from encsearch.data.importers.plan import Pair
from encsearch.data.importers.workers import work
from encsearch.errors import UserError

MAX_CODES = 1000  # different colours or values; a photograph has more
_CHUNK = 256  # pairs a process reads at once


@dataclass
class Scan:
    """What was found. `pixels` counts each value or colour, `masks` the masks with it, `first` names one.

    `forms` counts how masks are saved, `changes` what is changed in images. `palettes` are those of the masks
    that have one, two at most. `turned_apart` are the samples of whose image and mask only one has an EXIF
    orientation. `bad` is pair index -> reason.
    """

    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)
    first: dict[int, str] = field(default_factory=dict)
    forms: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    palettes: list[tuple[Colour, ...]] = field(default_factory=list)
    turned_apart: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Scan") -> None:
        self.pixels += other.pixels
        self.masks += other.masks
        self.first = other.first | self.first
        self.forms += other.forms
        self.changes += other.changes
        self.palettes = list(dict.fromkeys([*self.palettes, *other.palettes]))[:2]
        self.turned_apart += other.turned_apart
        self.bad |= other.bad


def scan(pairs: Sequence[Pair], processes: int) -> Scan:
    """Read the masks whole, and of the images the headers.

    Raises UserError for more than MAX_CODES values or colours, which are no labels.
    """
    chunks = [(first, pairs[first : first + _CHUNK]) for first in range(0, len(pairs), _CHUNK)]
    found = Scan()
    for _, part in work(_scan_chunk, chunks, processes):
        found.add(part)
        _check_codes(found)
    return found


def _check_codes(found: Scan) -> None:
    if len(found.pixels) > MAX_CODES:
        code = next(code for code, count in reversed(found.masks.most_common()) if count)
        raise UserError(
            f"{found.first[code]}: the masks have over {MAX_CODES} different values or colours, so they are "
            "no labels; are images and masks mixed up, or were the masks saved as JPEG?"
        )


def _scan_chunk(chunk: tuple[int, Sequence[Pair]]) -> Scan:
    """What the pairs of a chunk hold; it begins with the index of the first."""
    (first, pairs), found = chunk, Scan()
    for index, pair in enumerate(pairs, start=first):
        try:
            data = pair.image.read()
            change = image_form(data, str(pair.image))
            height, width = upright_size(data, str(pair.image))
            raw = pair.mask.read()
            if raw.codes.shape != (height, width):
                mask_height, mask_width = raw.codes.shape
                turned = "; is only one of them turned by EXIF?" if (width, height) == raw.codes.shape else ""
                sizes = f"the image is {width}x{height} but its mask {mask_width}x{mask_height}"
                raise UserError(f"{pair.mask}: {sizes}{turned}")
        except UserError as error:
            found.bad[index] = str(error)
            continue
        for code, count in _count(raw.codes).items():
            found.pixels[code] += count
            found.masks[code] += 1
            found.first.setdefault(code, str(pair.mask))
            if len(found.pixels) > MAX_CODES:
                return found
        found.forms[raw.form] += 1
        if change:
            found.changes[change] += 1
        if raw.turned != (TURNED in change):
            found.turned_apart.append(pair.id)
        if raw.palette and raw.palette not in found.palettes and len(found.palettes) < 2:
            found.palettes.append(raw.palette)
    return found


def _count(codes: NDArray[np.int32]) -> dict[int, int]:
    """code -> pixels. Runs of equal pixels are sorted, of which a mask has few, and not its pixels."""
    flat = codes.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
    lengths = np.diff(starts, append=flat.size)
    found, runs = np.unique(flat[starts], return_inverse=True)
    return dict(zip(found.tolist(), np.bincount(runs, lengths).astype(int).tolist(), strict=True))
