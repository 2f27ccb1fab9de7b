"""The common look of all figures: two palettes, and matplotlib's settings for them.

The hues are from Okabe and Ito ("Color Universal Design", 2008), distinct for colour-blind readers too, and
lightened for dark paper.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, ListedColormap

Hue = Literal["green", "blue", "orange", "red", "purple", "grey"]


@dataclass(frozen=True)
class Palette:
    """Colours of the background and the text, `hues` for marks, `shades` from low to high values."""

    paper: str
    ink: str
    muted: str
    rule: str
    hues: Mapping[Hue, str]
    shades: Colormap


@contextmanager
def look(palette: Palette) -> Iterator[None]:
    """Give the palette's look to figures made and saved inside; it also works as a decorator."""
    settings = {
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
        "figure.constrained_layout.use": True,
        "figure.facecolor": palette.paper,
        "savefig.dpi": 120,
        "savefig.facecolor": palette.paper,
        "text.color": palette.ink,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(settings):
        yield


def _part_of_viridis(low: float, high: float) -> Colormap:
    """Viridis without an end: yellow is invisible on white paper, and violet on black."""
    colours = matplotlib.colormaps["viridis"](np.linspace(low, high, 256))
    return ListedColormap(list(colours))


LIGHT = Palette(
    paper="#ffffff",
    ink="#1b2130",
    muted="#5b6577",
    rule="#e3e6ec",
    hues={
        "green": "#009e73",
        "blue": "#0072b2",
        "orange": "#e69f00",
        "red": "#d55e00",
        "purple": "#9c4a8b",
        "grey": "#8a8f9c",
    },
    shades=_part_of_viridis(0.0, 0.93),
)
DARK = Palette(
    paper="#1a1f29",
    ink="#e6e9f0",
    muted="#a3adbd",
    rule="#2f3847",
    hues={
        "green": "#3ddc9b",
        "blue": "#56b4e9",
        "orange": "#f0b83c",
        "red": "#ff8a50",
        "purple": "#e29ad0",
        "grey": "#8a93a5",
    },
    shades=_part_of_viridis(0.35, 1.0),
)
