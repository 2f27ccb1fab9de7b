"""The metric over two paths at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from encsearch.report.charts.axes import Axis, axes_of, numeric_pairs
from encsearch.report.charts.style import Chart, Omitted, Palette, show_percent
from encsearch.report.facts import at_epoch, common_epoch
from encsearch.report.summary import SweepSummary

MIN_CONTOUR_POINTS = 10
"""Fewer places than these give triangles that say more of themselves than of the metric."""

MIN_CONTOUR_LEVELS = 3
"""Different values of each of the two paths."""

MAX_PAIRS = 3
NUM_LEVELS = 12


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
    told = f"{summary.metric} of all trials at epoch {epoch}, the last that most of them reached."
    how = (
        "Between the trials (dots) colours are interpolated, linear over triangles of neighbours; outside of "
        "them nothing is drawn. What the other paths did is mixed in."
        if any(each.interpolated for each in surfaces)
        else f"There are too few for an interpolation, which takes {MIN_CONTOUR_POINTS} different places and "
        f"{MIN_CONTOUR_LEVELS} values of each path."
    )
    return Chart(
        "contours.png", title, f"{told} {how}", 3.7, partial(_draw_contours, surfaces, summary.metric)
    )


def surface(summary: SweepSummary, pair: tuple[Axis, Axis], epoch: int) -> Surface:
    """The pair's surface; trials at one place count as their mean."""
    across, up = pair
    found = sorted(
        ((across.place(t.values[across.path]), up.place(t.values[up.path])), value)
        for value, t in at_epoch(summary, epoch)
        if across.path in t.values and up.path in t.values
    )
    means = {
        place: np.mean([v for _, v in group]) for place, group in groupby(found, key=lambda item: item[0])
    }
    places = np.array(list(means), dtype=np.float64).reshape(-1, 2)
    return Surface(
        across, up, places, np.array(list(means.values()), dtype=np.float64), _can_interpolate(places)
    )


def _can_interpolate(places: NDArray[np.float64]) -> bool:
    levels = [len(np.unique(column)) for column in places.T]
    if len(places) < MIN_CONTOUR_POINTS or min(levels) < MIN_CONTOUR_LEVELS:
        return False
    # Places on one line span no triangle.
    return bool(np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-6) == 2)


def _draw_contours(surfaces: Sequence[Surface], metric: str, figure: Figure, palette: Palette) -> None:
    values = np.concatenate([each.values for each in surfaces])
    low, high = float(values.min()), float(values.max())
    shared = Normalize(low, high if high > low else low + 1)
    plots = list(figure.subplots(1, len(surfaces), squeeze=False).flat)
    for plot, each in zip(plots, surfaces, strict=True):
        _draw_surface(plot, each, shared, palette)
    bar = figure.colorbar(ScalarMappable(shared, palette.shades), ax=plots, pad=0.01, aspect=25)
    show_percent(bar.ax.yaxis, metric)
    bar.outline.set_visible(False)


def _draw_surface(plot: Plot, surface: Surface, norm: Normalize, palette: Palette) -> None:
    xs, ys = surface.places.T
    if surface.interpolated:
        levels = np.linspace(norm.vmin or 0.0, norm.vmax or 1.0, NUM_LEVELS)
        plot.tricontourf(xs, ys, surface.values, levels=levels, norm=norm, cmap=palette.shades)
    plot.scatter(
        xs,
        ys,
        c=surface.values,
        norm=norm,
        cmap=palette.shades,
        s=26 if surface.interpolated else 60,
        edgecolors=palette.ink,
        linewidths=0.8,
        zorder=4,
        clip_on=False,
    )
    plot.set_xticks(*zip(*surface.across.ticks(), strict=True))
    plot.set_yticks(*zip(*surface.up.ticks(), strict=True))
    plot.set_xlim(-0.02, 1.02)
    plot.set_ylim(-0.02, 1.02)
    plot.set_xlabel(surface.across.label)
    plot.set_ylabel(surface.up.label)
