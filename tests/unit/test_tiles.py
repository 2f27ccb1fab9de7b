"""Tiles: they cover an image once, and what fits one pass is segmented as it ever was."""

import pytest
import torch

from encsearch.config import EvalConfig, ModelConfig
from encsearch.inference.segment import label, pixels_at_once, segment, tiles
from encsearch.model.encnet import EncNet

WHOLE = EvalConfig()


@pytest.fixture(scope="module")
def model() -> EncNet:
    torch.manual_seed(0)
    return EncNet.from_config(ModelConfig(backbone="tiny", output_stride=4, channels=8), 3).eval()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 97, 500])
def test_the_kept_parts_lie_end_to_end_and_no_tile_is_longer_than_its_side(length: int) -> None:
    found = list(tiles(length, side=64, seam=16))
    kept = [pixel for tile in found for pixel in range(tile.keep_start, tile.keep_stop)]
    assert kept == list(range(length))
    for tile in found:
        assert 0 <= tile.start <= tile.keep_start < tile.keep_stop <= tile.stop <= length
        assert tile.stop - tile.start <= 64


def test_inner_borders_have_a_seam_on_both_sides() -> None:
    first, *_, last = tiles(200, side=64, seam=16)
    assert (first.start, first.stop - first.keep_stop) == (0, 16)
    assert (last.keep_start - last.start, last.stop) == (16, 200)


@pytest.mark.parametrize("max_pixels", [40 * 56, 3 * 40 * 56])
def test_what_fits_one_pass_is_segmented_whole(model: EncNet, max_pixels: int) -> None:
    images = torch.randn(3, 3, 40, 56)
    found, whole = label(model, images, WHOLE, max_pixels), segment(model, images, WHOLE)
    assert found.labels.dtype == torch.uint8
    assert (found.labels == whole.labels).float().mean() > 0.99
    assert torch.allclose(found.presence, whole.presence, atol=1e-5)


def test_a_larger_image_gets_the_labels_of_its_tiles(model: EncNet) -> None:
    """A network without context whose tiles reach far enough sees the same around every pixel."""
    plain = EncNet.from_config(
        ModelConfig(backbone="tiny", output_stride=4, channels=8, context="none"), 3
    ).eval()
    image = torch.randn(1, 3, 320, 256)
    whole = segment(plain, image, WHOLE).labels
    found = label(plain, image, WHOLE, max_pixels=200 * 200)
    assert found.labels.shape == whole.shape
    assert (found.labels == whole).float().mean() > 0.9
    assert found.presence is None
    assert label(model, image, WHOLE, max_pixels=200 * 200).presence.shape == (1, 3)


def test_more_classes_leave_room_for_fewer_pixels() -> None:
    plain = EvalConfig()
    assert pixels_at_once(150, plain) < pixels_at_once(19, plain) < pixels_at_once(3, plain)
    assert pixels_at_once(150, plain) > 1024 * 1024


def test_an_image_that_is_zoomed_counts_as_large_as_it_gets() -> None:
    zoomed = EvalConfig(scales=(0.5, 2.0))
    assert pixels_at_once(3, zoomed) == pixels_at_once(3, EvalConfig()) // 4
    assert pixels_at_once(3, EvalConfig(scales=(0.5,))) == pixels_at_once(3, EvalConfig())
