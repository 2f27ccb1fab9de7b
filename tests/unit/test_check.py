"""What `encsearch check` finds out about a search before it starts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encsearch.config import Config, with_values
from encsearch.data.datasets import EncodedSample
from encsearch.data.store import write_store
from encsearch.errors import PreflightError
from encsearch.model.encnet import count_parameters
from encsearch.search.budget.forecast import Interval
from encsearch.train.preflight import PaddedImages
from encsearch.workflow.calibration import calibrate
from encsearch.workflow.check import check
from encsearch.workflow.checked import describe_check
from tests.conftest import TOY_INFO

SPACE = {"model.num_codewords": {"choice": [64, 4]}, "optim.lr": {"loguniform": [0.01, 0.1]}}
LR = {"optim.lr": {"loguniform": [0.01, 0.1]}}
NUM_CLASSES = 3


def searching(config: Config, **search: Any) -> Config:
    known: dict[str, Any] = {
        "space": SPACE,
        "budget": {"trials": 3},
        "scheduler": "none",
        "max_concurrent": 2,
    }
    return Config.model_validate({**config.model_dump(exclude_unset=True), "search": {**known, **search}})


def test_without_a_search_it_is_the_preflight_alone(toy_config: Config, tmp_path: Path) -> None:
    checked = check(toy_config, tmp_path, measure=True, trials_at_once=None)

    assert checked.search is None
    assert "2 epochs of 3 steps, global batch size 8" in describe_check(toy_config, checked)


@pytest.mark.parametrize(
    ("augment", "padded"),
    [
        ({}, False),
        ({"crop": 32}, False),
        ({"crop": [16, 33]}, True),
        ({"crop": 48}, True),
        ({"crop": 48, "shorter_side": 48}, False),
        ({"crop": 16, "shorter_side": 15}, True),
    ],
)
def test_images_that_are_smaller_than_the_crop_are_counted(
    toy_config: Config, tmp_path: Path, augment: dict[str, Any], padded: bool
) -> None:
    """All of the store's images are 32 px."""
    config = Config.model_validate({**toy_config.model_dump(exclude_unset=True), "augment": augment})

    checked = check(config, tmp_path, measure=False, trials_at_once=None)

    lines = [line for line in describe_check(config, checked) if "smaller than the crop" in line]
    assert [line[:58] for line in lines] == padded * [
        "warning: 24 of 24 training images are smaller than the cro"
    ]
    assert (checked.preflight.padded is not None) == padded


def test_the_largest_crop_that_is_searched_counts_and_few_images_are_no_warning(
    toy_config: Config, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    samples = [
        EncodedSample(str(number), png(rng, size, 3), png(rng, size), "")
        for number, size in enumerate([(40, 60), (40, 60), (60, 40), (64, 64), (64, 64), (64, 64)])
    ]
    write_store(tmp_path / "mixed", TOY_INFO, {"train": samples, "val": samples})
    config = with_values(toy_config, {"data.store": str(tmp_path / "mixed"), "augment.crop": [32, 48]})
    assert check(config, tmp_path, measure=False, trials_at_once=None).preflight.padded == PaddedImages(
        1, (32, 48)
    )
    config = searching(config, space={"augment.crop": {"integer": [16, 64]}})

    checked = check(config, tmp_path, measure=False, trials_at_once=None)

    assert checked.preflight.padded == PaddedImages(3, (64, 64))
    assert describe_check(config, checked)[3] == (
        "3 of 6 training images are smaller than the crop of 64x64 px and padded with pixels that are ignored"
    )


def test_without_a_crop_training_images_must_come_to_one_size(toy_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        EncodedSample(str(side), png(rng, (side, 2 * side), 3), png(rng, (side, 2 * side)), "")
        for side in (32, 48)
    ]
    write_store(tmp_path / "two", TOY_INFO, {"train": samples, "val": samples})
    config = with_values(toy_config, {"data.store": str(tmp_path / "two")})

    with pytest.raises(PreflightError, match=r"2 sizes, most of them 64x32; set augment\.crop"):
        check(config, tmp_path, measure=False, trials_at_once=None)

    config = with_values(config, {"augment.shorter_side": 24})
    assert check(config, tmp_path, measure=False, trials_at_once=None).preflight.padded is None


def png(rng: np.random.Generator, size: tuple[int, ...], channels: int = 0) -> bytes:
    """Random pixels; without channels a mask of the three classes."""
    buffer = io.BytesIO()
    shape, values = ((*size, channels), 256) if channels else (size, NUM_CLASSES)
    Image.fromarray(rng.integers(0, values, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_size_of_the_space_has_its_parameters_and_memory(toy_config: Config, tmp_path: Path) -> None:
    largest = count_parameters(with_values(toy_config, {"model.num_codewords": 64}).model, NUM_CLASSES)
    config = searching(toy_config, limits={"parameters": largest - 1})

    checked = check(config, tmp_path, measure=False, trials_at_once=None)

    assert checked.search
    small, large = checked.search.networks
    assert (large.values, small.values) == ({"model.num_codewords": 64}, {"model.num_codewords": 4})
    assert large.parameters == largest > small.parameters
    assert large.memory_gib > small.memory_gib > 0
    assert [
        line.strip().partition(":")[0] for line in describe_check(config, checked) if "refused" in line
    ] == ["model.num_codewords=64"]


def test_it_tells_the_first_trials_and_without_a_measurement_no_time(
    toy_config: Config, tmp_path: Path
) -> None:
    enqueued = {"model.num_codewords": 64, "optim.lr": 0.05}
    config = searching(toy_config, enqueue=[enqueued], budget={"trials": 3, "wall": "1s"})

    checked = check(config, tmp_path, measure=False, trials_at_once=7)

    found = checked.search
    assert found
    assert found.trials_at_once == 7
    assert found.first_points[:2] == (
        {"model.num_codewords": 4, "optim.lr": 0.02},
        enqueued,
    )  # the recipe's own
    assert len(found.first_points) == 3
    assert (found.wall_s, found.calibrations) == (None, ())
    assert (found.trials, found.epochs) == (Interval(3, 3, 3), Interval(6, 6, 6))
    assert (
        "3 trials of 6 epochs together; how long that takes was not measured"
        in describe_check(config, checked)[-1]
    )


def test_a_sweep_that_does_not_fit_on_the_disk_is_refused(toy_config: Config, tmp_path: Path) -> None:
    config = searching(toy_config, space=LR, budget={"trials": 10**8})

    with pytest.raises(PreflightError, match=r"are free, but the sweep needs up to .*--out"):
        check(config, tmp_path, measure=False, trials_at_once=1)


def test_a_recipe_for_gpus_is_not_timed_without_one(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = searching(with_values(toy_config, {"scaling.gpus_per_worker": 1}), space=LR)

    checked = check(config, tmp_path, measure=True, trials_at_once=2)

    assert checked.search
    assert checked.search.calibrations == ()
    assert "was not measured on this machine (cuda:0)" in describe_check(config, checked)[-1]


def test_a_calibration_counts_the_steps_and_batches_of_an_epoch(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encsearch.workflow.calibration.CALIBRATION_S", 0.05)
    config = with_values(toy_config, {"train.steps_per_epoch": None, "scaling.num_workers": 2})

    found = calibrate(config, "cpu", num_train=100, num_val=50)

    assert found.step_s > 0
    assert found.validation_batch_s > 0
    # Batches of 8 over both workers; each validates 25 samples, 4 at a time.
    assert found.epoch_s == pytest.approx(13 * found.step_s + 7 * found.validation_batch_s)
