"""The front of two objectives."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from encsearch.report.charts.style import (
    Chart,
    Omitted,
    Palette,
    kind_handles,
    legend_below,
    plot_trials,
    show_percent,
)
from encsearch.report.facts import Kind, comparable, kind_of
from encsearch.report.summary import SweepSummary
from encsearch.search.confirm.finalists import pareto_front
from encsearch.search.trials import TrialRecord

Point = tuple[float, float, Kind]

MINIMIZED_LABELS = {"parameters": "trainable parameters, millions", "latency_ms": "latency, ms an image"}
PARAMETERS_A_MILLION = 1e6


def pareto_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "What the metric costs: the Pareto front"
    minimized = summary.search.minimize
    if not minimized:
        return Omitted(title, "the sweep has one objective (search.minimize is not set)")
    trials = [trial for _, trial in comparable(summary)]
    unit = PARAMETERS_A_MILLION if minimized == "parameters" else 1.0
    points, front = _points(summary, trials, unit), _points(summary, pareto_front(trials), unit)
    if not points:
        return Omitted(title, "no trial has both figures")
    caption = (
        "No trial is better than one on the line in one figure and as good in the other; which of them to "
        "take is for people to choose. Early stopping compares one figure and does not "
        "apply to two objectives."
    )
    return Chart(
        "pareto.png",
        title,
        caption,
        4.2,
        partial(_draw_front, points, sorted(front), summary.metric, MINIMIZED_LABELS[minimized]),
    )


def _points(summary: SweepSummary, trials: Sequence[TrialRecord], unit: float) -> list[Point]:
    """(minimised in `unit`, metric, kind) of the trials that ran to the end and so have both."""
    return [
        (trial.minimized / unit, trial.value, kind_of(trial, summary))
        for trial in trials
        if trial.minimized is not None and trial.value is not None and trial.state == "COMPLETE"
    ]


def _draw_front(
    points: list[Point], front: list[Point], metric: str, label: str, figure: Figure, palette: Palette
) -> None:
    axes = figure.add_subplot()
    xs, ys = [x for x, _, _ in front], [y for _, y, _ in front]
    # Beyond its points a front is only what they dominate: steps, not slopes.
    axes.step(xs, ys, where="post", color=palette.accent, linewidth=2)
    axes.plot(
        xs, ys, linestyle="none", marker="o", markersize=13, markerfacecolor="none", color=palette.accent
    )
    plot_trials(axes, points, palette)
    axes.set_xlabel(label)
    show_percent(axes.yaxis, metric)
    line = Line2D(
        [], [], color=palette.accent, linewidth=2, marker="o", markerfacecolor="none", label="Pareto front"
    )
    legend_below(figure, [*kind_handles((kind for _, _, kind in points), palette), line])
