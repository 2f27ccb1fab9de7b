"""Masks become colours, overlays keep what is ignored, and sheets keep pixels square."""

import numpy as np
import pytest

from encsearch.data.pictures import (
    BLUE,
    GAP,
    MARGIN,
    PAPER,
    SHARE_CELL_PX,
    colorize,
    draw_shares,
    draw_sheet,
    overlay,
)

PALETTE = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)
MASK = np.array([[0, 1], [1, 255]], np.uint8)


def test_colorize_looks_colours_up() -> None:
    assert colorize(MASK, PALETTE).tolist() == [[[10, 20, 30], [200, 100, 0]], [[200, 100, 0], [0, 0, 0]]]


def test_overlay_mixes_and_leaves_ignored_pixels() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(image, MASK, PALETTE, alpha=0.5)
    assert mixed[0, 0].tolist() == [55, 60, 65]
    assert mixed[0, 1].tolist() == [150, 100, 50]
    assert mixed[1, 1].tolist() == [100, 100, 100]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [100, 100, 100]), (1.0, [10, 20, 30])])
def test_alpha_goes_from_image_to_mask(alpha: float, expected: list[int]) -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    assert overlay(image, MASK, PALETTE, alpha)[0, 0].tolist() == expected


def test_overlay_leaves_its_inputs_alone() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    overlay(image, MASK, PALETTE)
    assert (image == 100).all()


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    canvas = np.asarray(draw_sheet([[picture]], ["image"], min_cell_px=40))
    factor = 5
    enlarged = np.repeat(np.repeat(picture, factor, 0), factor, 1)
    windows = np.lib.stride_tricks.sliding_window_view(canvas, enlarged.shape).squeeze(2)
    assert (windows == enlarged).all(axis=(2, 3, 4)).any()


def test_large_pictures_keep_their_size() -> None:
    picture = np.zeros((300, 500, 3), np.uint8)
    canvas = draw_sheet([[picture, picture]], ["truth", "EncNet"])
    assert canvas.width == 2 * 500 + GAP + 2 * MARGIN


def test_legend_and_titles_make_room() -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    bare = draw_sheet([[picture]], ["image"])
    titled = draw_sheet([[picture]], ["image"], row_titles=["0001TP_008550"])
    keyed = draw_sheet([[picture]], ["image"], classes=["Road", "Car"], palette=PALETTE)
    assert titled.width > bare.width
    assert keyed.height > bare.height
    assert (200, 100, 0) in {colour for _, colour in keyed.getcolors(1 << 20) or []}


def test_long_legend_breaks_into_lines() -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    palette = np.tile(PALETTE, (20, 1))
    one = draw_sheet([[picture]], ["image"], classes=["Road"], palette=palette)
    many = draw_sheet([[picture]], ["image"], classes=[f"class {i}" for i in range(40)], palette=palette)
    assert many.width == one.width
    assert many.height > one.height
    assert many.getpixel((many.width - 2, many.height - 2)) == PAPER


def test_shares_stand_in_their_row_and_column() -> None:
    shares = np.array([[1.0, 0.0], [0.5, 0.005]])
    sheet = np.asarray(draw_shares(shares, ["a", "b"], "truth", "prediction"))
    side = SHARE_CELL_PX
    top = left = sheet.shape[0] - MARGIN - 2 * side
    corners = [[sheet[top + side * row + 1, left + side * column + 1] for column in (0, 1)] for row in (0, 1)]
    assert corners[0][0].tolist() == list(BLUE)
    assert corners[0][1].tolist() == list(PAPER)
    assert corners[1][0].tolist() == [
        round((white + blue) / 2) for white, blue in zip(PAPER, BLUE, strict=True)
    ]
    inner = sheet[top + side + 2 : top + 2 * side - 2, left + side + 2 : left + 2 * side - 2]
    assert len(np.unique(inner.reshape(-1, 3), axis=0)) == 1, "no number under 1 %"
