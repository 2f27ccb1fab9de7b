"""The searched paths: all at once, one by one, and two at a time.

The charts of optuna.visualization.matplotlib (5.0) do not show how a trial ended, which one won, where a
trial did not search a path and which part of the space is guessed, and on dark paper they are unreadable.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from encsearch.config import Dimension
from encsearch.report.charts.chart import (
    DASHED,
    Chart,
    Omitted,
    kind_handles,
    legend_below,
    plot_trials,
    show_percent,
)
from encsearch.report.facts import Kind, at_epoch, classify_trial, common_epoch, valued
from encsearch.report.summary import SweepSummary
from encsearch.style import Palette
from encsearch.text import format_param, short_names

MAX_TICKS = 6
LOG_STEPS = ((1, 2, 5), (1, 3), (1,))
MAX_LABELS_A_ROW = 8
PANELS_A_ROW = 4
MAX_PAIRS = 3
NUM_LEVELS = 12

KNOWN_PATHS = ("model.num_codewords", "loss.se_weight", "optim.lr")
"""Paths that form the first pairs: K, the SE-weight and the learning rate."""

MIN_CONTOUR_POINTS = 10
"""With fewer places the triangles show more of themselves than of the metric."""

MIN_CONTOUR_LEVELS = 3
"""Fewest different values of each of the two paths."""


@dataclass(frozen=True)
class Axis:
    """Maps the values of one path to [0, 1]: evenly spaced `choices`, or a range from `low` to `high`."""

    path: str
    label: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False

    def place(self, value: Any) -> float:
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        share: float = (value - self.low) / (self.high - self.low)
        return share

    def ticks(self) -> list[tuple[float, str]]:
        """(place, label) of every choice, or of round values of the range, else of its ends."""
        if self.choices:
            values = self.choices
        elif self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = ([step * 10.0**decade for decade in decades for step in steps] for steps in LOG_STEPS)
            fitting = (inside for inside in map(self._inside, marks) if 2 <= len(inside) <= MAX_TICKS)
            values = next(fitting, (self.low, self.high))
        else:
            values = self._inside(MaxNLocator(5).tick_values(self.low, self.high))
        return [(self.place(value), format_param(value)) for value in values]

    def _inside(self, values: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(value) for value in values if -1e-9 <= self.place(value) <= 1 + 1e-9)


@dataclass(frozen=True)
class Line:
    """A trial's place on the axis of each path that it searched, its best value, and its kind."""

    places: Mapping[str, float]
    value: float
    kind: Kind


@dataclass(frozen=True)
class Surface:
    """Two paths and the metric at the places that were tried; `places` (N, 2) in [0, 1], `values` (N,).

    `interpolated` where there are enough of them.
    """

    across: Axis
    up: Axis
    places: NDArray[np.float64]
    values: NDArray[np.float64]
    interpolated: bool


def parallel_chart(summary: SweepSummary) -> Chart | Omitted:
    """One line for each trial, across an axis for each path to its value."""
    title = "All paths at once"
    axes = axes_of(summary.search.space)
    # The best ones are drawn last, over the others.
    lines = sorted(_lines(summary, axes), key=lambda line: line.value)
    if len(lines) < 2:
        return Omitted(title, f"it takes two trials with a value, and there is {len(lines) or 'none'}")
    caption = (
        f"Each line is a trial and ends at its best {summary.metric} on the right, which its colour shows "
        "too. Trials that did not run to the end are dashed, the winner is thick. A gap is a path that the "
        "trial did not search."
    )
    draw = partial(_draw_parallel, lines, tuple(axes.values()), summary.metric)
    return Chart("parallel.png", title, caption, 4.6, draw)


