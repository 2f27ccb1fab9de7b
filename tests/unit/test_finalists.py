"""Who is confirmed, with what, and who wins."""

from pathlib import Path

import pytest

from encsearch.config import Config, with_values
from encsearch.records import Report
from encsearch.runner.result import RunResult, best_report
from encsearch.search.finalists import Finalist, finalist_config, pick_finalists, pick_winner
from encsearch.search.trials import TrialRecord


def record(number: int, state: str, values: list[float]) -> TrialRecord:
    curve = tuple(enumerate(values, start=1))
    return TrialRecord(number, {}, state, max(values, default=None), curve, 1.0, None)


def finalist(trial: int, value: float, config: Config) -> Finalist:
    report = Report(epoch=1, step=1, seconds=1.0, metrics={"mIoU": value})
    return Finalist(f"{trial}-{value}", trial, config, RunResult((report,), report, Path(), 1.0))


def test_a_full_trial_is_preferred_to_a_pruned_one_that_looked_better() -> None:
    records = [
        record(0, "PRUNED", [0.9]),
        record(1, "COMPLETE", [0.1, 0.5, 0.6]),
        record(2, "COMPLETE", [0.1, 0.5, 0.7]),
        record(3, "FAIL", []),
    ]

    assert [r.number for r in pick_finalists(records, 1)] == [2]
    assert [r.number for r in pick_finalists(records, 9)] == [2, 1, 0]


def test_a_finalist_trains_at_the_trials_values_with_its_own_seed_and_workers(toy_config: Config) -> None:
    search = {
        "space": {"optim.lr": {"uniform": [0.1, 0.2]}},
        "confirm": {"num_workers": 2, "epochs": 7, "seeds": [5]},
    }
    config = with_values(toy_config, {"search": search})

    confirmed = finalist_config(config, {"optim.lr": 0.15}, seed=5)

    assert confirmed.search is None
    assert (confirmed.optim.lr, confirmed.train.seed) == (0.15, 5)
    assert (confirmed.scaling.num_workers, confirmed.train.epochs) == (2, 7)


def test_the_winner_is_the_best_mean_over_seeds_not_the_luckiest_seed(toy_config: Config) -> None:
    finalists = [finalist(0, v, toy_config) for v in (0.9, 0.1)] + [
        finalist(1, v, toy_config) for v in (0.6, 0.7)
    ]

    won = pick_winner(finalists)

    assert (won.trial, won.value) == (1, 0.7)


def test_the_best_report_is_the_earliest_of_equals() -> None:
    reports = tuple(Report(e, e, 1.0, {"mIoU": v}) for e, v in ((1, 0.2), (2, 0.5), (3, 0.5)))

    assert best_report(reports, "mIoU").epoch == 2
    with pytest.raises(KeyError):
        best_report(reports, "pixAcc")
