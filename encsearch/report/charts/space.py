"""The searched paths: all at once, and one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes as Plot
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from encsearch.report.charts.axes import Axis, axes_of
from encsearch.report.charts.style import (
    Chart,
    Omitted,
    Palette,
    kind_handles,
    legend_below,
    plot_trials,
    show_percent,
)
from encsearch.report.facts import Kind, kind_of, valued
from encsearch.report.summary import SweepSummary
from encsearch.search.trials import TrialRecord

PANELS_A_ROW = 4


@dataclass(frozen=True)
class Line:
    """A trial's place on the axis of each path, None where it did not search it."""

    places: list[float | None]
    value: float
    kind: Kind


def parallel_chart(summary: SweepSummary) -> Chart | Omitted:
    """One line a trial, across an axis for each path to its value."""
    title = "All paths at once"
    found = valued(summary.trials)
    if len(found) < 2:
        return Omitted(title, f"it takes two trials with a value, and there is {len(found) or 'none'}")
    axes = axes_of(summary.search.space)
    # The best ones are drawn last, over the others.
    lines = [
        Line(_places(trial, axes), value, kind_of(trial, summary))
        for value, trial in sorted(found, key=lambda pair: pair[0])
    ]
    caption = (
        f"Each line is a trial, from left to right to its best {summary.metric}, which its colour shows too. "
        "Trials that did not run to the end are dashed, the winner is thick. A gap is a "
        "path that the trial did not search."
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
    if not valued(summary.trials):
        return Omitted(title, "no trial has a value")
    axes = tuple(axes_of(summary.search.space).values())
    panels = [(axis, _slice(summary, axis)) for axis in axes]
    rows = -(-len(axes) // PANELS_A_ROW)
    caption = "The best value of each trial. The other paths differ too: a trend is no effect yet."
    return Chart(
        "slices.png", title, caption, 0.6 + 3 * rows, partial(_draw_slices, panels, rows, summary.metric)
    )


def _places(trial: TrialRecord, axes: Mapping[str, Axis]) -> list[float | None]:
    return [axis.place(trial.values[path]) if path in trial.values else None for path, axis in axes.items()]


def _slice(summary: SweepSummary, axis: Axis) -> list[tuple[float, float, Kind]]:
    """(place, value, kind) of each trial that searched the path."""
    return [
        (axis.place(trial.values[axis.path]), value, kind_of(trial, summary))
        for value, trial in valued(summary.trials)
        if axis.path in trial.values
    ]


def _draw_parallel(
    lines: Sequence[Line], axes: Sequence[Axis], metric: str, figure: Figure, palette: Palette
) -> None:
    plot = figure.add_subplot()
    low, high = lines[0].value, lines[-1].value
    norm = Normalize(low, high if high > low else low + 1)
    for line in lines:
        _draw_line(plot, line, float(norm(line.value)), palette)
    last = len(axes)
    plot.set_xlim(-0.25, last + 0.1)
    plot.set_ylim(-0.06, 1.06)
    plot.set_xticks(range(last + 1), [*(axis.label.replace(" (", "\n(") for axis in axes), f"{metric} %"])
    plot.tick_params(axis="x", length=0, labelsize=10, labelcolor=palette.ink, pad=8)
    plot.set_yticks([])
    plot.grid(False)
    plot.spines[:].set_visible(False)
    plot.vlines(range(last + 1), -0.06, 1.06, color=palette.muted, linewidth=1, zorder=1)
    for x, axis in enumerate(axes):
        for place, label in axis.ticks():
            _label(plot, x, place, label, palette)
    bar = figure.colorbar(ScalarMappable(norm, palette.shades), ax=plot, pad=0.01, aspect=28)
    show_percent(bar.ax.yaxis, metric)
    bar.outline.set_visible(False)


def _draw_line(plot: Plot, line: Line, height: float, palette: Palette) -> None:
    """`height` is the place of the trial's value on the last axis, and its shade."""
    is_winner, is_whole = line.kind == "winner", line.kind in ("winner", "complete")
    plot.plot(
        range(len(line.places) + 1),
        [*(float("nan") if place is None else place for place in line.places), height],
        color=palette.marks["winner"] if is_winner else palette.shades(height),
        linewidth=3 if is_winner else 1.6,
        linestyle="-" if is_whole else (0, (3, 2)),
        alpha=1 if is_whole else 0.8,
        zorder=5 if is_winner else 3,
    )


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
        plot_trials(plot, points, palette)
        plot.set_xticks(*zip(*axis.ticks(), strict=True))
        plot.set_xlim(-0.03, 1.03)
        plot.set_xlabel(axis.label)
        if number % columns == 0:
            show_percent(plot.yaxis, metric)
    for plot in grid[len(panels) :]:
        plot.set_visible(False)
    legend_below(figure, kind_handles({kind for _, points in panels for _, _, kind in points}, palette))
