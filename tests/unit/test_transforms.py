"""One warp and one colour matrix: exact where nothing changes, and image and mask move together."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encsearch.config import AugmentConfig
from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.transforms import MEAN, STD, augment_sample, normalise, to_image_tensor

NOTHING = AugmentConfig(flip=0)


def random_sample(height: int = 40, width: int = 56, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample("a", image, rng.integers(0, 5, (height, width), dtype=np.uint8))


def unchanged(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The image (3, H, W) as the model takes it, and the label (H, W)."""
    return to_image_tensor(sample.image), torch.from_numpy(sample.mask)


def augmented(
    sample: Sample, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    copy, matrix = augment_sample(sample, augment, rng)
    colours = None if matrix is None else torch.from_numpy(matrix)[None]
    image = normalise(torch.from_numpy(np.array(copy.image))[None], colours)[0]
    return image, torch.from_numpy(np.array(copy.mask))


def pixels_of(image: torch.Tensor) -> NDArray[np.float64]:
    """Back to 0..255, (H, W, 3)."""
    normal = image.double().permute(1, 2, 0).numpy()
    return (normal * np.asarray(STD) + np.asarray(MEAN)) * 255


def test_normalisation_is_that_of_the_formula() -> None:
    sample = random_sample()
    image, label = unchanged(sample)
    expected = (sample.image / 255 - np.asarray(MEAN)) / np.asarray(STD)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    assert image.is_contiguous()


def test_a_colour_matrix_that_changes_nothing_only_normalises() -> None:
    sample = random_sample()
    mean, std = np.asarray(MEAN), np.asarray(STD)
    matrix = np.column_stack([np.diag(1 / std / 255), -mean / std]).astype(np.float32)
    images = torch.from_numpy(sample.image)[None]
    found = normalise(images, torch.from_numpy(matrix)[None])
    np.testing.assert_allclose(found.numpy(), normalise(images).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(40, 56), (1, 1), (7, 3)])
def test_an_augmentation_that_changes_nothing_is_exact(size: tuple[int, int]) -> None:
    sample = random_sample(*size)
    for seed in range(5):
        image, label = augmented(sample, NOTHING, np.random.default_rng(seed))
        expected_image, expected_label = unchanged(sample)
        assert torch.equal(image, expected_image)
        assert torch.equal(label, expected_label)


def test_a_crop_of_the_whole_sample_is_exact() -> None:
    sample = random_sample(40, 40)
    crop = AugmentConfig(flip=0, crop=40)
    image, _ = augmented(sample, crop, np.random.default_rng(0))
    assert torch.equal(image, unchanged(sample)[0])


def test_a_flip_is_exact() -> None:
    sample = random_sample()
    image, label = augmented(sample, AugmentConfig(flip=1), np.random.default_rng(0))
    expected_image, expected_label = unchanged(sample)
    assert torch.equal(image, expected_image.flip(-1))
    assert torch.equal(label, expected_label.flip(-1))


def test_a_crop_is_a_window_of_the_sample() -> None:
    sample = random_sample()
    windows = set()
    whole, whole_label = unchanged(sample)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, label = augmented(sample, AugmentConfig(flip=0, crop=24), rng)
        found = [
            (top, left)
            for top in range(40 - 24 + 1)
            for left in range(56 - 24 + 1)
            if torch.equal(image, whole[:, top : top + 24, left : left + 24])
        ]
        assert len(found) == 1
        ((top, left),) = found
        assert torch.equal(label, whole_label[top : top + 24, left : left + 24])
        windows.add((top, left))
    assert len(windows) > 10


def test_a_crop_larger_than_the_sample_is_padded_with_mean_and_ignore() -> None:
    sample = random_sample(10, 12)
    image, label = augmented(sample, AugmentConfig(flip=0, crop=32), np.random.default_rng(1))
    assert image.shape == (3, 32, 32)
    outside = label == IGNORE
    assert int((~outside).sum()) == 10 * 12
    assert image[:, outside].abs().max() < 0.02, "mean colour is zero once normalised"
    np.testing.assert_array_equal(label[~outside].reshape(10, 12).numpy(), sample.mask)
    np.testing.assert_allclose(image[:, ~outside].numpy(), unchanged(sample)[0].flatten(1).numpy())


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(scale=(0.5, 2.0)),
        AugmentConfig(rotate_deg=180),
        AugmentConfig(crop=48, scale=(0.5, 2.0), rotate_deg=30),
    ],
    ids=["zoom", "rotate", "all"],
)
def test_image_and_mask_move_together(augment: AugmentConfig) -> None:
    """The image shows the mask, in large blocks; away from their borders it still does so after the warp."""
    blocks = np.kron(np.random.default_rng(0).integers(0, 5, (4, 4)), np.ones((24, 24))).astype(np.uint8)
    image = np.repeat((blocks * 50)[..., None], 3, axis=-1)
    sample = Sample("a", image, blocks)
    for seed in range(10):
        warped, label = augmented(sample, augment, np.random.default_rng(seed))
        shown = pixels_of(warped).mean(axis=-1) / 50
        labels = label.numpy()
        inside = labels != IGNORE
        agree = np.abs(shown - labels)[inside] < 0.02
        assert inside.sum() > 0.2 * labels.size
        assert agree.mean() > 0.8
        assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, IGNORE}


def test_zoom_enlarges_about_what_the_crop_shows() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 1
    sample = Sample("a", np.zeros((60, 60, 3), np.uint8), mask)
    _, halved = augmented(sample, AugmentConfig(flip=0, scale=(0.5, 0.5)), np.random.default_rng(0))
    assert halved.shape == (60, 60)
    assert int((halved == 1).sum()) == 10 * 10
    assert int((halved == 0).sum()) == 30 * 30 - 10 * 10
    doubled = AugmentConfig(flip=0, crop=120, scale=(2, 2))
    _, label = augmented(sample, doubled, np.random.default_rng(0))
    assert int((label == 1).sum()) == 40 * 40


def test_rotation_turns_either_way_and_keeps_the_centre() -> None:
    sample = random_sample(41, 41)
    augment = AugmentConfig(flip=0, rotate_deg=90)
    for seed in range(5):
        _, label = augmented(sample, augment, np.random.default_rng(seed))
        assert label[20, 20] == sample.mask[20, 20]


def test_jitter_is_a_change_of_colour_alone() -> None:
    sample = random_sample()
    grey = Sample("g", np.full((4, 4, 3), 128, np.uint8), np.zeros((4, 4), np.uint8))
    brightness = []
    for seed in range(50):
        _, label = augmented(sample, AugmentConfig(flip=0, jitter=0.4), np.random.default_rng(seed))
        assert torch.equal(label, unchanged(sample)[1])
        image, _ = augmented(grey, AugmentConfig(flip=0, jitter=0.4), np.random.default_rng(seed))
        pixels = pixels_of(image)
        brightness.append(pixels.mean())
        assert np.ptp(pixels.reshape(-1, 3), axis=0).max() < 1e-3, "a flat image stays flat"
    assert np.std(brightness) > 15
    assert abs(np.mean(brightness) - 128) < 20


def test_the_same_generator_gives_the_same_result() -> None:
    sample = random_sample()
    augment = AugmentConfig(crop=32, scale=(0.5, 2), rotate_deg=20, jitter=0.3)
    first, again, other = (augmented(sample, augment, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
