"""How the figures look: two palettes, marks that differ in shape as well as in colour, and the way to PNG.

The colours are those of Okabe and Ito ("Color Universal Design", 2008), which stay apart for colour-blind
readers, lightened for dark paper.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from encsearch.report.facts import KIND_LABELS, Kind

WIDTH = 10.4
"""Inches; the page shows a figure at about its full width."""

DPI = 120
MAX_LEGEND_COLUMNS = 4

MARKS: dict[Kind, str] = {
    "winner": "*",
    "complete": "o",
    "pruned": "v",
    "running": "s",
    "flagged": "D",
    "refused": "P",
    "fail": "X",
}
SIZES: dict[Kind, float] = {
    "winner": 15,
    "complete": 8,
    "pruned": 8,
    "running": 7,
    "flagged": 7,
    "refused": 8,
    "fail": 8.5,
}


@dataclass(frozen=True)
class Palette:
    """Colours by role; `marks` by the kind of a trial, `shades` from low to high values."""

    paper: str
    ink: str
    muted: str
    rule: str
    accent: str
    marks: dict[Kind, str]
    shades: Colormap


def _part_of_viridis(low: float, high: float) -> Colormap:
    """Its ends vanish, the yellow one on white paper and the violet one on black."""
    colours = matplotlib.colormaps["viridis"](np.linspace(low, high, 256))
    return ListedColormap(list(colours))


LIGHT = Palette(
    "#ffffff",
    "#1b2130",
    "#5b6577",
    "#e3e6ec",
    "#9c4a8b",
    {
        "winner": "#009e73",
        "complete": "#0072b2",
        "pruned": "#e69f00",
        "running": "#8a8f9c",
        "flagged": "#8a8f9c",
        "refused": "#8a8f9c",
        "fail": "#d55e00",
    },
    _part_of_viridis(0.0, 0.93),
)
DARK = Palette(
    "#1a1f29",
    "#e6e9f0",
    "#a3adbd",
    "#2f3847",
    "#e29ad0",
    {
        "winner": "#3ddc9b",
        "complete": "#56b4e9",
        "pruned": "#f0b83c",
        "running": "#8a93a5",
        "flagged": "#8a93a5",
        "refused": "#8a93a5",
        "fail": "#ff8a50",
    },
    _part_of_viridis(0.35, 1.0),
)


@dataclass(frozen=True)
class Chart:
    """A figure that can be drawn: `draw` fills an empty one in the colours of a palette.

    `file` is the name of the PNG, `height` in inches, `caption` says what is to be seen and what not.
    """

    file: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure, Palette], None]


@dataclass(frozen=True)
class Omitted:
    """A figure that has nothing to show, and why."""

    title: str
    reason: str


def png(chart: Chart, palette: Palette) -> bytes:
    """Draw the chart."""
    with matplotlib.rc_context(_settings(palette)):
        figure = Figure(figsize=(WIDTH, chart.height), layout="constrained")
        FigureCanvasAgg(figure)
        chart.draw(figure, palette)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def plot_trials(
    axes: Axes, points: Sequence[tuple[float, float, Kind]], palette: Palette, scale: float = 1.0
) -> None:
    """Trials as marks by their kind, the winner over the others."""
    present = {kind for _, _, kind in points}
    for kind in (each for each in reversed(KIND_LABELS) if each in present):
        xs, ys = zip(*((x, y) for x, y, each in points if each == kind), strict=True)
        axes.plot(
            xs,
            ys,
            linestyle="none",
            marker=MARKS[kind],
            markersize=SIZES[kind] * scale,
            color=palette.marks[kind],
            markeredgecolor=palette.paper,
            markeredgewidth=0.8,
            zorder=4,
            clip_on=False,
        )


def kind_handles(kinds: Iterable[Kind], palette: Palette) -> list[Line2D]:
    """Entries of a legend, in one order everywhere."""
    present = set(kinds)
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=MARKS[kind],
            markersize=min(SIZES[kind], 11),
            color=palette.marks[kind],
            markeredgecolor=palette.paper,
            label=label,
        )
        for kind, label in KIND_LABELS.items()
        if kind in present
    ]


def show_percent(axis: Axis, label: str) -> None:
    """Count in percent on an axis of shares, and name it as a table would: "mIoU %"."""
    axis.set_major_formatter(PercentFormatter(1.0, symbol=None))
    axis.set_label_text(f"{label} %")


def legend_below(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), MAX_LEGEND_COLUMNS))


def _settings(palette: Palette) -> dict[str, object]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titlecolor": palette.ink,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.muted,
        "axes.facecolor": palette.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": palette.rule,
        "figure.facecolor": palette.paper,
        "savefig.facecolor": palette.paper,
        "text.color": palette.ink,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.solid_capstyle": "round",
    }
