"""Where a value of a searched path lies on an axis: pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from encsearch.config import Dimension
from encsearch.text import format_param, short_names

MAX_LOG_TICKS = 6
LOG_STEPS = ((1, 2, 5), (1, 3), (1,))

KNOWN_PATHS = ("model.num_codewords", "loss.se_weight", "optim.lr")
"""Those that pairs are made of first: K, the SE-weight and the learning rate."""


@dataclass(frozen=True)
class Axis:
    """Maps the values of one path to [0, 1]: a range from `low` to `high`, or evenly spaced `choices`."""

    path: str
    label: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.choices)

    def place(self, value: Any) -> float:
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        share: float = (value - self.low) / (self.high - self.low)
        return share

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """(place, label) of every choice, or of round values of the range."""
        values = self.choices or (self._log_ticks() if self.is_log else self._even_ticks())
        return tuple((self.place(value), format_param(value)) for value in values)

    def _even_ticks(self) -> tuple[float, ...]:
        ticks = [float(tick) for tick in MaxNLocator(5).tick_values(self.low, self.high)]
        slack = 1e-9 * (self.high - self.low)
        return tuple(tick for tick in ticks if self.low - slack <= tick <= self.high + slack)

    def _log_ticks(self) -> tuple[float, ...]:
        """1, 2 and 5 times the powers of ten, or as many of them as there is room for."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in LOG_STEPS:
            marks = tuple(step * 10.0**decade for decade in decades for step in steps)
            inside = tuple(mark for mark in marks if self.low * (1 - 1e-9) <= mark <= self.high * (1 + 1e-9))
            if 2 <= len(inside) <= MAX_LOG_TICKS:
                return inside
        return (self.low, self.high)


def axes_of(space: Mapping[str, Dimension]) -> dict[str, Axis]:
    """The axis of each path, over all that is searched and not only what was tried."""
    names = short_names(space)
    return {path: _axis(path, names[path], dimension) for path, dimension in space.items()}


def numeric_pairs(axes: Mapping[str, Axis], count: int) -> list[tuple[Axis, Axis]]:
    """The first `count` pairs of numeric axes, those of KNOWN_PATHS before others."""
    numeric = [axis for axis in axes.values() if axis.is_numeric]
    numeric.sort(
        key=lambda axis: KNOWN_PATHS.index(axis.path) if axis.path in KNOWN_PATHS else len(KNOWN_PATHS)
    )
    pairs = [(first, second) for place, first in enumerate(numeric) for second in numeric[place + 1 :]]
    return pairs[:count]


def _axis(path: str, name: str, dimension: Dimension) -> Axis:
    if dimension.kind == "choice":
        return Axis(path, name, choices=_ordered(dimension.values))
    low, high = dimension.values
    is_log = dimension.kind.startswith("log")
    return Axis(path, f"{name} (log)" if is_log else name, low, high, is_log)


def _ordered(choices: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers by size, other choices as the recipe has them."""
    numeric = all(isinstance(value, int | float) for value in choices)
    return tuple(sorted(choices) if numeric else choices)
