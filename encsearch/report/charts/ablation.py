"""Charts of an ablation as PNG: the rows, and the paper's curves over K and alpha.

Every chart shows means with their 95 % intervals, and each seed as a thin mark.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from encsearch.report.charts.chart import show_percent
from encsearch.search.ablation.plan import FCN, PointFigures
from encsearch.search.statistics import Estimate
from encsearch.style import LIGHT, Hue, look
from encsearch.text import format_count, format_param

HUES: tuple[Hue, ...] = ("blue", "orange", "green", "purple")
SEEDS: dict[str, Any] = {"s": 70, "color": LIGHT.ink, "linewidths": 1, "zorder": 3}


@look(LIGHT)
def draw_rows(rows: Sequence[PointFigures], metric: str, target: Path) -> None:
    """Draw one line for each row, the first on top, with a point for each budget."""
    labels = list(dict.fromkeys(figures.point.label for figures in rows))
    budgets = sorted({figures.point.epochs for figures in rows})
    step = 0.6 / len(budgets)
    figure = Figure(figsize=(7.5, 1.4 + len(labels) * (0.3 + 0.12 * len(budgets))))
    axes = figure.add_subplot()
    for index, epochs in enumerate(budgets):
        of_budget = [figures for figures in rows if figures.point.epochs == epochs]
        shift = (index - (len(budgets) - 1) / 2) * step
        heights = [labels.index(figures.point.label) + shift for figures in of_budget]
        colour = LIGHT.hues[HUES[index % len(HUES)]]
        estimates = [figures.estimates[metric] for figures in of_budget]
        axes.errorbar(
            [estimate.mean for estimate in estimates],
            heights,
            xerr=_half_widths(estimates),
            fmt="o",
            color=colour,
            capsize=3,
            label=format_count(epochs, "epoch"),
        )
        for estimate, height in zip(estimates, heights, strict=True):
            axes.scatter(estimate.values, [height] * len(estimate.values), marker="|", **SEEDS)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    show_percent(axes.xaxis, metric)
    axes.set_title("mean, 95 % interval, and each seed", fontsize=10)
    axes.grid(False, axis="y")
    if len(budgets) > 1:
        axes.legend(loc="best")
    figure.savefig(target)


@look(LIGHT)
def draw_curve(
    curve: Sequence[PointFigures],
    rows: Sequence[PointFigures],
    metric: str,
    x_label: str,
    zero_label: str,
    target: Path,
) -> None:
    """Draw means over x on a log2 axis; x = 0, which such an axis cannot show, stands apart on its left.

    FCN at the same budget, if it is among the rows, is a dashed line.
    """
    positive = [figures for figures in curve if figures.point.x > 0]
    zero_at = min((figures.point.x for figures in positive), default=1.0) / 2
    figure = Figure(figsize=(6.5, 4))
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    _draw_points(axes, positive, [f.point.x for f in positive], metric, "o-", "white")
    zeros = [figures for figures in curve if figures.point.x == 0]
    _draw_points(axes, zeros, [zero_at] * len(zeros), metric, "s", LIGHT.hues["blue"])
    for fcn in rows:
        if (fcn.point.label, fcn.point.epochs) == (FCN, curve[0].point.epochs):
            axes.axhline(fcn.estimates[metric].mean, color=LIGHT.muted, linestyle="--", label=FCN)
            axes.legend(loc="best")
    ticks = [zero_at] * len(zeros) + [figures.point.x for figures in positive]
    axes.set_xticks(ticks, [zero_label] * len(zeros) + [format_param(f.point.x) for f in positive])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x_label)
    show_percent(axes.yaxis, metric)
    budget = format_count(curve[0].point.epochs, "epoch")
    axes.set_title(f"{budget}; mean, 95 % interval, and each seed", fontsize=10)
    figure.savefig(target)


def _draw_points(
    axes: Axes, curve: Sequence[PointFigures], xs: Sequence[float], metric: str, style: str, fill: str
) -> None:
    estimates = [figures.estimates[metric] for figures in curve]
    means = [estimate.mean for estimate in estimates]
    colour = LIGHT.hues["blue"]
    axes.errorbar(
        xs, means, yerr=_half_widths(estimates), fmt=style, color=colour, markerfacecolor=fill, capsize=3
    )
    for x, estimate in zip(xs, estimates, strict=True):
        axes.scatter([x] * len(estimate.values), estimate.values, marker="_", **SEEDS)


def _half_widths(estimates: Sequence[Estimate]) -> list[float]:
    """0 where one seed gives no interval."""
    return [e.interval[1] - e.mean if e.interval else 0.0 for e in estimates]
