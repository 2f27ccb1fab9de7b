"""A search that is told the curves of a tabulated surface instead of training; benchmarks/search.py counts.

surface = load_surface(path)
for event in simulate(method, surface, workers=4): ...
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

NUM_CODEWORDS, SE_WEIGHT, LR = "model.num_codewords", "loss.se_weight", "optim.lr"

Values = Mapping[str, Any]
"""A point by config path."""

Metric = Literal["miou", "miou_ambiguous"]


@dataclass(frozen=True)
class Surface:
    """The metric of every epoch on a grid: `miou` is (K, weights, learning rates, epochs), the axes ascend.

    `truth` has the best figures of further seeds by the cell's index, for the best cells.
    """

    num_codewords: NDArray[np.int64]
    se_weights: NDArray[np.float64]
    lrs: NDArray[np.float64]
    miou: NDArray[np.float64]
    truth: Mapping[tuple[int, int, int], Sequence[float]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        return int(self.miou.shape[-1])

    @property
    def means(self) -> Mapping[tuple[int, int, int], float]:
        """The mean over the further seeds of each cell that has them."""
        return {cell: float(np.mean(values)) for cell, values in self.truth.items()}

    @property
    def best(self) -> float:
        """Of all cells and epochs."""
        return float(self.miou.max())

    def cell(self, values: Values) -> tuple[int, int, int]:
        """The index of the nearest cell: K and lr by ratio, the weight by difference."""
        return (
            _nearest(np.log(self.num_codewords), np.log(values[NUM_CODEWORDS])),
            _nearest(self.se_weights, values[SE_WEIGHT]),
            _nearest(np.log(self.lrs), np.log(values[LR])),
        )

    def curve(self, values: Values) -> NDArray[np.float64]:
        """The metric by epoch (epochs,) of the nearest cell."""
        curve: NDArray[np.float64] = self.miou[self.cell(values)]
        return curve

    def cells(self) -> list[Values]:
        """All points of the grid, in the fixed order of its axes."""
        return [
            {NUM_CODEWORDS: int(k), SE_WEIGHT: float(weight), LR: float(lr)}
            for k in self.num_codewords
            for weight in self.se_weights
            for lr in self.lrs
        ]

    def slice(self, k: int) -> "Surface":
        """The part with one K."""
        place = int(np.flatnonzero(self.num_codewords == k)[0])
        return replace(self, num_codewords=np.array([k]), miou=self.miou[place : place + 1], truth={})


class Method(Protocol):
    """A search: what it tries, and when it turns away from it."""

    def propose(self) -> tuple[int, Values] | None:
        """The number and values of a new trial, or of a paused one that goes on; None if there is none."""
        ...

    def ends(self, number: int, epoch: int, value: float) -> bool:
        """Take the trial's report; whether it leaves its worker, at its last epoch at the latest."""
        ...


class InOrder:
    """Points in a given order, each trained in full: a search that neither learns nor stops."""

    def __init__(self, points: Iterable[Values], epochs: int) -> None:
        self._points, self._epochs = enumerate(points), epochs

    def propose(self) -> tuple[int, Values] | None:
        return next(self._points, None)

    def ends(self, number: int, epoch: int, value: float) -> bool:
        return epoch == self._epochs


@dataclass(frozen=True)
class Event:
    """One epoch of one trial. All workers train an epoch in a `turn`; one without a trial waits."""

    turn: int
    number: int
    values: Values
    epoch: int
    value: float


@dataclass(frozen=True)
class Hit:
    """When a target was reached: epochs of all trials together, and turns, which are the wall time."""

    epochs: int
    turns: int


def load_surface(path: Path, metric: Metric = "miou") -> Surface:
    """Read a file of benchmarks/search_surface.py, every cell of which ran to its last epoch with seed 0."""
    table = pq.read_table(path)
    seeds = table["seed"].to_numpy() if "seed" in table.column_names else np.zeros(len(table), np.int64)
    grid = table.filter(seeds == 0)
    columns = [grid[name].to_numpy() for name in ("num_codewords", "se_weight", "lr", "epoch")]
    axes, places = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    num_codewords, se_weights, lrs, _ = axes
    values = np.full([len(axis) for axis in axes], np.nan)
    values[places] = grid[metric].to_numpy()
    assert np.isfinite(values).all(), f"{path}: {np.isnan(values).sum()} epochs of the grid have no score"
    found = Surface(num_codewords, se_weights, lrs, values)
    fresh: dict[tuple[int, int, int], dict[int, float]] = {}
    for row in table.filter(seeds > 0).sort_by("seed").to_pylist():
        point = {NUM_CODEWORDS: row["num_codewords"], SE_WEIGHT: row["se_weight"], LR: row["lr"]}
        best = fresh.setdefault(found.cell(point), {})
        # The epoch at which it diverged has no score.
        best[row["seed"]] = max(best.get(row["seed"], 0.0), row[metric] or 0.0)
    return replace(found, truth={cell: list(best.values()) for cell, best in fresh.items()})


def simulate(method: Method, surface: Surface, workers: int) -> Iterator[Event]:
    """One epoch after another, as `workers` trials at once report them, while there is anything to do.

    Every epoch takes equally long. The worker of a trial that has ended takes up the next one at once, which
    is proposed knowing all reports before it; a paused trial goes on where it was.
    """
    reached: dict[int, int] = {}
    places = [method.propose() for _ in range(workers)]
    turn = 0
    while any(places):
        turn += 1
        for place, trial in enumerate(places):
            if trial is None:
                continue
            number, values = trial
            epoch = reached[number] = reached.get(number, 0) + 1
            value = float(surface.curve(values)[epoch - 1])
            yield Event(turn, number, values, epoch, value)
            if method.ends(number, epoch, value):
                places[place] = method.propose()
        places = [place or method.propose() for place in places]


def find_hits(events: Iterable[Event], targets: Sequence[float], limit: int) -> list[Hit | None]:
    """When each target was reached; None if none of the first `limit` epochs did."""
    hits: list[Hit | None] = [None] * len(targets)
    for spent, event in enumerate(islice(events, limit), 1):
        for place, target in enumerate(targets):
            if hits[place] is None and event.value >= target:
                hits[place] = Hit(spent, event.turn)
        if all(hits):
            break
    return hits


def by_means(events: Iterable[Event], surface: Surface) -> Iterator[Event]:
    """The events, worth the mean of the further seeds at the end of a training, and nothing before it."""
    means = surface.means
    for event in events:
        is_whole = event.epoch == surface.epochs
        yield replace(event, value=means.get(surface.cell(event.values), 0.0) if is_whole else 0.0)


def floor(surface: Surface, target: float, workers: int) -> int:
    """Epochs that an oracle needs which trains the cells that reach the target first, one on each worker."""
    reaches = surface.miou >= target
    first = 1 + reaches.argmax(axis=-1)[reaches.any(axis=-1)].min()
    return int((first - 1) * workers + 1)


def _nearest(axis: NDArray[Any], value: float) -> int:
    return int(np.abs(axis - value).argmin())
