"""Charts as SVG coordinates: an `Axis` maps values to px, a `Chart` is what a template writes down."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["linear", "log", "category"]


@dataclass(frozen=True)
class Line:
    """A polyline; `points` as SVG wants them, `kind` is its CSS class."""

    points: str
    kind: str
    title: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart in SVG coordinates, px; the template only writes it down."""

    title: str
    x_label: str
    y_label: str
    width: int
    height: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    dots: list[Dot]


@dataclass(frozen=True)
class Axis:
    """Maps values to px; `categories` has the values of a category axis in order."""

    low: float
    high: float
    span: tuple[float, float]
    scale: Scale = "linear"
    categories: tuple[Any, ...] = ()

    @classmethod
    def over(cls, values: Sequence[Any], span: tuple[float, float], scale: Scale = "linear") -> "Axis":
        """Holds all values; a single one, or none, gets an interval around it."""
        low, high = min(values, default=0.1), max(values, default=1.0)
        if scale == "log":
            return cls(low / 1.15, high * 1.15, span, scale)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - margin if low else 0.0, high + margin, span, scale)

    @classmethod
    def of_categories(cls, values: Iterable[Any], span: tuple[float, float]) -> "Axis":
        unique = dict.fromkeys(values)
        numeric = all(isinstance(value, int | float) for value in unique)
        ordered = tuple(sorted(unique) if numeric else unique)
        return cls(-0.5, len(ordered) - 0.5, span, "category", ordered)

    def px(self, value: Any) -> float:
        low, high = self.low, self.high
        if self.scale == "category":
            value = self.categories.index(value)
        elif self.scale == "log":
            value, low, high = math.log(value), math.log(low), math.log(high)
        start, end = self.span
        share: float = (value - low) / (high - low)
        return round(start + share * (end - start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """(px, label) of three to eight round values, or of every category."""
        if self.scale == "category":
            return [(self.px(value), format_param(value)) for value in self.categories]
        if self.scale == "log" and self.high / self.low >= 10:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) < 4 else (1, 3) if len(decades) == 4 else (1,)
            marks = [factor * 10.0**decade for decade in decades for factor in factors]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
            first = math.ceil(self.low / step)
            marks = [step * n for n in range(first, math.floor(self.high / step) + 1)]
        return [(self.px(mark), f"{mark:.6g}") for mark in marks if self.low <= mark <= self.high]


def format_param(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
