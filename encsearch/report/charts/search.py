"""Charts of the whole search: cost, two objectives, learning curves, and the forecasts of its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from encsearch.config import Minimized
from encsearch.report.charts.chart import (
    DASHED,
    Chart,
    Omitted,
    colour_of,
    kind_handles,
    legend_below,
    plot_trials,
    show_percent,
)
from encsearch.report.facts import Kind, classify_trial, comparable, spent_until, valued
from encsearch.report.summary import SweepSummary
from encsearch.search.budget.forecast import Backtest, ForecastPoint, backtest
from encsearch.search.confirm.finalists import pareto_front
from encsearch.search.trials import Trial
from encsearch.style import Palette
from encsearch.text import format_count, format_list, format_share

MAX_COUNTS = 10
"""Most labels of the upper axis, which counts trials."""

MIN_FORECASTS = 2
Point = tuple[float, float, Kind]


@dataclass(frozen=True)
class History:
    """`points` are (device seconds, value, kind) at the end of each trial, `best` the best so far.

    `ends` are (device seconds, trials until then). `maximum` is the search's own, which is biased upwards;
    `confirmed` the mean of the winner's trainings from scratch.
    """

    points: tuple[Point, ...]
    best: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, int], ...]
    maximum: tuple[float, float] | None
    confirmed: float | None


def history_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "The search against its cost"
    if not valued(summary.trials):
        return Omitted(title, "no trial has a value")
    data, candidates = history(summary), comparable(summary.trials, summary.excluded)
    unit = f"{summary.cost_unit}-seconds"
    values = format_count(len(candidates), "noisy value")
    caption = (
        f"Each mark is a trial, at the {unit} that it and all trials before it took, in the order of their "
        "numbers. A trial that was stopped early shows its best value until then. The ring marks the "
        f"search's maximum: the largest of {values}, so too high on average."
    )
    return Chart("history.png", title, caption, 4.4, partial(_draw_history, data, summary.metric, unit))


def history(summary: SweepSummary) -> History:
    spent = spent_until(summary)
    found = comparable(summary.trials, summary.excluded)
    candidates = [(spent[trial.number], value) for value, trial in found]
    best_so_far = list(accumulate(candidates, lambda best, new: (new[0], max(best[1], new[1]))))
    ends = tuple((end, count) for count, end in enumerate(spent.values(), start=1))
    confirmed = [
        row.value for row in summary.finalists if row.trial is not None and row.trial == summary.winner
    ]
    return History(
        points=tuple(
            (spent[t.number], value, classify_trial(t, summary)) for value, t in valued(summary.trials)
        ),
        best=(*best_so_far, (ends[-1][0], best_so_far[-1][1])) if best_so_far else (),
        ends=ends,
        maximum=max(candidates, key=lambda point: point[1], default=None),
        confirmed=fmean(confirmed) if confirmed else None,
    )


def spaced(ends: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """The ends with room for a label: at least 1 / MAX_COUNTS of the axis after the one before."""
    room = ends[-1][0] / MAX_COUNTS
    shown: list[tuple[float, int]] = []
    for end, count in ends:
        if room and end - (shown[-1][0] if shown else 0.0) >= room:
            shown.append((end, count))
    return shown


def pareto_chart(summary: SweepSummary) -> Chart | Omitted:
    """The front of two objectives."""
    title = "What the metric costs: the Pareto front"
    minimized = summary.search.minimize
    if not minimized:
        return Omitted(title, "the sweep has one objective (search.minimize is not set)")
    trials = [trial for _, trial in comparable(summary.trials, summary.excluded)]
    label, unit = _axis(minimized)
    points, front = _points(summary, trials, unit), _points(summary, pareto_front(trials), unit)
    if not points:
        return Omitted(title, "no trial has both figures")
    caption = (
        "No trial is better than one on the line in one figure and as good in the other; which of them to "
        "take is your choice. Early stopping compares one figure and does not "
        "apply to two objectives."
    )
    draw = partial(_draw_front, points, sorted(front), summary.metric, label)
    return Chart("pareto.png", title, caption, 4.2, draw)


def curves_chart(summary: SweepSummary) -> Chart | Omitted:
    """The metric of each trial by epoch."""
    title = "Learning curves"
    trials = [trial for trial in summary.trials if trial.curve]
    if not trials:
        return Omitted(title, "no trial reported an epoch")
    # The winner is drawn last, over the others.
    trials.sort(key=lambda trial: trial.number == summary.winner)
    curves = [(trial, classify_trial(trial, summary)) for trial in trials]
    caption = "A mark ends the curve of a trial that did not run to the end, and stands on the winner's."
    return Chart("curves.png", title, caption, 4.4, partial(_draw_curves, curves, summary.metric))


def eta_chart(summary: SweepSummary) -> Chart | Omitted:
    """The forecasts made during the sweep, against its true end."""
    title = "How good the forecasts were"
    points, ended_s = summary.forecasts, summary.wall_seconds
    if len(points) < MIN_FORECASTS or ended_s is None:
        return Omitted(title, "no forecasts of the end were recorded")
    tested = backtest(points, ended_s)
    assert tested
    return Chart("forecasts.png", title, describe_forecasts(tested), 3.6, partial(_draw_eta, points, ended_s))


def describe_forecasts(tested: Backtest) -> str:
    errors = [
        f"{format_share(error, signed=True)} {f'at {format_share(share)}' if share else 'at the start'}"
        for share, error in tested.errors
    ]
    return (
        f"The median was off by {format_list(errors)} of the sweep (positive: it ended sooner). The "
        f"true end was within {format_share(tested.held)} of the intervals, each of which should contain it "
        "with 80 %."
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """A readable unit for a duration, and its length in seconds."""
    if seconds < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _axis(minimized: Minimized) -> tuple[str, float]:
    """The label, and the divisor that converts the trials' figures to its unit."""
    match minimized:
        case "parameters":
            return "trainable parameters, millions", 1e6
        case "latency_ms":
            return "latency, ms an image", 1.0


