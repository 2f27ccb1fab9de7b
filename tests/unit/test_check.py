"""What `encsearch check` finds out about a search before it starts."""

from pathlib import Path
from typing import Any

import pytest

from encsearch.config import Config, with_values
from encsearch.errors import PreflightError
from encsearch.search.forecast import Interval
from encsearch.workflow.calibration import calibrate
from encsearch.workflow.check import check, lines

SPACE = {"model.num_codewords": {"choice": [64, 4, 16]}, "optim.lr": {"loguniform": [0.01, 0.1]}}


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
    assert "2 epochs of 3 steps, global batch size 8" in lines(toy_config, checked)


def test_every_size_of_the_space_has_its_parameters_and_memory(toy_config: Config, tmp_path: Path) -> None:
    config = searching(toy_config, limits={"parameters": 45_000})

    found = check(config, tmp_path, measure=False, trials_at_once=None).search

    assert found
    by_k = {network.values["model.num_codewords"]: network for network in found.networks}
    assert set(by_k) == {4, 16, 64}
    assert by_k[4].parameters < by_k[16].parameters < by_k[64].parameters
    assert 0 < by_k[4].memory_gib < by_k[16].memory_gib < by_k[64].memory_gib
    assert [k for k, network in by_k.items() if network.refused] == []


def test_a_network_beyond_a_limit_is_told(toy_config: Config, tmp_path: Path) -> None:
    free = check(searching(toy_config), tmp_path, measure=False, trials_at_once=None).search
    assert free
    largest = max(network.parameters for network in free.networks)
    config = searching(toy_config, limits={"parameters": largest - 1})

    checked = check(config, tmp_path, measure=False, trials_at_once=None)

    told = [line for line in lines(config, checked) if "refused" in line]
    assert len(told) == 1
    assert "num_codewords=64" in told[0]


def test_unmeasured_it_has_trials_and_epochs_and_no_time(toy_config: Config, tmp_path: Path) -> None:
    config = searching(toy_config, budget={"trials": 3, "wall": "1s"})

    checked = check(config, tmp_path, measure=False, trials_at_once=None)

    assert checked.search
    assert (checked.search.wall_s, checked.search.calibrations) == (None, ())
    assert (checked.search.trials, checked.search.epochs) == (Interval(3, 3, 3), Interval(6, 6, 6))
    assert "3 trials of 6 epochs together; how long that takes was not measured" in lines(config, checked)[-1]


def test_the_first_trials_are_those_that_the_study_proposes(toy_config: Config, tmp_path: Path) -> None:
    enqueued = {"model.num_codewords": 64, "optim.lr": 0.05}

    checked = check(searching(toy_config, enqueue=[enqueued]), tmp_path, measure=False, trials_at_once=7)

    assert checked.search
    assert checked.search.trials_at_once == 7
    assert checked.search.first_points[0] == {"model.num_codewords": 4, "optim.lr": 0.02}  # the recipe's own
    assert checked.search.first_points[1] == enqueued
    assert len(checked.search.first_points) == 3


def test_a_sweep_that_does_not_fit_on_the_disk_is_refused(toy_config: Config, tmp_path: Path) -> None:
    config = searching(toy_config, budget={"trials": 10**8})

    with pytest.raises(PreflightError, match=r"are free, but the sweep needs up to .*--out"):
        check(config, tmp_path, measure=False, trials_at_once=1)


def test_a_recipe_for_gpus_is_not_timed_without_one(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = searching(with_values(toy_config, {"scaling.gpus_per_worker": 1}))

    checked = check(config, tmp_path, measure=True, trials_at_once=2)

    assert checked.search
    assert checked.search.calibrations == ()
    assert "was not measured on this machine (cuda:0)" in lines(config, checked)[-1]


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
