"""The search against what it cost, and the trials' learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from encsearch.report.charts.style import (
    Chart,
    Omitted,
    Palette,
    kind_handles,
    legend_below,
    plot_trials,
    show_percent,
)
from encsearch.report.facts import (
    Kind,
    best_of_search,
    comparable,
    kind_of,
    spent_until,
    valued,
)
from encsearch.report.summary import SweepSummary
from encsearch.search.trials import TrialRecord
from encsearch.text import format_count

MAX_COUNTS = 10
"""Labels of the upper axis, which counts trials."""


@dataclass(frozen=True)
class History:
    """`points` are (device seconds, value, kind) at the end of each trial, `best` the best so far.

    `ends` are (device seconds, trials until then). `maximum` is the search's own, which is biased upwards;
    `confirmed` the mean of the winner's trainings from scratch.
    """

    points: tuple[tuple[float, float, Kind], ...]
    best: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, int], ...]
    maximum: tuple[float, float] | None
    confirmed: float | None


def history_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "The search against its cost"
    if not valued(summary.trials):
        return Omitted(title, "no trial has a value")
    data = history(summary)
    unit = f"{summary.cost_unit}-seconds"
    values = format_count(len(comparable(summary)), "noisy value")
    caption = (
        f"Each mark is a trial, at the {unit} that all trials until its end had taken, in the order of their "
        "numbers. A trial that was stopped early shows its best until then. The ringed one is the search's "
        f"maximum: the largest of {values}, so too high on average."
    )
    return Chart("history.png", title, caption, 4.4, partial(_draw_history, data, summary.metric, unit))


def history(summary: SweepSummary) -> History:
    spent = spent_until(summary)
    candidates = [(spent[trial.number], value) for value, trial in comparable(summary)]
    records = list(accumulate(candidates, lambda best, new: (new[0], max(best[1], new[1]))))
    ends = tuple((end, count) for count, end in enumerate(spent.values(), start=1))
    maximum = best_of_search(summary)
    confirmed = [
        row.value for row in summary.finalists if row.trial is not None and row.trial == summary.winner
    ]
    return History(
        points=tuple((spent[t.number], value, kind_of(t, summary)) for value, t in valued(summary.trials)),
        best=(*records, (ends[-1][0], records[-1][1])) if records else (),
        ends=ends,
        maximum=(spent[maximum.number], maximum.value) if maximum and maximum.value is not None else None,
        confirmed=fmean(confirmed) if confirmed else None,
    )


def spaced(ends: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Those of the ends that have room for a label: a MAX_COUNTS-th of the whole after the one before."""
    room = ends[-1][0] / MAX_COUNTS
    shown: list[tuple[float, int]] = []
    for end, count in ends:
        if room and end - (shown[-1][0] if shown else 0.0) >= room:
            shown.append((end, count))
    return shown


def curves_chart(summary: SweepSummary) -> Chart | Omitted:
    """The metric of each trial by epoch."""
    title = "Learning curves"
    trials = [trial for trial in summary.trials if trial.curve]
    if not trials:
        return Omitted(title, "no trial reported an epoch")
    # The winner is drawn last, over the others.
    trials.sort(key=lambda trial: trial.number == summary.winner)
    curves = [(trial, kind_of(trial, summary)) for trial in trials]
    caption = "A mark ends the curve of a trial that did not run to the end, and stands on the winner's."
    return Chart("curves.png", title, caption, 4.4, partial(_draw_curves, curves, summary.metric))


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
            color=palette.marks["winner"],
            linestyle=(0, (5, 3)),
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
    """Draw it, and return its entry of the legend."""
    style: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "markerfacecolor": "none",
        "markeredgecolor": palette.accent,
        "markeredgewidth": 1.8,
    }
    axes.plot(*point, markersize=19, clip_on=False, zorder=6, **style)
    return Line2D([], [], markersize=11, label="maximum of the search: biased upwards", **style)


def _count_trials(axes: Axes, ends: tuple[tuple[float, int], ...]) -> None:
    """The number of trials along the top, which tells less than the cost below."""
    shown = spaced(ends)
    top = axes.secondary_xaxis("top")
    top.set_xticks([end for end, _ in shown], [format_count(count) for _, count in shown])
    top.set_xlabel("trials ended", fontsize=9)
    top.tick_params(length=3, labelsize=8.5)
    top.spines["top"].set_visible(False)


def _draw_curves(
    curves: list[tuple[TrialRecord, Kind]], metric: str, figure: Figure, palette: Palette
) -> None:
    axes = figure.add_subplot()
    for trial, kind in curves:
        epochs, values = zip(*trial.curve, strict=True)
        is_winner = kind == "winner"
        axes.plot(
            epochs,
            values,
            color=palette.marks[kind],
            linewidth=2.6 if is_winner else 1.3,
            linestyle="-" if kind in ("winner", "complete") else (0, (4, 2)),
            alpha=1 if is_winner else 0.75,
            zorder=3 if is_winner else 2,
        )
        if kind != "complete":
            plot_trials(axes, [(*trial.curve[-1], kind)], palette, scale=0.85)
    axes.set_xlabel("epoch")
    show_percent(axes.yaxis, metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, kind_handles((kind for _, kind in curves), palette))
