"""The interface of a segmentation data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encsearch.errors import UserError
from encsearch.text import format_count

IGNORE = 255
"""Mask value of pixels that count in neither the loss nor the metrics."""
SHOWN_IMAGES = 4
"""The number of validation images whose predictions are shown, the same ones everywhere."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DatasetInfo:
    """Name and classes of a data set; the position of a class is its value in the masks.

    `groups` are named subsets of the classes, each of which gets a mIoU of its own. `ids` are the values of
    the classes in the set's own label maps, () where they are the positions.
    Raises UserError when the parts do not fit together: they come from people's files.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= IGNORE:
            raise UserError(
                f"{self.name}: {format_count(len(self.classes), 'class')}, but a mask holds 1 to {IGNORE}"
            )
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise UserError(f"{self.name}: class {repeated[0]!r} is named twice; class names must differ")
        if len(self.palette) != len(self.classes):
            colours = format_count(len(self.palette), "colour")
            raise UserError(f"{self.name}: {colours} for {format_count(len(self.classes), 'class')}")
        for kind, name in (("data set", self.name), *(("class", name) for name in self.classes)):
            if not name or name != name.strip() or not name.isprintable():
                raise UserError(f"{kind} {name!r}: a name has letters that can be printed, no space around")
        if self.ids and len(set(self.ids)) != len(self.classes):
            ids = format_count(len(set(self.ids)), "id")
            raise UserError(f"{self.name}: {ids} for {format_count(len(self.classes), 'class')}")
        for group, members in self.groups.items():
            strangers = [name for name in members if name not in self.classes]
            if strangers:
                raise UserError(f"{self.name}: group {group} names {strangers[0]!r}, which is not a class")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; `from_dict` is its inverse."""
        values = {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "groups": {group: list(members) for group, members in self.groups.items()},
        }
        # Only where there are some: the fingerprint of an older store must stay as it is.
        return values | ({"ids": list(self.ids)} if self.ids else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DatasetInfo":
        return cls(
            name=values["name"],
            classes=tuple(values["classes"]),
            palette=tuple((red, green, blue) for red, green, blue in values["palette"]),
            groups={group: tuple(members) for group, members in values["groups"].items()},
            ids=tuple(values.get("ids", ())),
        )


@dataclass(frozen=True)
class Sample:
    """One image with its labels: image (H, W, 3) uint8 RGB, mask (H, W) uint8 with 255 = ignore."""

    id: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class EncodedSample:
    """A sample as a store holds it.

    `image` is a PNG or JPEG file, `mask` an 8-bit grey PNG of class indices with 255 = ignore; `group` is
    the video or scene that the image is from, "" where that is not known.
    """

    id: str
    image: bytes
    mask: bytes
    group: str


class SegmentationDataset(Protocol):
    """Any object with these four members can be trained on. Several threads call `__getitem__` at once."""

    @property
    def info(self) -> DatasetInfo: ...

    @property
    def fingerprint(self) -> str:
        """Changes if and only if the samples or the classes change."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def evenly_spaced(samples: SegmentationDataset | Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples, or all if there are fewer; always the same ones for the same data set."""
    return [samples[index] for index in spaced_indices(len(samples), count)]


def spaced_indices(length: int, count: int) -> list[int]:
    """`count` indices of a sequence of `length`, as far apart as they can be, or all if there are fewer."""
    indices = np.linspace(0, length - 1, min(count, length)).round().astype(int)
    return list(dict.fromkeys(indices.tolist()))


def default_palette(num_classes: int) -> tuple[Colour, ...]:
    """The colour map of PASCAL VOC: the bits of the class index, dealt in turn to red, green and blue."""
    colours = []
    for index in range(num_classes):
        red, green, blue = (
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
        )
        colours.append((red, green, blue))
    return tuple(colours)
