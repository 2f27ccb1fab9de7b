"""What the report's figures show, before it is drawn."""

import dataclasses

import numpy as np
import pytest

from encsearch.report.charts.chart import Chart, Omitted
from encsearch.report.charts.finalists import AS_GOOD, BASELINE, WINNER, WORSE, roles
from encsearch.report.charts.importance import importance_chart
from encsearch.report.charts.rungs import brackets, rung_chart
from encsearch.report.charts.search import (
    describe_forecasts,
    eta_chart,
    history,
    pareto_chart,
    spaced,
    time_unit,
)
from encsearch.report.charts.space import (
    MIN_CONTOUR_POINTS,
    Surface,
    axes_of,
    contour_chart,
    numeric_pairs,
    surface,
)
from encsearch.report.facts import rank_finalists
from encsearch.search.budget.forecast import ForecastPoint, backtest
from encsearch.search.trials import Trial
from tests.unit.summaries import SPACE, TRIALS, seeds, summary, values

NUM_SPREAD = MIN_CONTOUR_POINTS + 2


def spread(count: int = NUM_SPREAD, epochs: int = 1) -> tuple[Trial, ...]:
    """Trials all over the space, whose value is their learning rate's place."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        point = values(
            int(rng.choice([8, 16, 32, 64])), float(rng.uniform()), float(10 ** rng.uniform(-3, -1))
        )
        curve = tuple((epoch, point["optim.lr"]) for epoch in range(1, epochs + 1))
        found.append(Trial(number, point, "COMPLETE", point["optim.lr"], curve, 1.0))
    return tuple(found)


def reason(chart: Chart | Omitted) -> str:
    assert isinstance(chart, Omitted)
    return chart.reason


def test_history_climbs_over_device_seconds() -> None:
    data = history(summary())
    assert data.best == ((60, 0.4), (80, 0.4), (140, 0.5), (160, 0.5))
    assert data.ends == ((60, 1), (80, 2), (140, 3), (160, 4))
    assert data.maximum == (140, 0.5), "the failed trial's 0.9 does not count"
    assert data.confirmed == 0.45


def test_history_shows_every_trial_with_a_value_in_its_kind() -> None:
    kinds = [kind for _, _, kind in history(summary(flags={0: "changed midway"})).points]
    assert kinds == ["flagged", "pruned", "winner", "fail"]


def test_counts_of_trials_stand_apart() -> None:
    ends = [(1.0, 1), (50.0, 2), (51.0, 3), (100.0, 4)]
    assert spaced(ends) == [(50.0, 2), (100.0, 4)]
    assert spaced([(0.0, 1), (0.0, 2)]) == []


def test_rungs_tell_who_went_on_and_who_was_stopped() -> None:
    (bracket,) = brackets(summary())
    assert bracket.rungs == (1, 3)
    assert [(bracket.count(epoch), bracket.count(epoch, went_on=True)) for epoch in bracket.rungs] == [
        (4, 3),
        (2, 2),
    ]
    assert [a.number for a in bracket.arrivals if not a.went_on] == [1]


def test_a_trial_that_the_budget_ended_was_not_stopped_at_its_rung() -> None:
    ended = dataclasses.replace(TRIALS[1], reason="the wall budget is spent")
    (bracket,) = brackets(summary(trials=(TRIALS[0], ended)))
    assert all(arrival.went_on for arrival in bracket.arrivals)


def test_hyperbands_brackets_are_apart() -> None:
    """Trials are given to the two brackets in turn."""
    found = brackets(summary({"scheduler": "hyperband"}))
    assert [bracket.rungs for bracket in found] == [(1, 3)]
    arrived = {arrival.number for arrival in found[0].arrivals}
    assert arrived == {0, 2}, "trials 1 and 3 did not reach the end, the only rung of theirs"


@pytest.mark.parametrize(
    ("search", "why"),
    [
        ({"scheduler": "none"}, "no trial was to be stopped"),
        ({"scheduler": "median"}, "no rungs"),
        ({"scheduler": "none", "minimize": "parameters"}, "does not apply to two objectives"),
    ],
)
def test_without_rungs_the_figure_says_why(search: dict[str, str], why: str) -> None:
    assert why in reason(rung_chart(summary(search)))


def test_log_axis_spaces_decades_evenly() -> None:
    axis = axes_of(summary().search.space)["optim.lr"]
    assert axis.place(1e-2) == pytest.approx(0.5)
    assert [label for _, label in axis.ticks()] == ["0.001", "0.003", "0.01", "0.03", "0.1"]


def test_axis_of_choices_is_ordered_and_even_whatever_the_recipe_has() -> None:
    space = {**SPACE, "model.num_codewords": {"choice": [64, 8, 16, 32]}}
    axis = axes_of(summary({"space": space}).search.space)["model.num_codewords"]
    assert axis.ticks() == [(0.125, "8"), (0.375, "16"), (0.625, "32"), (0.875, "64")]


@pytest.mark.parametrize("ends", [(0.01, 0.012), (1e-6, 1.0), (3e-4, 3e-3), (0.01, 10.0)])
def test_log_ticks_lie_on_the_axis_and_are_few(ends: tuple[float, float]) -> None:
    space = {"optim.lr": {"loguniform": list(ends)}}
    axis = axes_of(summary({"space": space}).search.space)["optim.lr"]
    places = [place for place, _ in axis.ticks()]
    assert 2 <= len(places) <= 7
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)


def test_pairs_are_numeric_and_begin_with_codewords_se_weight_and_lr() -> None:
    space = {
        "train.precision": {"choice": ["fp32", "bf16"]},
        "optim.momentum": {"uniform": [0.5, 0.9]},
        "optim.lr": SPACE["optim.lr"],
        "loss.se_weight": SPACE["loss.se_weight"],
        "model.num_codewords": SPACE["model.num_codewords"],
    }
    pairs = numeric_pairs(axes_of(summary({"space": space}).search.space), 3)
    assert [(across.label, up.label) for across, up in pairs] == [
        ("num_codewords", "se_weight"),
        ("num_codewords", "lr (log)"),
        ("num_codewords", "momentum"),
    ]


def surface_of(trials: tuple[Trial, ...]) -> Surface:
    """Of the SE-weight and the learning rate, at the first epoch."""
    given = summary(trials=trials)
    axes = axes_of(given.search.space)
    return surface(given, (axes["loss.se_weight"], axes["optim.lr"]), 1)


def test_surface_is_interpolated_with_enough_places_only() -> None:
    assert surface_of(spread()).interpolated
    assert not surface_of(spread(MIN_CONTOUR_POINTS - 1)).interpolated


def test_places_on_one_line_span_no_surface() -> None:
    lrs = np.logspace(-3, -1, NUM_SPREAD)
    line = [
        dataclasses.replace(trial, values=values(8, float((np.log10(lr) + 3) / 2), float(lr)))
        for trial, lr in zip(spread(), lrs, strict=True)
    ]
    assert not surface_of(tuple(line)).interpolated


def test_trials_at_one_place_count_as_their_mean() -> None:
    twins = tuple(
        dataclasses.replace(TRIALS[0], number=n, curve=((1, value),)) for n, value in enumerate((0.2, 0.4))
    )
    found = surface_of(twins)
    assert len(found.places) == 1
    assert found.values == pytest.approx([0.3])


def test_pairs_that_no_trial_searched_have_no_contours() -> None:
    """Where the condition holds there is no trial: the sweep's report is written all the same."""
    encoding = {"when": {"model.context": ["encoding"]}}
    space = {
        "model.context": {"choice": ["encoding", "none"]},
        "model.num_codewords": {"choice": [8, 16], **encoding},
        "loss.se_weight": {"uniform": [0.0, 1.0], **encoding},
    }
    trials = tuple(dataclasses.replace(trial, values={"model.context": "none"}) for trial in TRIALS)

    chart = contour_chart(summary({"space": space}, trials=trials))

    assert isinstance(chart, Omitted)
    assert chart.reason == "no trial searched two of these paths at once"


