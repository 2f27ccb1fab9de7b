"""What benchmarks/search.py counts: the curve that a proposal is given, the epochs that a search spent."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.search_simulation import (
    LR,
    NUM_CODEWORDS,
    SE_WEIGHT,
    InOrder,
    Surface,
    Values,
    epochs_to,
    load_surface,
    reports,
)

ROOT = Path(__file__).parents[2]
EPOCHS = 3


@pytest.fixture
def surface() -> Surface:
    """Two values of each axis; a cell's number is the tens of its mIoU, the epoch the last digit."""
    cells = np.arange(8).reshape(2, 2, 2, 1)
    miou = np.asarray(10 * cells + np.arange(1, EPOCHS + 1), np.float64)
    return Surface(np.array([4, 16]), np.array([0.0, 1.0]), np.array([0.01, 0.1]), miou)


def point(k: int, weight: float, lr: float) -> Values:
    return {NUM_CODEWORDS: k, SE_WEIGHT: weight, LR: lr}


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        (point(4, 0.0, 0.01), 0),
        (point(16, 1.0, 0.1), 7),
        (point(9, 0.0, 0.01), 4),  # nearer to 4 by difference, to 16 by ratio
        (point(4, 0.49, 0.01), 0),
        (point(4, 0.0, 0.04), 1),  # nearer to 0.01 by difference, to 0.1 by ratio
    ],
)
def test_a_proposal_gets_the_curve_of_the_nearest_cell(surface: Surface, values: Values, cell: int) -> None:
    assert surface.curve(values).tolist() == [10 * cell + epoch for epoch in (1, 2, 3)]


def test_the_workers_report_in_turn_and_take_up_the_next_trial_at_once(surface: Surface) -> None:
    method = InOrder(surface.cells()[:3], EPOCHS)
    assert list(reports(method, surface, workers=2)) == [1, 11, 2, 12, 3, 13, 21, 22, 23]


class StopsTheFirst:
    """Ends trial 0 after its first epoch, and notes what had been reported when it was asked."""

    def __init__(self, points: list[Values]) -> None:
        self._points, self._numbers = points, count()
        self.seen: list[float] = []
        self.seen_when_asked: list[int] = []

    def propose(self) -> tuple[int, Values] | None:
        self.seen_when_asked.append(len(self.seen))
        number = next(self._numbers)
        return (number, self._points[number]) if number < len(self._points) else None

    def ends(self, number: int, epoch: int, value: float) -> bool:
        self.seen.append(value)
        return number == 0 or epoch == EPOCHS


def test_a_stopped_trial_costs_the_epochs_that_it_ran(surface: Surface) -> None:
    method = StopsTheFirst(surface.cells()[:3])
    assert list(reports(method, surface, workers=2)) == [1, 11, 21, 12, 22, 13, 23]
    assert method.seen_when_asked[:3] == [0, 0, 1]  # the third knows what the first reported, and no more


def test_a_search_of_every_cell_costs_the_whole_surface_and_finds_the_best(surface: Surface) -> None:
    values = list(reports(InOrder(surface.cells(), EPOCHS), surface, workers=4))
    assert sorted(values) == sorted(surface.miou.ravel())
    assert epochs_to(surface.best, values, limit=surface.miou.size) == surface.miou.size


def test_the_target_is_reached_by_the_epoch_that_reports_it_or_not_at_all() -> None:
    assert epochs_to(0.5, [0.1, 0.5, 0.9], limit=3) == 2
    assert epochs_to(0.5, [0.1, 0.5, 0.9], limit=1) is None
    assert epochs_to(2.0, [0.1, 0.5, 0.9], limit=3) is None


def test_a_surface_is_read_whatever_the_order_of_its_rows(surface: Surface, tmp_path: Path) -> None:
    rows = [
        {
            "num_codewords": cell[NUM_CODEWORDS],
            "se_weight": cell[SE_WEIGHT],
            "lr": cell[LR],
            "epoch": epoch,
            "miou": value,
        }
        for cell in reversed(surface.cells())
        for epoch, value in enumerate(surface.curve(cell).tolist(), 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "surface.parquet")
    read = load_surface(tmp_path / "surface.parquet")
    assert np.array_equal(read.miou, surface.miou)
    assert read.cells() == surface.cells()


def test_the_results_are_those_of_the_surface_that_is_shipped() -> None:
    surface = load_surface(ROOT / "benchmarks/surface/scenes.parquet")
    results = json.loads((ROOT / "benchmarks/results/search.json").read_text())
    assert results["best_miou"] == surface.best
    assert results["cells"] * results["epochs_a_cell"] == surface.miou.size
