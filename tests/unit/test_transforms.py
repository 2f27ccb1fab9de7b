"""One warp and one colour matrix: exact where nothing changes, and image and mask move together."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

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


def test_many_pixels_are_mixed_in_parts_to_the_same_bits() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 301, 120, 3), dtype=np.uint8))
    colours = torch.rand(2, 3, 4)
    red, green, blue = images.permute(3, 0, 1, 2)[:, :, None].float()
    factors = colours[..., None, None]
    expected = factors[:, :, 3] + factors[:, :, 0] * red + factors[:, :, 1] * green + factors[:, :, 2] * blue
    assert torch.equal(normalise(images, colours), expected)


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


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ({}, "15ae0ee378bc9679"),
        ({"crop": 24}, "28c69a43615fe962"),
        ({"crop": 64}, "fc95f7f2580809e5"),
        ({"crop": 48, "scale": (0.5, 2.0), "rotate_deg": 10, "jitter": 0.3}, "0e1212325a8a1e01"),
        ({"scale": (0.75, 1.25), "rotate_deg": 180, "flip": 1}, "36e752f311b44c14"),
    ],
    ids=["default", "crop", "padded", "paper", "turned"],
)
def test_samples_stay_what_they_were(values: dict[str, Any], digest: str) -> None:
    """Taken from the code before blur, shorter sides and class-uniform crops existed, with Pillow 13.0."""
    found = hashlib.sha256()
    for seed in range(3):
        rng = np.random.default_rng((1, 7, seed, 5))
        sample, matrix = augment_sample(random_sample(), AugmentConfig(**values), rng)
        found.update(repr(sample.image.shape).encode() + sample.image.tobytes() + sample.mask.tobytes())
        found.update(b"" if matrix is None else matrix.tobytes())

    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("crop", [None, 100, (60, 140), (140, 60)])
def test_a_point_goes_where_the_formula_says(crop: int | tuple[int, int] | None) -> None:
    height, width = 80, 100
    augment = AugmentConfig(crop=crop, scale=(1.0, 2.0), rotate_deg=30, flip=0.5, shorter_side=120)
    out_height, out_width = augment.image_size(height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[20:25, 55:62] = 1
    sample = Sample("a", np.zeros((height, width, 3), np.uint8), mask)
    seen = 0
    for seed in range(40):
        drawn = np.random.default_rng(seed)
        zoom = 120 / 80 * drawn.uniform(1.0, 2.0)
        angle = math.radians(drawn.uniform(-30, 30))
        mirrored = drawn.random() < 0.5
        left, top = (
            drawn.uniform(*sorted((0, zoom * a - b))) for a, b in ((width, out_width), (height, out_height))
        )
        point = complex(58.5 - width / 2, 22.5 - height / 2)
        point = complex(-point.real, point.imag) if mirrored else point
        point = zoom * (point * complex(math.cos(angle), math.sin(angle)) + complex(width / 2, height / 2))
        expected = (point.imag - round(top), point.real - round(left))

        label = augment_sample(sample, augment, np.random.default_rng(seed))[0].mask

        assert label.shape == (out_height, out_width)
        rows, columns = np.nonzero(label == 1)
        if len(rows) > 0.95 * 35 * zoom**2:  # all of it is in the crop
            seen += 1
            np.testing.assert_allclose((rows.mean() + 0.5, columns.mean() + 0.5), expected, atol=0.3)
    assert seen >= 10


def test_a_crop_that_is_not_square_is_a_window_of_the_sample() -> None:
    sample = random_sample()
    windows = np.lib.stride_tricks.sliding_window_view(sample.mask, (12, 30))
    for seed in range(10):
        found, _ = augment_sample(sample, AugmentConfig(flip=0, crop=(12, 30)), np.random.default_rng(seed))
        assert found.image.shape == (12, 30, 3)
        ((top, left),) = np.argwhere((windows == found.mask).all(axis=(2, 3)))
        np.testing.assert_array_equal(found.image, sample.image[top : top + 12, left : left + 30])


def test_a_turned_sample_is_padded_with_mean_and_ignore() -> None:
    sample = random_sample()
    mean = np.round(255 * np.asarray(MEAN))
    for seed in range(10):
        augment = AugmentConfig(rotate_deg=45, scale=(0.6, 1.5), crop=(64, 50))
        found, _ = augment_sample(sample, augment, np.random.default_rng(seed))
        outside = found.mask == IGNORE
        assert 0 < outside.sum() < outside.size
        assert (found.image[outside] == mean).all()
        assert (found.image[~outside] == mean).all(axis=1).mean() < 0.01


def test_the_shorter_side_gets_its_length() -> None:
    sample = random_sample(40, 56)
    whole, _ = augment_sample(sample, AugmentConfig(flip=0, shorter_side=20), np.random.default_rng(0))
    assert whole.mask.shape == (20, 28)
    np.testing.assert_array_equal(whole.mask, sample.mask[1::2, 1::2])
    blocks = sample.image.reshape(20, 2, 28, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(whole.image, blocks, atol=0.51)

    upright = Sample(
        "a", np.ascontiguousarray(sample.image.swapaxes(0, 1)), np.ascontiguousarray(sample.mask.T)
    )
    turned, _ = augment_sample(upright, AugmentConfig(flip=0, shorter_side=20), np.random.default_rng(0))
    np.testing.assert_array_equal(turned.mask, whole.mask.T)

    zoomed = AugmentConfig(flip=0, shorter_side=80, scale=(1.5, 1.5), crop=200)
    enlarged, _ = augment_sample(sample, zoomed, np.random.default_rng(0))
    assert int((enlarged.mask != IGNORE).sum()) == 120 * 168


def test_what_is_made_small_is_averaged() -> None:
    """Stripes of one white column in four: four neighbours of the wanted point would miss them all."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::4] = 255
    sample = Sample("a", image, np.zeros((64, 64), np.uint8))

    found, _ = augment_sample(sample, AugmentConfig(shorter_side=16), np.random.default_rng(0))

    assert found.image.shape == (16, 16, 3)
    np.testing.assert_allclose(found.image, 64, atol=1)


