"""The generated set: only context names its look-alikes, and everything else can be seen locally."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from encsearch.data.scenes import (
    CLASSES,
    CUES,
    INFO,
    LONG,
    MARGIN,
    ROUND,
    SCENES,
    STUFF,
    UNITS,
    draw_layout,
    generate_scenes,
    render,
    scene_sample,
)
from encsearch.data.store import Store
from encsearch.errors import UserError

FIRST_CUE, FIRST_ROUND, FIRST_LONG = CLASSES.index(CUES[0]), CLASSES.index(ROUND[0]), CLASSES.index(LONG[0])
PATCH_RADIUS = 7
NUM_FIT, NUM_JUDGED = 200, 400


def test_a_sample_depends_on_its_key_alone() -> None:
    image, mask, scene = scene_sample(3, "train", 5)
    again, mask_again, scene_again = scene_sample(3, "train", 5)
    assert image.shape == (64, 64, 3)
    assert mask.shape == (64, 64)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert scene == scene_again
    for other in [(4, "train", 5), (3, "val", 5), (3, "train", 6)]:
        assert not np.array_equal(image, scene_sample(*other)[0])


@pytest.mark.parametrize("size", [64, 96])
def test_nothing_within_the_margin_of_an_ambiguous_thing_depends_on_the_scene(size: int) -> None:
    margin_px = MARGIN * size // UNITS
    for number in range(40):
        layout = draw_layout(np.random.default_rng(number), size)
        versions = [render(layout, scene, (scene,) * len(layout.cues)) for scene in range(len(SCENES))]
        images, masks = (np.stack(arrays) for arrays in zip(*versions, strict=True))
        differs = (images != images[0]).any(axis=(0, 3))
        ambiguous = masks[0] >= FIRST_ROUND
        assert differs.any()
        assert ambiguous.any()
        assert not (differs & _grown(ambiguous, margin_px)).any()
        look_alike = (masks[:, ambiguous] - FIRST_ROUND) // len(SCENES)
        assert (look_alike == look_alike[0]).all()
        assert ((masks[:, ambiguous] - FIRST_ROUND) % len(SCENES) == np.arange(len(SCENES))[:, None]).all()


@pytest.mark.parametrize("first_class", [FIRST_ROUND, FIRST_LONG])
def test_a_local_classifier_guesses_between_look_alikes_until_it_is_told_the_scene(first_class: int) -> None:
    group = range(first_class, first_class + len(SCENES))
    patches, labels, scenes = _patches("train", NUM_FIT, group)
    judged_patches, judged_labels, judged_scenes = _patches("val", NUM_JUDGED, group)

    local = _forest().fit(patches, labels)
    chance = np.bincount(judged_labels - first_class).max() / len(judged_labels)
    # Pixels of one picture share its scene: an accuracy over 400 pictures deviates by 0.02.
    assert local.score(judged_patches, judged_labels) < chance + 0.05

    told = _forest().fit(_told(patches, scenes), labels)
    assert told.score(_told(judged_patches, judged_scenes), judged_labels) > 0.99


def test_a_local_classifier_tells_stuff_and_cues_and_the_two_groups_apart() -> None:
    patches, labels, _ = _patches("train", NUM_FIT, range(len(CLASSES)))
    judged_patches, judged_labels, _ = _patches("val", NUM_JUDGED, range(len(CLASSES)))
    look, judged_look = _look(labels), _look(judged_labels)
    predicted = _forest().fit(patches, look).predict(judged_patches)
    recall = [(predicted[judged_look == value] == value).mean() for value in range(FIRST_ROUND + 2)]
    assert np.mean(recall) > 0.8
    assert min(recall) > 0.6  # the outer pixels of furniture look like each other


def test_scenes_are_equally_likely_and_the_cues_of_a_picture_tell_its_scene() -> None:
    _, masks, scenes = _samples("val", NUM_JUDGED)
    area = np.stack([(masks == FIRST_CUE + cue).sum(axis=(1, 2)) for cue in range(len(CUES))], axis=1)
    assert 0.93 < (area.argmax(axis=1) == scenes).mean() < 1
    assert np.bincount(scenes, minlength=len(SCENES)).min() > 0.7 * NUM_JUDGED / len(SCENES)


def test_a_store_holds_the_samples_and_a_smaller_one_their_beginning(tmp_path: Path) -> None:
    manifest = generate_scenes(tmp_path / "a", num_train=6, num_val=2, num_test=2, seed=1)
    assert manifest.info == INFO
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 6, "val": 2, "test": 2,
    }  # fmt: skip
    train = Store(tmp_path / "a").split("train")
    image, mask, scene = scene_sample(1, "train", 4)
    assert np.array_equal(train[4].image, image)
    assert np.array_equal(train[4].mask, mask)
    assert train[4].id == f"train-000004-{SCENES[scene]}"

    smaller = generate_scenes(tmp_path / "b", num_train=3, num_val=2, num_test=2, seed=1)
    assert smaller.splits["val"].digest == manifest.splits["val"].digest
    assert [Store(tmp_path / "b").split("train")[i].id for i in range(3)] == [train[i].id for i in range(3)]


@pytest.mark.parametrize(("argument", "value"), [("size", 48), ("seed", -1), ("num_val", 0)])
def test_what_cannot_be_generated_is_refused_in_one_line(tmp_path: Path, argument: str, value: int) -> None:
    counts = {"num_train": 1, "num_val": 1, "num_test": 1}
    with pytest.raises(UserError) as raised:
        generate_scenes(tmp_path / "store", **{**counts, argument: value})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_every_class_is_in_its_group() -> None:
    assert set(INFO.groups["ambiguous"]) | set(INFO.groups["cues"]) | set(INFO.groups["stuff"]) == set(
        CLASSES
    )
    assert INFO.groups["stuff"] == STUFF


def _forest() -> RandomForestClassifier:
    return RandomForestClassifier(40, min_samples_leaf=2, class_weight="balanced_subsample", random_state=0)


def _told(patches: NDArray[np.float32], scenes: NDArray[np.int64]) -> NDArray[np.float32]:
    """With the scene as one-hot features, as many times over as a forest needs to find them among pixels."""
    one_hot = np.eye(len(SCENES), dtype=np.float32)[scenes]
    return np.concatenate([patches, np.tile(one_hot, (1, 20))], axis=1)


def _look(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels with each look-alike group as one class."""
    return np.where(labels < FIRST_ROUND, labels, FIRST_ROUND + (labels - FIRST_ROUND) // len(SCENES))


def _patches(
    split: str, count: int, classes: range
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Up to two pixels of each of `classes` in each picture: their neighbourhoods, labels and scenes.

    A neighbourhood is every second pixel of 15x15, and the mean and deviation of all of it.
    """
    features, labels, scenes = [], [], []
    rng = np.random.default_rng(0)
    for image, mask, scene in zip(*_samples(split, count), strict=True):
        padded = np.pad(image, ((PATCH_RADIUS,) * 2, (PATCH_RADIUS,) * 2, (0, 0)), mode="reflect")
        for class_index in np.intersect1d(mask, classes):
            for y, x in rng.permutation(np.argwhere(mask == class_index))[:2]:
                patch = padded[y : y + 2 * PATCH_RADIUS + 1, x : x + 2 * PATCH_RADIUS + 1]
                statistics = [patch.mean(axis=(0, 1)), patch.std(axis=(0, 1))]
                features.append(np.concatenate([patch[::2, ::2].ravel(), *statistics]))
                labels.append(int(class_index))
                scenes.append(int(scene))
    return np.array(features, np.float32), np.array(labels), np.array(scenes)


@cache
def _samples(split: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    images, masks, scenes = zip(*(scene_sample(0, split, index) for index in range(count)), strict=True)
    return np.stack(images), np.stack(masks), np.array(scenes)


def _grown(region: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """All pixels in the square of half side `reach` about a pixel of `region`."""
    padded = np.pad(region, reach)
    side = 2 * reach + 1
    rows = np.lib.stride_tricks.sliding_window_view(padded, side, axis=0).any(axis=-1)
    return np.lib.stride_tricks.sliding_window_view(rows, side, axis=1).any(axis=-1)
