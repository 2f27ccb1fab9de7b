"""The front of two objectives."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from encsearch.config import Minimized
from encsearch.report.charts.style import Chart, Omitted, Palette, kind_handles, legend_below, plot_trials
from encsearch.report.facts import Kind, comparable, kind_of
from encsearch.report.summary import SweepSummary
from encsearch.search.confirm.finalists import pareto_front
from encsearch.search.trials import TrialRecord

Point = tuple[float, float, Kind]


def pareto_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "What the metric costs: the Pareto front"
    minimized = summary.search.minimize
    if not minimized:
        return Omitted(title, "the sweep has one objective (search.minimize is not set)")
    trials = [trial for _, trial in comparable(summary)]
    label, unit = _axis(minimized)
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
        partial(_draw_front, points, sorted(front), summary.metric, label),
    )


def _axis(minimized: Minimized) -> tuple[str, float]:
    """The label, and the unit as a number of what the trials hold."""
    match minimized:
        case "parameters":
            return "trainable parameters, millions", 1e6
        case "latency_ms":
            return "latency, ms an image", 1.0


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
    axes.set_ylabel(metric)
    line = Line2D(
        [], [], color=palette.accent, linewidth=2, marker="o", markerfacecolor="none", label="Pareto front"
    )
    legend_below(figure, [*kind_handles((kind for _, _, kind in points), palette), line])