def slice_chart(summary: SweepSummary) -> Chart | Omitted:
    """The trials' values against each path."""
    title = "Path by path"
    axes = axes_of(summary.search.space)
    lines = _lines(summary, axes)
    if not lines:
        return Omitted(title, "no trial has a value")
    rows = -(-len(axes) // PANELS_A_ROW)
    caption = "The best value of each trial. The other paths differ too, so a trend need not be an effect."
    draw = partial(_draw_slices, lines, tuple(axes.values()), rows, summary.metric)
    return Chart("slices.png", title, caption, 0.6 + 3 * rows, draw)


def contour_chart(summary: SweepSummary) -> Chart | Omitted:
    """The metric over every pair of numeric paths, up to MAX_PAIRS."""
    title = "Two paths at a time"
    pairs = numeric_pairs(axes_of(summary.search.space), MAX_PAIRS)
    epoch = common_epoch(summary.trials)
    if not pairs:
        return Omitted(title, "it takes two searched paths that are numbers")
    if epoch is None or len(at_epoch(summary, epoch)) < 2:
        return Omitted(title, "it takes two trials with a value")
    surfaces = [found for found in (surface(summary, pair, epoch) for pair in pairs) if len(found.values)]
    if not surfaces:
        return Omitted(title, "no trial searched two of these paths at once")
    basis = f"{summary.metric} of all trials at epoch {epoch}, the last that most of them reached."
    how = (
        "Between the trials (dots) colours are interpolated, linearly over triangles of neighbours; nothing "
        "is drawn outside of them. The effects of the other paths are mixed in."
        if any(each.interpolated for each in surfaces)
        else f"There are too few for an interpolation, which takes {MIN_CONTOUR_POINTS} different places and "
        f"{MIN_CONTOUR_LEVELS} values of each path."
    )
    draw = partial(_draw_contours, surfaces, summary.metric)
    return Chart("contours.png", title, f"{basis} {how}", 3.7, draw)


def axes_of(space: Mapping[str, Dimension]) -> dict[str, Axis]:
    """The axis of each path, over its whole searched range and not only the tried values."""
    names = short_names(space)
    return {path: _axis(path, names[path], dimension) for path, dimension in space.items()}


def numeric_pairs(axes: Mapping[str, Axis], count: int) -> list[tuple[Axis, Axis]]:
    """The first `count` pairs of numeric axes, KNOWN_PATHS before others."""
    numeric = [axis for axis in axes.values() if _are_numbers(axis.choices)]
    order = [*KNOWN_PATHS, *axes]
    return list(combinations(sorted(numeric, key=lambda axis: order.index(axis.path)), 2))[:count]


def surface(summary: SweepSummary, pair: tuple[Axis, Axis], epoch: int) -> Surface:
    """The pair's surface; trials at the same place count as their mean."""
    across, up = pair
    found: dict[tuple[float, float], list[float]] = {}
    for value, trial in at_epoch(summary, epoch):
        if across.path in trial.values and up.path in trial.values:
            place = across.place(trial.values[across.path]), up.place(trial.values[up.path])
            found.setdefault(place, []).append(value)
    places = np.array(sorted(found), dtype=np.float64).reshape(-1, 2)
    means = np.array([fmean(found[place]) for place in sorted(found)], dtype=np.float64)
    return Surface(across, up, places, means, _can_interpolate(places))


def _axis(path: str, name: str, dimension: Dimension) -> Axis:
    values = dimension.values
    if dimension.kind == "choice":
        # Numbers by size, other choices as the recipe has them.
        return Axis(path, name, tuple(sorted(values)) if _are_numbers(values) else values)
    low, high = values
    is_log = dimension.kind.startswith("log")
    return Axis(path, f"{name} (log)" if is_log else name, low=low, high=high, is_log=is_log)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _lines(summary: SweepSummary, axes: Mapping[str, Axis]) -> list[Line]:
    """Lines of the trials that have a value."""
    return [
        Line(
            {path: axes[path].place(v) for path, v in trial.values.items()},
            value,
            classify_trial(trial, summary),
        )
        for value, trial in valued(summary.trials)
    ]


def _can_interpolate(places: NDArray[np.float64]) -> bool:
    levels = [len(np.unique(column)) for column in places.T]
    if len(places) < MIN_CONTOUR_POINTS or min(levels) < MIN_CONTOUR_LEVELS:
        return False
    # Places on one line span no triangle.
    return bool(np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-6) == 2)


