"""Who is confirmed, with what, and what is kept of it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from encsearch.config import Config, ConfirmConfig, with_values
from encsearch.files import append_line, read_lines, to_object
from encsearch.reports import REPORTS_FILE, Report, TrainingResult, append, best_report
from encsearch.search.confirm.finalists import (
    Finalist,
    FinalistLine,
    finalist_config,
    from_line,
    group_trainings,
    pareto_front,
    pick_finalists,
    representative,
    to_line,
)
from encsearch.search.trials import Trial


def trial(
    number: int, state: str, curve: list[float], values: Mapping[str, Any] | None = None, **more: Any
) -> Trial:
    """Its values are unlike those of the others unless they are given."""
    reports = tuple(enumerate(curve, start=1))
    values = {"optim.lr": number} if values is None else values
    return Trial(number, values, state, max(curve, default=None), reports, 1.0, **more)


def finalist(config: Config, value: float, trial: int | None = 0, seed: int = 1) -> Finalist:
    report = Report(epoch=1, step=1, seconds=1.0, metrics={"mIoU": value})
    result = TrainingResult((report,), report, Path(), 1.0)
    return Finalist(f"{trial}-{seed}", trial, with_values(config, {"train.seed": seed}), result, 100)


def test_a_full_trial_is_preferred_to_a_pruned_one_that_looked_better() -> None:
    trials = [
        trial(0, "PRUNED", [0.9]),
        trial(1, "COMPLETE", [0.1, 0.5, 0.6]),
        trial(2, "COMPLETE", [0.1, 0.5, 0.7]),
        trial(3, "FAIL", []),
    ]

    assert [r.number for r in pick_finalists(trials, 1)] == [2]
    assert [r.number for r in pick_finalists(trials, 9)] == [2, 1, 0]


def test_a_trial_that_ended_itself_is_compared_with_those_of_all_epochs() -> None:
    trials = [
        trial(0, "COMPLETE", [0.1, 0.8, 0.7]),  # by train.early_stop
        trial(1, "COMPLETE", [0.1, 0.5, 0.6, 0.7]),
        trial(2, "PRUNED", [0.9, 0.9, 0.9]),
    ]

    assert [r.number for r in pick_finalists(trials, 9)] == [0, 1, 2]


def test_trials_with_the_same_values_count_with_their_mean() -> None:
    lucky, other = {"optim.lr": 0.1}, {"optim.lr": 0.2}
    trials = [
        trial(0, "COMPLETE", [0.9], lucky),
        trial(1, "COMPLETE", [0.5], lucky, repeat=1),
        trial(2, "COMPLETE", [0.8], other),
    ]

    assert [r.number for r in pick_finalists(trials, 2)] == [2, 0]


def test_a_full_trial_whose_last_figures_were_not_finite_is_still_a_full_one() -> None:
    trials = [trial(0, "PRUNED", [0.5, 0.5, 0.5]), trial(1, "COMPLETE", [0.5, 0.6])]

    assert [r.number for r in pick_finalists(trials, 1)] == [1]


def test_a_finalist_trains_at_the_trials_values_with_its_own_seed_and_workers(toy_config: Config) -> None:
    search = {
        "space": {"optim.lr": {"uniform": [0.1, 0.2]}},
        "confirm": {"num_workers": 2, "epochs": 7, "seeds": [5]},
    }
    config = with_values(toy_config, {"search": search})
    assert config.search

    confirmed = finalist_config(config, {"optim.lr": 0.15}, 5, config.search.confirm)

    assert confirmed.search is None
    assert (confirmed.optim.lr, confirmed.train.seed) == (0.15, 5)
    assert (confirmed.scaling.num_workers, confirmed.train.epochs) == (2, 7)


def test_a_plan_that_a_budget_reduced_is_followed(toy_config: Config) -> None:
    confirmed = finalist_config(toy_config, {}, 5, ConfirmConfig(epochs=1))

    assert (confirmed.train.epochs, confirmed.scaling.num_workers) == (1, toy_config.scaling.num_workers)


def test_refused_failed_and_excluded_trials_are_not_confirmed() -> None:
    trials = [
        trial(0, "PRUNED", [0.9], refused=True),
        trial(1, "FAIL", [0.9]),
        trial(2, "RUNNING", [0.9]),
        trial(3, "COMPLETE", [0.9]),
        trial(4, "COMPLETE", [0.5]),
    ]

    assert [r.number for r in pick_finalists(trials, 9, excluded={3})] == [4]


def test_equal_configurations_are_confirmed_once() -> None:
    """As a flagged trial and its repetition are."""
    trials = [trial(n, "COMPLETE", [0.5 + n / 10], {"optim.lr": 0.1}) for n in (0, 1)]
    trials.append(trial(2, "COMPLETE", [0.1]))

    assert [r.number for r in pick_finalists(trials, 2)] == [1, 2]


def test_with_two_objectives_the_front_is_confirmed_the_best_metric_first() -> None:
    trials = [
        trial(0, "COMPLETE", [0.5], minimized=10),
        trial(1, "COMPLETE", [0.8], minimized=30),
        trial(2, "COMPLETE", [0.7], minimized=30),  # beaten by 1
        trial(3, "COMPLETE", [0.5], minimized=20),  # beaten by 0
        trial(4, "COMPLETE", [0.8], minimized=30),  # as good as 1
        trial(5, "PRUNED", [0.9], minimized=5),  # did not run to the end
    ]

    assert [r.number for r in pareto_front(trials)] == [0, 1, 4]
    assert [r.number for r in pick_finalists(trials, 9)] == [1, 4, 0]
    assert [r.number for r in pick_finalists(trials, 1)] == [1]


def test_trainings_of_one_trial_or_baseline_are_one_configuration(toy_config: Config) -> None:
    fcn = with_values(toy_config, {"model.context": "none"})
    found = group_trainings(
        [
            finalist(toy_config, 0.5, trial=3, seed=1),
            finalist(toy_config, 0.6, trial=3, seed=2),
            finalist(fcn, 0.4, trial=None, seed=1),
        ]
    )

    assert [(c.name, c.trial, c.values) for c in found] == [
        ("trial 3", 3, {1: 0.5, 2: 0.6}),
        ("FCN", None, {1: 0.4}),
    ]


@pytest.mark.parametrize(("values", "median"), [([0.9, 0.1, 0.5], 0.5), ([0.9, 0.1], 0.1), ([0.3], 0.3)])
def test_the_median_stands_for_a_configuration_and_not_the_best_seed(
    toy_config: Config, values: list[float], median: float
) -> None:
    trainings = [finalist(toy_config, value, seed=seed) for seed, value in enumerate(values)]

    assert representative(trainings).value == median


def test_a_training_is_rebuilt_from_its_line_wherever_the_folder_is(
    toy_config: Config, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    reports = tuple(Report(e, 3 * e, 1.5, {"mIoU": e / 10}, {"red": 0.5}, ((1, 2), (3, 4))) for e in (1, 2))
    for report in reports:
        (before / "trial7-seed2").mkdir(parents=True, exist_ok=True)
        append(before / "trial7-seed2" / REPORTS_FILE, report)
    checkpoint = before / "trial7-seed2" / "ray" / "checkpoint_1"
    config = with_values(toy_config, {"train.seed": 2})
    trained = Finalist("trial7-seed2", 7, config, TrainingResult(reports, reports[1], checkpoint, 4.0), 1234)

    append_line(before / "finalists.jsonl", asdict(to_line(trained, before)))
    before.rename(after)
    (line,) = read_lines(after / "finalists.jsonl")
    found = from_line(to_object(FinalistLine, line, after), config, after)

    assert found.result.best_checkpoint == after / "trial7-seed2" / "ray" / "checkpoint_1"
    assert (found.name, found.trial, found.seed, found.value) == ("trial7-seed2", 7, 2, 0.2)
    assert (found.parameters, found.result.seconds, found.result.reports) == (1234, 4.0, reports)


def test_the_best_report_is_the_earliest_of_equals() -> None:
    reports = tuple(Report(e, e, 1.0, {"mIoU": v}) for e, v in ((1, 0.2), (2, 0.5), (3, 0.5)))

    assert best_report(reports, "mIoU").epoch == 2
    with pytest.raises(KeyError):
        best_report(reports, "pixAcc")