def test_blur_is_that_of_pillow_on_the_whole_image() -> None:
    sample = random_sample()
    for seed in range(20):
        # Zoom, angle, mirror, left, top and three colours come before.
        share, radius = np.random.default_rng(seed).random(10)[8:].tolist()
        blurred = Image.fromarray(sample.image).filter(ImageFilter.GaussianBlur(radius))

        found, _ = augment_sample(sample, AugmentConfig(flip=0, blur=0.5), np.random.default_rng(seed))

        np.testing.assert_array_equal(found.image, np.asarray(blurred) if share < 0.5 else sample.image)
        np.testing.assert_array_equal(found.mask, sample.mask)


def test_no_setting_changes_what_another_one_draws() -> None:
    sample = random_sample()
    alone = AugmentConfig(crop=32, scale=(0.5, 2), rotate_deg=20, jitter=0.3)
    blurred = alone.model_copy(update={"blur": 0.5})
    num_blurred = 0
    for seed in range(200):
        (one, colours), (other, same_colours) = (
            augment_sample(sample, augment, np.random.default_rng(seed)) for augment in (alone, blurred)
        )
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(colours, same_colours)
        num_blurred += not np.array_equal(one.image, other.image)
    assert 80 < num_blurred < 120


@pytest.mark.parametrize("crop", [None, 16, (8, 40), (40, 8), 120])
def test_a_class_uniform_crop_shows_its_pixel(crop: int | tuple[int, int] | None) -> None:
    """However small the class, and at any zoom and angle."""
    mask = np.full((60, 80), IGNORE, np.uint8)
    mask[3, 77] = 4
    sample = Sample("a", np.zeros((60, 80, 3), np.uint8), mask)
    augment = AugmentConfig(crop=crop, scale=(0.3, 3.0), rotate_deg=180, class_uniform=1)
    for seed in range(200):
        found, _ = augment_sample(sample, augment, np.random.default_rng(seed))
        assert 4 in found.mask, seed


def test_a_class_uniform_crop_is_a_window_and_its_classes_are_equally_likely() -> None:
    sample = random_sample(60, 80)
    mask = np.zeros((60, 80), np.uint8)
    mask[10, 10], mask[55:, 70:], mask[:5] = 1, 2, IGNORE
    sample = Sample("a", sample.image, mask)
    windows = np.lib.stride_tricks.sliding_window_view(sample.image[..., 0], (16, 16))
    augment = AugmentConfig(flip=0, crop=16, class_uniform=1)
    shown, places = np.zeros(3), set()
    for seed in range(300):
        found, _ = augment_sample(sample, augment, np.random.default_rng(seed))
        ((top, left),) = np.argwhere((windows == found.image[..., 0]).all(axis=(2, 3)))
        np.testing.assert_array_equal(found.mask, mask[top : top + 16, left : left + 16])
        shown += [label in found.mask for label in range(3)]
        if 1 in found.mask:
            places.add((top, left))
    assert (shown[1:] > 80).all(), "about a third of the crops each"
    assert (shown[1:] < 130).all(), "and not all of them"
    assert len(places) > 40, "the pixel is anywhere in the crop"


def test_a_mask_without_a_class_is_cropped_anywhere() -> None:
    sample = Sample("a", random_sample().image, np.full((40, 56), IGNORE, np.uint8))
    one, other = (
        augment_sample(sample, AugmentConfig(crop=16, class_uniform=share), np.random.default_rng(0))[0]
        for share in (0, 1)
    )
    np.testing.assert_array_equal(one.image, other.image)
