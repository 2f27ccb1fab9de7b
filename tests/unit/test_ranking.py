"""Which confirmed configuration wins, and what cannot be told apart from it."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from encsearch.search.confirm.ranking import Configuration, Ranking, rank


def config(trial: int, *values: float, parameters: int = 100) -> Configuration:
    return Configuration(f"trial {trial}", trial, dict(enumerate(values, start=1)), parameters)


def baseline(name: str, *values: float) -> Configuration:
    return Configuration(name, None, dict(enumerate(values, start=1)), 50)


def names(ranking: Ranking) -> list[str]:
    return [standing.name for standing in ranking.standings]


def test_the_best_mean_wins_and_not_the_luckiest_seed() -> None:
    found = rank([config(0, 0.9, 0.1), config(1, 0.6, 0.7)])

    assert names(found) == ["trial 1", "trial 0"]
    assert found.indistinguishable == ("trial 0",)


def test_what_seeds_tell_apart_is_not_indistinguishable() -> None:
    found = rank([config(0, 0.70, 0.71, 0.72), config(1, 0.60, 0.61, 0.62), config(2, 0.71, 0.70, 0.72)])

    assert found.indistinguishable == ("trial 2",)
    lead = found.standings[2].lead
    assert (found.standings[2].name, lead and lead.mean) == ("trial 1", pytest.approx(0.1))


def test_of_those_within_one_standard_error_the_smallest_wins() -> None:
    large = config(0, 0.70, 0.72, 0.74, parameters=200)
    medium = config(1, 0.71, 0.71, 0.73, parameters=150)
    small = config(2, 0.60, 0.61, 0.62, parameters=10)

    found = rank([large, medium, small])

    assert (found.winner.name, found.best) == ("trial 1", "trial 0")
    assert found.standard_error == pytest.approx(((0.0008 + 0.0008 / 3 + 0.0002) / 6 / 3) ** 0.5)


def test_of_as_many_parameters_the_better_bound_wins() -> None:
    assert rank([config(0, 0.70, 0.72), config(1, 0.71, 0.73)]).winner.name == "trial 1"


def test_a_smaller_one_that_is_worse_with_every_seed_does_not_win() -> None:
    """Seeds differ by far more than the two do, so one standard error is wide, but each seed tells."""
    large = config(0, 0.60, 0.70, 0.80, parameters=200)
    small = config(1, 0.59, 0.691, 0.79, parameters=100)

    found = rank([large, small])

    assert found.standard_error == pytest.approx(0.0577, abs=0.001)
    assert found.winner.name == "trial 0"
    assert found.indistinguishable == ()


def test_failed_seeds_widen_the_bound() -> None:
    """A single seed of 0.72 is less sure than three of 0.715."""
    found = rank([config(0, 0.72), config(1, 0.70, 0.715, 0.73)])

    assert found.winner.name == "trial 1"
    single = found.standings[1]
    assert single.mean.interval
    assert found.winner.mean.interval
    assert single.mean.interval[0] < found.winner.mean.interval[0]


def test_with_one_seed_each_the_best_value_wins_and_nothing_is_told() -> None:
    found = rank([config(0, 0.5), config(1, 0.9, parameters=1000)])

    assert found.winner.name == "trial 1"
    assert (found.standard_error, found.freedom, found.winner.lower_bound) == (None, 0, None)
    assert found.indistinguishable == ("trial 0",)


def test_one_finalist_wins_with_its_own_interval() -> None:
    found = rank([config(3, 0.6, 0.7)])

    assert (found.winner.name, found.freedom, found.indistinguishable) == ("trial 3", 1, ())
    assert found.winner.mean.interval


def test_with_a_second_objective_fewer_parameters_do_not_decide() -> None:
    finalists = [config(0, 0.70, 0.72, parameters=200), config(1, 0.70, 0.71, parameters=100)]

    assert rank(finalists).winner.name == "trial 1"
    assert rank(finalists, minimize="parameters").winner.name == "trial 0"


def test_baselines_are_compared_and_change_nothing_about_the_winner() -> None:
    finalists = [config(0, 0.70, 0.72, parameters=200), config(1, 0.70, 0.71, parameters=100)]
    noisy = baseline("FCN", 0.1, 0.5)

    alone, beside = rank(finalists), rank(finalists, [noisy])

    assert beside.standings == alone.standings
    (fcn,) = beside.baselines
    assert fcn.lead
    assert fcn.lead.mean == pytest.approx(0.405)


def test_the_winner_of_equals_is_too_high_by_its_optimism() -> None:
    rng = np.random.default_rng(0)
    means, optimism = [], []
    for _ in range(300):
        found = rank([config(trial, *rng.normal(0, 1, 4)) for trial in range(3)])
        means.append(found.winner.mean.mean)
        optimism.append(found.optimism)

    assert np.mean(optimism) == pytest.approx(np.mean(means), abs=0.06)


def test_the_winner_of_equals_is_told_apart_from_nobody() -> None:
    """It is the winner since it is above the others, which must not count as a proof."""
    rng = np.random.default_rng(0)
    missed = {"finalists": 0, "baselines": 0}
    for _ in range(400):
        of_seed = rng.normal(0, 1, 3)
        six = [of_seed + rng.normal(0, 1, 3) for _ in range(6)]
        found = rank(
            [config(trial, *values) for trial, values in enumerate(six[:5])], [baseline("FCN", *six[5])]
        )
        missed["finalists"] += len(found.indistinguishable) < 4
        missed["baselines"] += any(s.lead is None or s.lead.tells_apart for s in found.baselines)

    assert max(missed.values()) <= 0.05 * 400


def test_equal_values_are_not_told_apart() -> None:
    found = rank([config(0, 0.5, 0.5), config(1, 0.5, 0.5)])

    assert found.indistinguishable == ("trial 1",)


def test_a_ranking_goes_through_json() -> None:
    found = rank([config(0, 0.9, 0.1), config(1, 0.6, 0.7)], [baseline("FCN", 0.3)])
    adapter = TypeAdapter(Ranking)

    assert adapter.validate_json(adapter.dump_json(found)) == found