def _draw_parallel(
    lines: Sequence[Line], axes: Sequence[Axis], metric: str, figure: Figure, palette: Palette
) -> None:
    plot = figure.add_subplot()
    norm = Normalize(*_range([line.value for line in lines]))
    heights = [float(norm(line.value)) for line in lines]
    for kind in dict.fromkeys(line.kind for line in lines):
        is_winner, is_whole = kind == "winner", kind in ("winner", "complete")
        own = [(line, height) for line, height in zip(lines, heights, strict=True) if line.kind == kind]
        plot.add_collection(
            LineCollection(
                [
                    [*enumerate([*(line.places.get(axis.path, math.nan) for axis in axes), height])]
                    for line, height in own
                ],
                colors=palette.hues["green"] if is_winner else [palette.shades(height) for _, height in own],
                linewidths=3 if is_winner else 1.6,
                linestyles="-" if is_whole else [DASHED],
                alpha=1 if is_whole else 0.8,
                zorder=5 if is_winner else 3,
            )
        )
    last = len(axes)
    plot.set_xlim(-0.25, last + 0.1)
    plot.set_ylim(-0.06, 1.06)
    labels = [*(axis.label.replace(" (", "\n(") for axis in axes), f"{metric} %"]
    if len(labels) > MAX_LABELS_A_ROW:
        labels[1::2] = [f"\n\n{label}" for label in labels[1::2]]
    plot.set_xticks(range(last + 1), labels)
    plot.tick_params(axis="x", length=0, labelsize=10, labelcolor=palette.ink, pad=8)
    plot.set_yticks([])
    plot.grid(False)
    plot.spines[:].set_visible(False)
    plot.vlines(range(last + 1), -0.06, 1.06, color=palette.muted, linewidth=1, zorder=1)
    for x, axis in enumerate(axes):
        for place, label in axis.ticks():
            _label(plot, x, place, label, palette)
    _add_scale(figure, [plot], ScalarMappable(norm, palette.shades), metric)


def _label(plot: Plot, x: float, y: float, text: str, palette: Palette) -> None:
    """Label a tick inside the plot, on a paper-coloured box so that lines do not cross it."""
    plot.annotate(
        text,
        (x, y),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=palette.muted,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": palette.paper, "edgecolor": "none", "alpha": 0.85},
        zorder=4,
    )


def _draw_slices(
    lines: Sequence[Line], axes: Sequence[Axis], rows: int, metric: str, figure: Figure, palette: Palette
) -> None:
    columns = min(len(axes), PANELS_A_ROW)
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for number, (plot, axis) in enumerate(zip(grid, axes, strict=False)):
        path = axis.path
        points = [(line.places[path], line.value, line.kind) for line in lines if path in line.places]
        plot_trials(plot, points, palette)
        plot.set_xticks(*zip(*axis.ticks(), strict=True))
        plot.set_xlim(-0.03, 1.03)
        plot.set_xlabel(axis.label)
        if number % columns == 0:
            show_percent(plot.yaxis, metric)
    for plot in grid[len(axes) :]:
        plot.set_visible(False)
    legend_below(figure, kind_handles((line.kind for line in lines), palette))


def _draw_contours(surfaces: Sequence[Surface], metric: str, figure: Figure, palette: Palette) -> None:
    low, high = _range([value for each in surfaces for value in each.values])
    norm, levels = Normalize(low, high), np.linspace(low, high, NUM_LEVELS)
    plots = list(figure.subplots(1, len(surfaces), squeeze=False).flat)
    for plot, each in zip(plots, surfaces, strict=True):
        xs, ys = each.places.T
        if each.interpolated:
            plot.tricontourf(xs, ys, each.values, levels=levels, norm=norm, cmap=palette.shades)
        plot.scatter(
            xs,
            ys,
            c=each.values,
            norm=norm,
            cmap=palette.shades,
            s=26 if each.interpolated else 60,
            edgecolors=palette.ink,
            linewidths=0.8,
            zorder=4,
            clip_on=False,
        )
        plot.set_xticks(*zip(*each.across.ticks(), strict=True))
        plot.set_yticks(*zip(*each.up.ticks(), strict=True))
        plot.set_xlim(-0.02, 1.02)
        plot.set_ylim(-0.02, 1.02)
        plot.set_xlabel(each.across.label)
        plot.set_ylabel(each.up.label)
    _add_scale(figure, plots, ScalarMappable(norm, palette.shades), metric)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low, high if high > low else low + 1


def _add_scale(figure: Figure, plots: Sequence[Plot], shades: ScalarMappable, metric: str) -> None:
    bar = figure.colorbar(shades, ax=plots, pad=0.01, aspect=26)
    show_percent(bar.ax.yaxis, metric)
    bar.outline.set_visible(False)