def test_contours_compare_trials_at_one_epoch() -> None:
    chart = contour_chart(summary())
    assert isinstance(chart, Chart)
    assert "at epoch 1, the last that most of them reached" in chart.caption
    assert "too few for an interpolation" in chart.caption


def test_importances_need_enough_trials() -> None:
    assert "2 paths need 10 trials at one epoch, and 3 can be used" in reason(importance_chart(summary()))


def test_pareto_needs_a_second_objective() -> None:
    assert "one objective" in reason(pareto_chart(summary()))
    two = summary({"minimize": "parameters", "scheduler": "none"})
    assert "no trial has both" in reason(pareto_chart(two))
    trials = tuple(dataclasses.replace(trial, minimized=1e6) for trial in TRIALS)
    assert isinstance(pareto_chart(dataclasses.replace(two, trials=trials)), Chart)


def test_finalists_are_marked_by_what_they_are_to_the_winner() -> None:
    rows = (
        *seeds(0.45, 0.46, 0.47),
        *seeds(0.44, 0.47, 0.46, trial=0),
        *seeds(0.20, 0.21, 0.22, trial=1),
        *seeds(0.1, 0.2, trial=None, label="FCN"),
    )
    ranking = rank_finalists(summary(finalists=rows))
    assert ranking
    assert {standing.name: role for standing, role in roles(ranking)} == {
        "trial 2": WINNER,
        "trial 0": AS_GOOD,
        "trial 1": WORSE,
        "FCN": BASELINE,
    }


def test_one_seed_each_is_not_told_apart() -> None:
    ranking = rank_finalists(summary(finalists=(*seeds(0.45), *seeds(0.1, trial=0))))
    assert ranking
    assert [role for _, role in roles(ranking)] == [WINNER, AS_GOOD]


def test_forecasts_are_compared_with_the_end() -> None:
    points = (ForecastPoint(0.0, 50.0, 80.0, 90.0), ForecastPoint(60.0, 80.0, 110.0, 120.0))
    tested = backtest(points, 100.0)
    assert tested
    assert "-20 % at the start, -20 % at 25 %, -20 % at 50 % and +10 % at 75 %" in describe_forecasts(tested)
    assert "within 50 % of the intervals" in describe_forecasts(tested)
    assert "no forecasts" in reason(eta_chart(summary()))


@pytest.mark.parametrize(("seconds", "name"), [(60, "seconds"), (3600, "minutes"), (36000, "hours")])
def test_forecasts_have_a_readable_unit(seconds: float, name: str) -> None:
    assert time_unit(seconds)[0] == name
