"""Weights of the classes in the cross-entropies, by frequency or by name, checked before training."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encsearch.config import Config, with_values
from encsearch.data.datasets import DatasetInfo, EncodedSample, default_palette
from encsearch.data.store import Store, write_store
from encsearch.errors import PreflightError, UserError
from encsearch.train.experiment import build
from encsearch.train.preflight import preflight

BY_NAME = {"blue": 3.0, "ground": 0.5, "red": 0.0}


def sample(number: int, mask: list[list[int]]) -> EncodedSample:
    labels = np.array(mask, dtype=np.uint8)
    noise = np.random.default_rng(number).integers(0, 255, (*labels.shape, 3)).astype(np.uint8)
    return EncodedSample(f"{number}", png(noise), png(labels), group="")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def store(folder: Path, masks: list[list[list[int]]]) -> Path:
    names = ("common", "rare", "even", "absent")
    samples = [sample(number, mask) for number, mask in enumerate(masks)]
    write_store(folder, DatasetInfo("small", names, default_palette(len(names))), {"train": samples})
    return folder


def test_a_frequency_is_taken_over_the_images_that_have_the_class(tmp_path: Path) -> None:
    path = store(
        tmp_path / "small",
        [
            [[0, 0, 0, 0], [0, 0, 0, 1]],  # 7 and 1 of 8
            [[0, 0, 2, 2], [255, 255, 255, 255]],  # 2 and 2 of 4 that are labelled
        ],
    )

    weights = Store(path).median_frequency_weights("train")

    common, rare, even = 9 / 12, 1 / 8, 2 / 4
    assert weights == pytest.approx((even / common, even / rare, 1, 0))


def test_a_split_without_labels_cannot_be_balanced(tmp_path: Path) -> None:
    path = store(tmp_path / "small", [[[255, 255]]])

    with pytest.raises(UserError, match="split train has 0 labelled pixels"):
        Store(path).median_frequency_weights("train")


def test_weights_reach_the_loop_in_the_order_of_the_classes(toy_config: Config) -> None:
    plan = build(with_values(toy_config, {"loss.class_weights": BY_NAME})).plan

    assert plan.class_weights is not None
    assert plan.class_weights.tolist() == [0.5, 0, 3]
    assert build(toy_config).plan.class_weights is None


def test_median_frequency_is_of_the_training_split(toy_config: Config) -> None:
    plan = build(with_values(toy_config, {"loss.class_weights": "median_frequency"})).plan

    assert plan.class_weights is not None
    expected = Store(toy_config.data.store).median_frequency_weights("train")
    assert expected != Store(toy_config.data.store).median_frequency_weights("val")
    torch.testing.assert_close(plan.class_weights, torch.tensor(expected))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({**BY_NAME, "sky": 1}, "loss.class_weights names 'sky', which is none of the 3 classes of toy"),
        ({"red": 2}, r"no weight for 'ground' \(2 of the 3 classes of toy lack one\)"),
    ],
)
def test_names_that_do_not_fit_the_store_stop_before_training(
    toy_config: Config, tmp_path: Path, weights: dict[str, float], message: str
) -> None:
    config = with_values(toy_config, {"loss.class_weights": weights})

    with pytest.raises(PreflightError, match=message):
        preflight(config, Store(config.data.store), tmp_path)
    with pytest.raises(UserError, match=message):
        build(config)


def test_what_would_be_one_metric_and_what_has_no_label_stop_before_training(
    toy_config: Config, tmp_path: Path
) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    colours = ((0, 0, 0), (1, 1, 1))
    for place, classes, mask, message in (
        ("names", ("car (moving)", "car [moving]"), pixels, "have one name in MLflow, 'car _moving_'"),
        ("void", ("car", "road"), pixels + 255, "no pixel of split train has a label"),
    ):
        splits = {split: [sample(number, mask.tolist())] for number, split in enumerate(("train", "val"))}
        write_store(tmp_path / place, DatasetInfo("x", classes, colours), splits)
        config = with_values(toy_config, {"data.store": str(tmp_path / place)})
        with pytest.raises(PreflightError, match=re.escape(message)):
            preflight(config, Store(config.data.store), tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("inverse", "is none, median_frequency or a weight by class name, but got 'inverse'"),
        ({"red": -1}, "a weight is a number of 0 or more, but got red: -1"),
        ({"red": 0}, "needs a class with a weight above 0"),
    ],
)
def test_what_is_no_weight_is_refused_in_the_recipe(
    toy_config: Config, weights: str | dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=f"loss.class_weights: {message}"):
        with_values(toy_config, {"loss.class_weights": weights})
