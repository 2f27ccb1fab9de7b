"""Importances name what moves the metric, and say so when nothing can be told."""

import numpy as np
import pytest

from encsearch.config import Dimension
from encsearch.report.importance import (
    Importances,
    Observation,
    importances,
    rated_paths,
    trials_needed,
)

SPACE = {
    "model.num_codewords": Dimension(choice=(8, 16, 32)),
    "optim.lr": Dimension(loguniform=(1e-4, 1e-1)),
    "loss.se_weight": Dimension(uniform=(0.0, 1.0)),
}


def observations(count: int, effect: float) -> list[Observation]:
    """Random trials with noise of 0.01, whose metric falls by `effect` a decade of the learning rate."""
    rng = np.random.default_rng(3)
    found: list[Observation] = []
    for _ in range(count):
        decade = rng.uniform(-4, -1)
        values = {
            "model.num_codewords": int(rng.choice([8, 16, 32])),
            "optim.lr": float(10**decade),
            "loss.se_weight": float(rng.uniform()),
        }
        found.append((values, float(0.5 - effect * decade + rng.normal() * 0.01)))
    return found


@pytest.fixture(scope="module")
def strong() -> tuple[Importances, ...]:
    return importances(SPACE, observations(24, 0.1), seed=0)


def test_both_evaluators_find_the_one_path_that_matters(strong: tuple[Importances, ...]) -> None:
    assert [each.evaluator for each in strong] == ["fANOVA", "PED-ANOVA"]
    for each in strong:
        assert each.paths[0].path == "optim.lr"
        assert each.beyond_chance == ("optim.lr",)


def test_shares_are_told_with_intervals_and_chance(strong: tuple[Importances, ...]) -> None:
    fanova, ped_anova = strong
    for path in fanova.paths:
        assert 0 <= path.low < path.high <= 1
    assert 0 < fanova.chance < 1
    assert sum(path.share for path in ped_anova.paths) == pytest.approx(1)


def test_all_decades_of_a_log_range_count_alike() -> None:
    """Only the lowest decade matters: on the plain scale it would be a hundredth of the range."""
    points = [values for values, _ in observations(24, 0.0)]
    fanova, _ = importances(SPACE, [(values, float(values["optim.lr"] < 1e-3)) for values in points], seed=0)
    assert fanova.paths[0].path == "optim.lr"
    assert fanova.paths[0].share > 0.8


def test_noise_is_not_told() -> None:
    found = importances(SPACE, observations(24, 0.0), seed=0)
    assert [each.beyond_chance for each in found] == [(), ()]


def test_too_few_trials_give_no_importance() -> None:
    assert trials_needed(3) == 12
    assert importances(SPACE, observations(11, 0.1), seed=0) == ()


def test_equal_values_give_no_share() -> None:
    trials = [(values, 0.5) for values, _ in observations(12, 0.0)]
    for each in importances(SPACE, trials, seed=0):
        assert {path.share for path in each.paths} == {0.0}
        assert each.beyond_chance == ()


def test_paths_that_some_trials_lack_or_that_never_changed_are_not_rated() -> None:
    trials = observations(12, 0.1)
    del trials[0][0]["loss.se_weight"]  # type: ignore[attr-defined]
    fixed = [({**values, "model.num_codewords": 8}, value) for values, value in trials]
    assert rated_paths(SPACE, fixed) == ["optim.lr"]
