"""What an import will write, decided before anything is written: samples, splits, labels, what is left out.

A pair is a sample to be: it names the files that are read when it is written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encsearch.data.codec import MAX_PIXELS, RawMask, canonical_image, decode_raw_mask, encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample, Sample, spaced_indices
from encsearch.data.importers.labels import LabelTable
from encsearch.data.importers.tree import File, LeftOut, ParquetCell
from encsearch.data.rows import StoreRow, check_pair, check_split_name, describe
from encsearch.errors import UserError, one_line
from encsearch.text import format_count


@dataclass(frozen=True)
class MaskFile:
    """A mask saved as a picture: of values or, with `colours`, of colours."""

    file: File | ParquetCell
    colours: bool = False

    def read(self) -> RawMask:
        return decode_raw_mask(self.file.read(), str(self.file), colours=self.colours)

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True)
class MatlabMask:
    """A mask as a matrix in a MATLAB file; `path` leads to it, as in ("GTcls", "Segmentation")."""

    file: File
    path: tuple[str, ...]

    def read(self) -> RawMask:
        from scipy.io import loadmat

        data = self.file.read()
        try:
            value: Any = loadmat(BytesIO(data))
            for name in self.path:
                value = value[name]
                while isinstance(value, np.ndarray) and value.shape in {(1,), (1, 1)} and value.dtype.names:
                    value = value.reshape(-1)[0]
                if isinstance(value, np.ndarray) and value.dtype == object:
                    value = value.item()
            matrix = np.asarray(value)
            with np.errstate(invalid="ignore"):  # NaN, which differs from what it becomes
                codes = matrix.astype(np.int32)
        except Exception as error:  # a damaged file leads its parser anywhere
            raise UserError(f"{self}: no matrix {'.'.join(self.path)} in it ({one_line(error)})") from None
        if codes.ndim != 2 or (codes != matrix).any():
            raise UserError(f"{self}: {'.'.join(self.path)} is not a matrix of height x width whole numbers")
        return RawMask(codes, "MATLAB matrix")

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True)
class RunLengthMask:
    """Segments in COCO's compressed run-length encoding: one line of JSON, [[category, RLE], ...], in `file`.

    A segment covers the ones before it; what none covers is 0.
    """

    file: File
    name: str

    def read(self) -> RawMask:
        from pycocotools.mask import decode

        try:
            segments = json.loads(self.file.read())
            height, width = segments[0][1]["size"]
            if not 0 < height * width <= MAX_PIXELS:
                raise ValueError(f"{width}x{height}")
            codes = np.zeros((height, width), np.int32)
            for category, encoded in segments:
                if encoded["size"] != [height, width]:
                    raise ValueError("segments of different sizes")
                codes[decode(encoded).astype(bool)] = category
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{self}: not segments in COCO's run-length encoding ({one_line(error)})"
            ) from None
        return RawMask(codes, "run lengths")

    def __str__(self) -> str:
        return self.name


Mask = MaskFile | MatlabMask | RunLengthMask


@dataclass(frozen=True)
class Pair:
    """A sample to be: where its image and mask are. `group` is its video or scene, "" if not known.

    `name` is that of the image in its source, such as images/0001.jpg, for lists of names.
    """

    id: str
    image: File | ParquetCell
    mask: Mask
    group: str = ""
    name: str = ""


@dataclass(frozen=True)
class ImportPlan:
    """An import. `lines` say what was understood, for people; `licence` and `lines` go into the store."""

    importer: str
    name: str
    labels: LabelTable
    splits: Mapping[str, Sequence[Pair]]
    left_out: LeftOut
    licence: str = ""
    lines: tuple[str, ...] = ()

    @property
    def info(self) -> DatasetInfo:
        return self.labels.info(self.name)

    @property
    def num_samples(self) -> int:
        return sum(len(pairs) for pairs in self.splits.values())

    def describe(self) -> Iterator[str]:
        """What was understood, a line each, for people."""
        yield f"{self.name}: {format_count(len(self.labels.classes), 'class')}"
        yield from self.lines
        yield from (f"left out: {line}" for line in self.left_out.lines())
        if self.licence:
            yield f"licence: {self.licence}"

    def limited(self, limit: int | None) -> "ImportPlan":
        """At most `limit` samples a split, evenly spaced; None keeps all."""
        if limit is None:
            return self
        kept = {
            name: [pairs[index] for index in spaced_indices(len(pairs), limit)]
            for name, pairs in self.splits.items()
        }
        whole = format_count(self.num_samples, "sample")
        line = f"limited to {format_count(limit, 'sample')} a split, evenly spaced, of {whole}"
        return replace(self, splits=kept, lines=(*self.lines, line))


def describe_source(source: File | ParquetCell | Mask) -> str:
    """What changes when what would be read does: the kind, the name, the size and the time of change."""
    file = source if isinstance(source, File | ParquetCell) else source.file
    return f"{type(source).__name__} {source} {file.size} {file.stamp}"


def check_plan(plan: ImportPlan) -> None:
    """Raises UserError for a split without samples or a name that is none, and an id that is twice in one."""
    if not plan.splits:
        raise UserError(f"{plan.name}: no samples")
    for split, pairs in plan.splits.items():
        check_split_name(split)
        if not pairs:
            raise UserError(f"split {split} has no samples; leave it out or give it some")
        seen: dict[str, Pair] = {}
        for pair in pairs:
            if not pair.id or not pair.id.isprintable():
                raise UserError(f"{pair.image}: the name {pair.id!r} is empty or cannot be printed")
            if pair.id in seen:
                other = seen[pair.id].image
                raise UserError(
                    f"{pair.image}: {other} has the same name in split {split}; rename one of them"
                )
            seen[pair.id] = pair


def read_row(pair: Pair, labels: LabelTable) -> StoreRow:
    """Read a pair as a store keeps it. Raises UserError that names the file that cannot be used."""
    image, pixels, mask = _read(pair, labels)
    sample = EncodedSample(pair.id, image, encode_png(mask), pair.group)
    return describe(sample, pixels, mask, len(labels.classes))


def read_sample(pair: Pair, labels: LabelTable) -> Sample:
    """Read a pair's pixels. Raises UserError as `read_row` does."""
    _, pixels, mask = _read(pair, labels)
    return Sample(pair.id, pixels, mask)


def _read(pair: Pair, labels: LabelTable) -> tuple[bytes, NDArray[np.uint8], NDArray[np.uint8]]:
    image, pixels = canonical_image(pair.image.read(), str(pair.image))
    mask = labels.translate(pair.mask.read().codes, str(pair.mask))
    check_pair(pixels.shape[:2], mask, len(labels.classes), str(pair.mask))
    return image, pixels, mask