def _points(summary: SweepSummary, trials: Sequence[Trial], unit: float) -> list[Point]:
    """(minimised in `unit`, metric, kind) of the trials that ran to the end and so have both."""
    return [
        (trial.minimized / unit, trial.value, classify_trial(trial, summary))
        for trial in trials
        if trial.minimized is not None and trial.value is not None and trial.state == "COMPLETE"
    ]


def _draw_history(data: History, metric: str, unit: str, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    handles = []
    if data.best:
        xs, ys = zip(*data.best, strict=True)
        (line,) = axes.step(xs, ys, where="post", color=palette.muted, linewidth=1.6, label="best so far")
        handles.append(line)
    if data.confirmed is not None:
        line = axes.axhline(
            data.confirmed,
            color=palette.hues["green"],
            linestyle=DASHED,
            label="winner, trained again (mean)",
        )
        handles.append(line)
    plot_trials(axes, data.points, palette)
    if data.maximum:
        handles.append(_ring(axes, data.maximum, palette))
    axes.set_xlabel(f"{unit} spent in trials")
    show_percent(axes.yaxis, metric)
    axes.set_xlim(left=0)
    _count_trials(axes, data.ends)
    legend_below(figure, [*kind_handles((kind for _, _, kind in data.points), palette), *handles])


def _ring(axes: Axes, point: tuple[float, float], palette: Palette) -> Line2D:
    """Draw a ring, and return its legend entry."""
    style: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "markerfacecolor": "none",
        "markeredgecolor": palette.hues["purple"],
        "markeredgewidth": 1.8,
    }
    axes.plot(*point, markersize=19, clip_on=False, zorder=6, **style)
    return Line2D([], [], markersize=11, label="maximum of the search: biased upwards", **style)


def _count_trials(axes: Axes, ends: tuple[tuple[float, int], ...]) -> None:
    """The number of trials along the top, which says less than the cost below."""
    shown = spaced(ends)
    top = axes.secondary_xaxis("top")
    top.set_xticks([end for end, _ in shown], [format_count(count) for _, count in shown])
    top.set_xlabel("trials ended", fontsize=9)
    top.tick_params(length=3, labelsize=8.5)
    top.spines["top"].set_visible(False)


def _draw_front(
    points: list[Point], front: list[Point], metric: str, label: str, figure: Figure, palette: Palette
) -> None:
    axes = figure.add_subplot()
    xs, ys = [x for x, _, _ in front], [y for _, y, _ in front]
    colour = palette.hues["purple"]
    # Beyond its points a front is only what they dominate: steps, not slopes.
    axes.step(xs, ys, where="post", color=colour, linewidth=2)
    axes.plot(xs, ys, linestyle="none", marker="o", markersize=13, markerfacecolor="none", color=colour)
    plot_trials(axes, points, palette)
    axes.set_xlabel(label)
    show_percent(axes.yaxis, metric)
    line = Line2D([], [], color=colour, linewidth=2, marker="o", markerfacecolor="none", label="Pareto front")
    legend_below(figure, [*kind_handles((kind for _, _, kind in points), palette), line])


def _draw_curves(curves: list[tuple[Trial, Kind]], metric: str, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    for kind in dict.fromkeys(kind for _, kind in curves):
        is_winner = kind == "winner"
        axes.add_collection(
            LineCollection(
                [trial.curve for trial, each in curves if each == kind],
                colors=colour_of(kind, palette),
                linewidths=2.6 if is_winner else 1.3,
                linestyles="-" if kind in ("winner", "complete") else [DASHED],
                alpha=1 if is_winner else 0.75,
                zorder=3 if is_winner else 2,
            )
        )
    ends = [(*trial.curve[-1], kind) for trial, kind in curves if kind != "complete"]
    plot_trials(axes, ends, palette, scale=0.85)
    axes.autoscale_view()
    axes.set_xlabel("epoch")
    show_percent(axes.yaxis, metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, kind_handles((kind for _, kind in curves), palette))


def _draw_eta(points: Sequence[ForecastPoint], ended_s: float, figure: Figure, palette: Palette) -> None:
    name, unit = time_unit(ended_s)
    axes = figure.add_subplot()
    xs = [point.elapsed_s / unit for point in points]
    low, high = [point.low_s / unit for point in points], [point.high_s / unit for point in points]
    colour = palette.hues["blue"]
    axes.fill_between(
        xs, low, high, color=colour, alpha=0.22, linewidth=0, label="80 % interval of the forecast"
    )
    median = [point.median_s / unit for point in points]
    axes.plot(xs, median, color=colour, linewidth=2, label="median forecast")
    axes.axhline(ended_s / unit, color=palette.hues["green"], linestyle=DASHED, label="the true end")
    axes.set_xlim(0, ended_s / unit)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{name} since the start")
    axes.set_ylabel(f"forecast end, {name}")
    figure.legend(loc="outside lower center", ncols=3)
