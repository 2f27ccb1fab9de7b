"""What benchmarks/search.py counts: the curve that a proposal is given, the epochs that a search spent."""

import json
from dataclasses import replace
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
    Event,
    Hit,
    InOrder,
    Method,
    Surface,
    Values,
    by_means,
    find_hits,
    floor,
    load_surface,
    simulate,
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


def reports(method: Method, surface: Surface, workers: int) -> list[float]:
    return [event.value for event in simulate(method, surface, workers)]


def test_the_workers_report_in_turn_and_take_up_the_next_trial_at_once(surface: Surface) -> None:
    method = InOrder(surface.cells()[:3], EPOCHS)
    assert reports(method, surface, workers=2) == [1, 11, 2, 12, 3, 13, 21, 22, 23]


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
    assert reports(method, surface, workers=2) == [1, 11, 21, 12, 22, 13, 23]
    assert method.seen_when_asked[:3] == [0, 0, 1]  # the third knows what the first reported, and no more


class PausesTheFirst:
    """Lets trial 0 go on where it was once trial 1 has ended."""

    def __init__(self, points: list[Values]) -> None:
        self._points, self._next = points, [1, 0]

    def propose(self) -> tuple[int, Values] | None:
        number = self._next.pop() if self._next else None
        return None if number is None else (number, self._points[number])

    def ends(self, number: int, epoch: int, value: float) -> bool:
        if number == 1 and epoch == EPOCHS:
            self._next.append(0)
        return epoch == EPOCHS or (number, epoch) == (0, 1)


def test_a_paused_trial_goes_on_where_it_was(surface: Surface) -> None:
    events = list(simulate(PausesTheFirst(surface.cells()[:2]), surface, workers=1))
    assert [(event.number, event.epoch) for event in events] == [
        (0, 1),
        (1, 1),
        (1, 2),
        (1, 3),
        (0, 2),
        (0, 3),
    ]
    assert [event.turn for event in events] == [1, 2, 3, 4, 5, 6]


def test_a_search_of_every_cell_costs_the_whole_surface_and_finds_the_best(surface: Surface) -> None:
    events = list(simulate(InOrder(surface.cells(), EPOCHS), surface, workers=4))
    assert sorted(event.value for event in events) == sorted(surface.miou.ravel())
    assert find_hits(events, [surface.best], limit=surface.miou.size) == [Hit(surface.miou.size, 6)]


def test_a_target_is_reached_by_the_epoch_that_reports_it_or_not_at_all() -> None:
    events = [Event(turn, 0, {}, turn, value) for turn, value in enumerate((0.1, 0.5, 0.9), 1)]
    assert find_hits(events, [0.5, 0.9, 2.0], limit=3) == [Hit(2, 2), Hit(3, 3), None]
    assert find_hits(events, [0.5], limit=1) == [None]


def test_an_oracle_trains_only_what_reaches_the_target(surface: Surface) -> None:
    """Cell 7 has 71, 72 and 73, so it reaches 62 in its first epoch; cell 6 has 61, 62 and 63."""
    assert [floor(surface, target, workers=1) for target in (62, 73)] == [1, 3]
    assert floor(surface, 73, workers=4) == 9


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
    again = [{**row, "seed": seed, "miou": row["miou"] + seed} for row in rows[:EPOCHS] for seed in (1, 2)]
    table = pa.Table.from_pylist([{"seed": 0, **row} for row in rows] + again)
    pq.write_table(table, tmp_path / "surface.parquet")
    read = load_surface(tmp_path / "surface.parquet")
    assert np.array_equal(read.miou, surface.miou)
    assert read.cells() == surface.cells()
    assert read.truth == {(1, 1, 1): [74, 75]}, "the best epoch of each further seed"


def test_with_fresh_seeds_a_cell_is_worth_their_mean_when_it_is_trained_to_its_end(surface: Surface) -> None:
    known = replace(surface, truth={(0, 0, 0): [60.0, 80.0]})
    method = InOrder(surface.cells()[:2], EPOCHS)
    values = [event.value for event in by_means(simulate(method, known, workers=1), known)]
    assert values == [0, 0, 70, 0, 0, 0], "a cell without fresh seeds is none of the best"


def test_the_results_are_those_of_the_surfaces_that_are_shipped() -> None:
    results = json.loads((ROOT / "benchmarks/results/search.json").read_text())
    assert results
    for name, found in results.items():
        surface = load_surface(ROOT / f"benchmarks/surface/{name}.parquet")
        assert found["best_miou"] == surface.best
        assert found["cells"] * found["epochs_a_cell"] == surface.miou.size
