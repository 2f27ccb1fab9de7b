"""Draw label maps: colours, overlays, and contact sheets that compare predictions.

Arrays are uint8: an image is (H, W, 3), a mask (H, W) of class numbers, a palette (num_classes, 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from encsearch.data.datasets import IGNORE, Colour, DatasetInfo, Sample

Array = NDArray[np.uint8]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

INK = (29, 33, 41)
MUTED = (107, 114, 128)
PAPER = (255, 255, 255)
GAP = 10
MARGIN = 24
BLUE = (0, 73, 119)
FONT_PX = 17
SHARE_CELL_PX = 24
SMALL_PX = 128
"""Images with sides up to this are clearer as plain colours than under an overlay."""


def colorize(mask: Array, palette: Array, ignored: Colour = (0, 0, 0)) -> Array:
    """The mask (H, W) in the colours of its classes, (H, W, 3), other numbers in the colour `ignored`."""
    table = np.full((256, 3), ignored, np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def overlay(image: Array, mask: Array, palette: Array, alpha: float = 0.5, ignore: int = IGNORE) -> Array:
    """The image (H, W, 3) with `alpha` of the class colours over it; `ignore` pixels stay as they were."""
    assert image.shape == (*mask.shape, 3), f"image {image.shape} and mask {mask.shape} differ in size"
    mixed = np.rint((1 - alpha) * image + alpha * colorize(mask, palette).astype(np.float32)).astype(np.uint8)
    return np.where((mask == ignore)[..., None], image, mixed)


def fit(image: Array, mask: Array, width_px: int) -> tuple[Array, Array]:
    """Image (H, W, 3) and mask (H, W), shrunk to a width of `width_px` if they are wider."""
    height, width = mask.shape
    if width <= width_px:
        return image, mask
    size = (width_px, max(1, round(height * width_px / width)))
    smaller = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(smaller), np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture of a trial, for which a sweep's other trials wait: a third faster, a sixth larger."""
    picture.save(path, "PNG", compress_level=1)


