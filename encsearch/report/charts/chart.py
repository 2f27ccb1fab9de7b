"""A chart of the report, and the marks of its trials, which differ in shape as well as in colour."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from encsearch.report.facts import KIND_LABELS, Kind
from encsearch.style import Hue, Palette, look

WIDTH = 10.4
"""Inches; the page shows a figure at about its full width."""

MAX_LEGEND_COLUMNS = 4
DASHED = (0, (4, 2))


class Mark(NamedTuple):
    """`size` in points."""

    shape: str
    size: float
    hue: Hue


MARKS: dict[Kind, Mark] = {
    "winner": Mark("*", 15, "green"),
    "complete": Mark("o", 8, "blue"),
    "pruned": Mark("v", 8, "orange"),
    "running": Mark("s", 7, "grey"),
    "flagged": Mark("D", 7, "grey"),
    "refused": Mark("P", 8, "grey"),
    "fail": Mark("X", 8.5, "red"),
}


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn: `draw` fills an empty figure in the colours of a palette.

    `file` is the name of the PNG, `height` in inches, `caption` explains the chart and its limits.
    """

    file: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure, Palette], None]


@dataclass(frozen=True)
class Omitted:
    """A chart that has nothing to show, and the reason."""

    title: str
    reason: str


def png(chart: Chart, palette: Palette) -> bytes:
    """Draw the chart."""
    with look(palette):
        figure = Figure(figsize=(WIDTH, chart.height))
        chart.draw(figure, palette)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def plot_trials(
    axes: Axes, points: Sequence[tuple[float, float, Kind]], palette: Palette, scale: float = 1.0
) -> None:
    """Plot trials as marks by their kind, the winner on top."""
    present = {kind for _, _, kind in points}
    for kind in (each for each in reversed(KIND_LABELS) if each in present):
        xs, ys = zip(*((x, y) for x, y, each in points if each == kind), strict=True)
        style = _mark(kind, palette) | {"markersize": MARKS[kind].size * scale, "markeredgewidth": 0.8}
        axes.plot(xs, ys, zorder=4, clip_on=False, **style)


def kind_handles(kinds: Iterable[Kind], palette: Palette) -> list[Line2D]:
    """Legend entries, in the same order everywhere."""
    present = set(kinds)
    return [
        Line2D([], [], markersize=min(MARKS[kind].size, 11), label=label, **_mark(kind, palette))
        for kind, label in KIND_LABELS.items()
        if kind in present
    ]


def colour_of(kind: Kind, palette: Palette) -> str:
    return palette.hues[MARKS[kind].hue]


def show_percent(axis: Axis, label: str) -> None:
    """Show percent on an axis of shares, and label it as a table would: "mIoU %"."""
    axis.set_major_formatter(PercentFormatter(1.0, symbol=None))
    axis.set_label_text(f"{label} %")


def legend_below(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), MAX_LEGEND_COLUMNS))


def _mark(kind: Kind, palette: Palette) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": MARKS[kind].shape,
        "color": colour_of(kind, palette),
        "markeredgecolor": palette.paper,
    }
