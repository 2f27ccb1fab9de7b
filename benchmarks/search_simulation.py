"""A search that is told the curves of a tabulated surface instead of training; benchmarks/search.py counts.

surface = load_surface(path)
for value in reports(method, surface, workers=4): ...
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

NUM_CODEWORDS, SE_WEIGHT, LR = "model.num_codewords", "loss.se_weight", "optim.lr"

Values = Mapping[str, Any]
"""A point by config path."""


@dataclass(frozen=True)
class Surface:
    """mIoU of every epoch on a grid: `miou` is (K, weights, learning rates, epochs), the axes ascend."""

    num_codewords: NDArray[np.int64]
    se_weights: NDArray[np.float64]
    lrs: NDArray[np.float64]
    miou: NDArray[np.float64]

    @property
    def epochs(self) -> int:
        return int(self.miou.shape[-1])

    @property
    def best(self) -> float:
        """Of all cells and epochs."""
        return float(self.miou.max())

    def curve(self, values: Values) -> NDArray[np.float64]:
        """mIoU by epoch (epochs,) of the nearest cell: K and lr by ratio, the weight by difference."""
        k = _nearest(np.log(self.num_codewords), np.log(values[NUM_CODEWORDS]))
        weight = _nearest(self.se_weights, values[SE_WEIGHT])
        lr = _nearest(np.log(self.lrs), np.log(values[LR]))
        curve: NDArray[np.float64] = self.miou[k, weight, lr]
        return curve

    def cells(self) -> list[Values]:
        """All points of the grid, in the fixed order of its axes."""
        return [
            {NUM_CODEWORDS: int(k), SE_WEIGHT: float(weight), LR: float(lr)}
            for k in self.num_codewords
            for weight in self.se_weights
            for lr in self.lrs
        ]


class Method(Protocol):
    """A search: what it tries, and when it gives up on it."""

    def propose(self) -> tuple[int, Values] | None:
        """The number and the values of a new trial; None when nothing is left to try."""
        ...

    def ends(self, number: int, epoch: int, value: float) -> bool:
        """Take the trial's report; whether the trial ends with it, at its last epoch at the latest."""
        ...


class InOrder:
    """Points in a given order, each trained in full: a search that neither learns nor stops."""

    def __init__(self, points: Iterable[Values], epochs: int) -> None:
        self._points, self._epochs = enumerate(points), epochs

    def propose(self) -> tuple[int, Values] | None:
        return next(self._points, None)

    def ends(self, number: int, epoch: int, value: float) -> bool:
        return epoch == self._epochs


def load_surface(path: Path) -> Surface:
    """Read the file of benchmarks/search_surface.py, every cell of which ran to its last epoch."""
    table = pq.read_table(path)
    columns = [table[name].to_numpy() for name in ("num_codewords", "se_weight", "lr", "epoch")]
    axes, places = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    num_codewords, se_weights, lrs, _ = axes
    miou = np.full([len(axis) for axis in axes], np.nan)
    miou[places] = table["miou"].to_numpy()
    assert np.isfinite(miou).all(), f"{path}: {np.isnan(miou).sum()} epochs of the grid have no score"
    return Surface(num_codewords, se_weights, lrs, miou)


def reports(method: Method, surface: Surface, workers: int) -> Iterator[float]:
    """The mIoU of one epoch after another, as `workers` trials at once report them in turn.

    Every epoch takes equally long. The worker of a trial that has ended takes up the next one at once, which
    is proposed knowing all reports before it.
    """
    places = [_start(method, surface) for _ in range(workers)]
    while any(places):
        for place, trial in enumerate(places):
            if not trial:
                continue
            epoch, value = next(trial.rest)
            yield value
            if method.ends(trial.number, epoch, value):
                places[place] = _start(method, surface)


def epochs_to(target: float, values: Iterable[float], limit: int) -> int | None:
    """How many values it takes until one is `target` or over; None if the first `limit` are below."""
    return next((spent for spent, value in enumerate(islice(values, limit), 1) if value >= target), None)


@dataclass(frozen=True)
class _Trial:
    number: int
    rest: Iterator[tuple[int, float]]


def _start(method: Method, surface: Surface) -> _Trial | None:
    proposal = method.propose()
    if proposal is None:
        return None
    number, values = proposal
    return _Trial(number, iter(enumerate(surface.curve(values).tolist(), 1)))


def _nearest(axis: NDArray[Any], value: float) -> int:
    return int(np.abs(axis - value).argmin())
