"""The searched paths: all at once, and one by one."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes as Plot
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from encsearch.search.report.dimensions import Axis, axes_of
from encsearch.search.report.facts import Kind, kind_of, valued
from encsearch.search.report.style import (
    Chart,
    Omitted,
    Palette,
    kind_handles,
    legend_below,
    plot_kind,
)
from encsearch.search.report.summary import SweepSummary

PANELS_A_ROW = 4


def parallel_chart(summary: SweepSummary) -> Chart | Omitted:
    """One line a trial, across an axis for each path to its value."""
    title = "All paths at once"
    found = valued(summary.trials)
    if len(found) < 2:
        return Omitted(title, f"it takes two trials with a value, and there is {len(found) or 'none'}")
    axes = axes_of(summary.search.space)
    lines = [
        (
            [axes[path].place(t.values[path]) if path in t.values else None for path in axes],
            value,
            kind_of(t, summary),
        )
        for value, t in sorted(found, key=lambda pair: pair[0])
    ]
    caption = (
        f"Each line is a trial, from left to right through its values to its best {summary.metric}, which the "
        "colour shows too. Trials that did not run to the end are dashed, the winner is thick. A gap is a path "
        "that the trial did not search."
    )
    return Chart(
        "parallel.png",
        title,
        caption,
        4.6,
        partial(_draw_parallel, lines, tuple(axes.values()), summary.metric),
    )


def slice_chart(summary: SweepSummary) -> Chart | Omitted:
    """The trials' values against each path."""
    title = "Path by path"
    found = valued(summary.trials)
    if not found:
        return Omitted(title, "no trial has a value")
    axes = tuple(axes_of(summary.search.space).values())
    panels = [
        (
            axis,
            [
                (axis.place(t.values[axis.path]), v, kind_of(t, summary))
                for v, t in found
                if axis.path in t.values
            ],
        )
        for axis in axes
    ]
    rows = -(-len(axes) // PANELS_A_ROW)
    caption = "The best value of each trial. The other paths differ too from mark to mark: a trend is no effect yet."
    return Chart(
        "slices.png", title, caption, 0.6 + 3 * rows, partial(_draw_slices, panels, rows, summary.metric)
    )


def _draw_parallel(
    lines: Sequence[tuple[list[float | None], float, Kind]],
    axes: Sequence[Axis],
    metric: str,
    figure: Figure,
    palette: Palette,
) -> None:
    plot = figure.add_subplot()
    values = [value for _, value, _ in lines]
    low, high = min(values), max(values)
    colours = ScalarMappable(Normalize(low, high if high > low else low + 1), palette.shades)
    last = len(axes)
    for places, value, kind in lines:
        ends = [float("nan") if place is None else place for place in places]
        is_winner, is_whole = kind == "winner", kind in ("winner", "complete")
        plot.plot(
            range(last + 1),
            [*ends, (value - low) / (high - low) if high > low else 0.5],
            color=palette.marks["winner"] if is_winner else colours.to_rgba(value),
            linewidth=3 if is_winner else 1.6,
            linestyle="-" if is_whole else (0, (3, 2)),
            alpha=1 if is_whole else 0.7,
            zorder=5 if is_winner else 3,
        )
    plot.set_xlim(-0.25, last + 0.1)
    plot.set_ylim(-0.06, 1.06)
    plot.set_xticks(range(last + 1), [*(axis.label for axis in axes), metric])
    plot.tick_params(axis="x", length=0, labelsize=10.5, labelcolor=palette.ink, pad=8)
    plot.set_yticks([])
    plot.grid(False)
    plot.spines[:].set_visible(False)
    for x, axis in enumerate(axes):
        plot.axvline(x, color=palette.muted, linewidth=1, zorder=1)
        for place, label in axis.ticks():
            _label(plot, x, place, label, palette)
    plot.axvline(last, color=palette.muted, linewidth=1, zorder=1)
    bar = figure.colorbar(colours, ax=plot, pad=0.01, aspect=28)
    bar.outline.set_visible(False)


def _label(plot: Plot, x: float, y: float, text: str, palette: Palette) -> None:
    """A tick of an axis that stands within the plot, on paper so that lines do not cross it."""
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
    panels: Sequence[tuple[Axis, Sequence[tuple[float, float, Kind]]]],
    rows: int,
    metric: str,
    figure: Figure,
    palette: Palette,
) -> None:
    columns = min(len(panels), PANELS_A_ROW)
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for number, (plot, (axis, points)) in enumerate(zip(grid, panels, strict=False)):
        for kind in {kind for _, _, kind in points}:
            plot_kind(plot, kind, [(x, y) for x, y, k in points if k == kind], palette)
        plot.set_xticks(*zip(*axis.ticks(), strict=True))
        plot.set_xlim(-0.03, 1.03)
        plot.set_xlabel(axis.label)
        if number % columns == 0:
            plot.set_ylabel(metric)
    for plot in grid[len(panels) :]:
        plot.set_visible(False)
    legend_below(figure, kind_handles({kind for _, points in panels for _, _, kind in points}, palette))