def draw_sheet(
    rows: Sequence[Sequence[Array]],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    classes: Sequence[str] = (),
    palette: Array | None = None,
    min_cell_px: int = 240,
) -> Image.Image:
    """Draw a contact sheet: pictures (H, W, 3) in a grid with titles, and a legend of `classes` below.

    If the pictures are narrower than `min_cell_px`, all are enlarged by the same whole factor without
    smoothing, so that a pixel of a mask stays a square.
    """
    assert rows, "a sheet has at least one row"
    assert len(classes) <= (0 if palette is None else len(palette)), "every class of the legend has a colour"
    assert all(len(row) == len(column_titles) for row in rows), "one title a column"
    height = max(picture.shape[0] for row in rows for picture in row)
    width = max(picture.shape[1] for row in rows for picture in row)
    factor = -(-min_cell_px // width) if width < min_cell_px else 1
    font = ImageFont.load_default(FONT_PX)
    grid = _Grid(
        left=MARGIN + (max(_measure_width(font, title) for title in row_titles) + 16 if row_titles else 0),
        top=MARGIN + FONT_PX + 12,
        cell=(width * factor, height * factor),
        shape=(len(rows), len(column_titles)),
    )
    total_width = max(grid.right + MARGIN, 360)
    swatches = _flow(classes, font, total_width - 2 * MARGIN)
    legend_height = 16 + 28 * (swatches[-1][0] + 1) if swatches else 0
    canvas = Image.new("RGB", (total_width, grid.bottom + legend_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(column_titles):
        x, _ = grid.corner(0, column)
        draw.text((x + grid.cell[0] / 2, grid.top - 10), title, INK, font, anchor="ms")
    for row, title in enumerate(row_titles):
        _, y = grid.corner(row, 0)
        draw.text((grid.left - 16, y + grid.cell[1] / 2), title, MUTED, font, anchor="rm")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            canvas.paste(_enlarge(picture, factor), grid.corner(row, column))
    for (line, x), name, colour in zip(swatches, classes, () if palette is None else palette, strict=False):
        y = grid.bottom + 16 + 28 * line
        draw.rounded_rectangle((MARGIN + x, y, MARGIN + x + 20, y + 20), 4, tuple(colour.tolist()), MUTED)
        draw.text((MARGIN + x + 28, y + 10), name, INK, font, anchor="lm")
    return canvas


@dataclass(frozen=True)
class _Grid:
    """Where the cells of a sheet lie, px; `cell` is (width, height), `shape` (rows, columns)."""

    left: int
    top: int
    cell: tuple[int, int]
    shape: tuple[int, int]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.cell[0] + GAP), self.top + row * (self.cell[1] + GAP)

    @property
    def right(self) -> int:
        return self.corner(0, self.shape[1])[0] - GAP

    @property
    def bottom(self) -> int:
        return self.corner(self.shape[0], 0)[1] - GAP


def draw_labelled(samples: Sequence[Sample], info: DatasetInfo, width_px: int) -> Image.Image:
    """One row per sample: the image, its labels with ignored pixels white, and both; a legend below.

    Pictures wider than `width_px` are shrunk to it.
    """
    palette = np.array(info.palette, dtype=np.uint8)
    rows = []
    for sample in samples:
        image, mask = fit(sample.image, sample.mask, width_px)
        rows.append([image, colorize(mask, palette, PAPER), overlay(image, mask, palette)])
    present = sorted({int(index) for sample in samples for index in np.unique(sample.mask)} - {IGNORE})
    return draw_sheet(
        rows,
        ["image", "labels (ignored: white)", "overlay"],
        [sample.id for sample in samples],
        [info.classes[index] for index in present],
        palette[present],
        width_px,
    )


def draw_comparison(
    samples: Sequence[Sample], info: DatasetInfo, label_maps: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> Image.Image:
    """One row per sample: the image, the truth, and each title's label map, (H, W) uint8."""
    palette = np.array(info.palette, dtype=np.uint8)
    small = max(samples[0].image.shape[:2]) <= SMALL_PX
    rows = [
        [
            sample.image,
            *(
                colorize(mask, palette) if small else overlay(sample.image, mask, palette)
                for mask in (sample.mask, *(label_maps[title][row] for title in label_maps))
            ),
        ]
        for row, sample in enumerate(samples)
    ]
    titles = ["image", "truth", *label_maps]
    return draw_sheet(rows, titles, [sample.id for sample in samples], info.classes, palette)


def draw_shares(
    shares: NDArray[np.float64], names: Sequence[str], row_title: str, column_title: str
) -> Image.Image:
    """Draw shares in [0, 1], (N, N), as cells from white to blue, each from 1 % on with its percentage.

    `names` stand beside the rows and above the columns.
    """
    font, small = ImageFont.load_default(13), ImageFont.load_default(10)
    side = SHARE_CELL_PX * len(names)
    label = max(_measure_width(font, name) for name in names) + 12
    left = MARGIN + 20 + label
    canvas = Image.new("RGB", (left + max(side, 240) + MARGIN, left + side + MARGIN), PAPER)
    paper = np.asarray(PAPER)
    colours = np.rint(paper + shares[..., None] * (np.asarray(BLUE) - paper)).astype(np.uint8)
    canvas.paste(_enlarge(colours, SHARE_CELL_PX), (left, left))
    columns = Image.new("RGB", (label, side), PAPER)  # turned by a quarter at the end
    draw, above = ImageDraw.Draw(canvas), ImageDraw.Draw(columns)
    for number, name in enumerate(names):
        middle = SHARE_CELL_PX * (number + 0.5)
        draw.text((left - 8, left + middle), name, INK, font, anchor="rm")
        above.text((8, middle), name, INK, font, anchor="lm")
    canvas.paste(columns.transpose(Image.Transpose.ROTATE_90), (left, left - label))
    for row, column in np.argwhere(shares >= 0.01):
        centre = (left + SHARE_CELL_PX * (column + 0.5), left + SHARE_CELL_PX * (row + 0.5))
        share = shares[row, column]
        draw.text(centre, str(round(100 * share)), PAPER if share > 0.5 else INK, small, anchor="mm")
    draw.rectangle((left - 1, left - 1, left + side, left + side), outline=MUTED)
    draw.text((left, MARGIN), column_title, MUTED, font, anchor="lm")
    draw.text((MARGIN, left - 14), row_title, MUTED, font, anchor="lm")
    return canvas


def _flow(names: Sequence[str], font: Font, width: int) -> list[tuple[int, int]]:
    """(line, x) of each legend entry, wrapped into lines of `width` px."""
    placed = []
    line = x = 0
    for name in names:
        entry_width = 28 + _measure_width(font, name) + 24
        if x and x + entry_width > width:
            line, x = line + 1, 0
        placed.append((line, x))
        x += entry_width
    return placed


def _measure_width(font: Font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _enlarge(picture: Array, factor: int) -> Image.Image:
    height, width = picture.shape[:2]
    return Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.NEAREST)
