"""The decision which trials go on, pause or stop: it follows from the curves in the study alone.

Because a decision depends on the curves alone, a killed sweep makes it again after its resume, and the
simulations of `forecast` and of the benchmarks make the same one. Optuna's own pruners store a decision in
the study before they return it; a kill in between would lose the decision.
"""

import math
import statistics
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from encsearch.config import SearchConfig

Curve = Mapping[int, float]
"""Metric by epoch."""

Verdict = Literal["continue", "pause", "stop"]


class Rungs:
    """Who came to each rung of a search, and who waits there, both in order of their values.

    Kept in step with the curves, so that a decision costs no walk over all trials. It says what
    `find_promotable` would say of the same curves.
    """

    def __init__(
        self,
        search: SearchConfig,
        epochs: int,
        curves: Mapping[int, Curve] = MappingProxyType({}),
        paused: Collection[int] = (),
    ) -> None:
        self._factor = search.asha.reduction_factor
        highest_first = all_rungs(search, epochs)[::-1]
        self._reached: dict[int, list[_Place]] = {
            rung: sorted(_place(number, curve[rung]) for number, curve in curves.items() if rung in curve)
            for rung in highest_first
        }
        self._waiting: dict[int, list[_Place]] = {rung: [] for rung in highest_first}
        for number in paused:
            self.pause(number, curves[number])

    def report(self, number: int, epoch: int, value: float) -> None:
        """Take a value that the trial has not reported before."""
        if epoch in self._reached:
            insort(self._reached[epoch], _place(number, value))

    def pause(self, number: int, curve: Curve) -> None:
        """The trial waits at its last epoch."""
        epoch = max(curve)
        if epoch in self._waiting:
            insort(self._waiting[epoch], _place(number, curve[epoch]))

    def go_on(self, number: int, curve: Curve) -> None:
        """The trial waits no longer."""
        epoch = max(curve)
        if epoch in self._waiting:
            self._waiting[epoch].remove(_place(number, curve[epoch]))

    def find_promotable(self, *, keep_one: bool = False) -> int | None:
        """See the function of that name."""
        for rung, waiting in self._waiting.items():
            reached = self._reached[rung]
            kept = max(int(keep_one), len(reached) // self._factor)
            if waiting and bisect_left(reached, waiting[0]) < kept:
                return waiting[0][1]
        return None


_Place = tuple[float, int]
"""Sorts by falling value, then by the trial's number."""


def judge(
    search: SearchConfig, epochs: int, number: int, curves: Mapping[int, Curve], rungs: Rungs | None = None
) -> Verdict:
    """What becomes of the trial `number`, which has just reported.

    `curves` holds every trial's curve so far, by number; `epochs` is a full trial's length; `rungs` are of
    the same curves, and where trials pause they must be given. A paused trial would go on at once if it is
    the one chosen.
    """
    curve = curves[number]
    epoch = max(curve)
    if epoch not in checked_epochs(search, epochs, number):
        return "continue"
    match search.scheduler:
        case "asha":
            assert rungs
            rungs.pause(number, curve)
            chosen = rungs.find_promotable()
            rungs.go_on(number, curve)
            return "continue" if chosen == number else "pause"
        case "asha_stop" | "hyperband":
            bracket = bracket_of(search, epochs, number)
            rivals = {n: c for n, c in curves.items() if bracket_of(search, epochs, n) == bracket}
            is_over = _below_rung(search.asha.reduction_factor, epoch, number, rivals)
        case "median":
            is_over = _below_median(search, epoch, number, curves)
        case "none":
            is_over = False
    return "stop" if is_over else "continue"


def find_promotable(
    search: SearchConfig,
    epochs: int,
    curves: Mapping[int, Curve],
    paused: Collection[int],
    *,
    keep_one: bool = False,
) -> int | None:
    """The paused trial to go on with, which is in the best 1/reduction_factor of all that reached its rung.

    The highest rung comes first, then the best value (Li et al., MLSys 2020, algorithm 2); None if there is
    none. With `keep_one`, at the end of a search, the best trial of a rung goes on however few came there.
    """
    return Rungs(search, epochs, curves, paused).find_promotable(keep_one=keep_one)


def checked_epochs(search: SearchConfig, epochs: int, number: int) -> Sequence[int]:
    """Epochs before the last after which the trial may end or pause: its rungs, if the scheduler has any."""
    match search.scheduler:
        case "asha" | "asha_stop" | "hyperband":
            return all_rungs(search, epochs)[bracket_of(search, epochs, number) :]
        case "median":
            return range(search.median.grace_epochs, epochs)
        case "none":
            return ()


def all_rungs(search: SearchConfig, epochs: int) -> tuple[int, ...]:
    """first_rung * reduction_factor ** n below the full length (Li et al., MLSys 2020, algorithm 2).

    After the first one a rung is left out if less than a whole factor lies between it and the full length:
    it would save little, and pause trials late that have come far.
    """
    return tuple(_list_rungs(search.asha.first_rung(epochs), search.asha.reduction_factor, epochs))


def bracket_of(search: SearchConfig, epochs: int, number: int) -> int:
    """Number of first rungs that the trial skips: 0 in ASHA, where all trials share one bracket.

    Hyperband (Li et al., JMLR 2018, algorithm 1) hedges against curves that cross: each bracket has one rung
    less than the one before, and fewer trials, so that both take the same epochs. Trials are assigned to
    brackets in turn by those shares, so that the bracket follows from the number.
    """
    if search.scheduler != "hyperband":
        return 0
    factor, brackets = search.asha.reduction_factor, len(all_rungs(search, epochs)) + 1
    # A bracket of m rungs starts about factor ** m / (m + 1) trials.
    shares = [max(1, round(factor**m / (m + 1))) for m in reversed(range(brackets))]
    place = number % sum(shares)
    for bracket, share in enumerate(shares):
        if place < share:
            return bracket
        place -= share
    raise AssertionError(number)


def _place(number: int, value: float) -> _Place:
    # NaN would break the order; it comes last.
    return (math.inf if math.isnan(value) else -value), number


def _list_rungs(first: int, factor: int, epochs: int) -> Iterator[int]:
    rung = first
    while rung < epochs and (rung == first or rung * factor <= epochs):
        yield rung
        rung *= factor


def _below_rung(factor: int, epoch: int, number: int, curves: Mapping[int, Curve]) -> bool:
    """Asynchronous halving: whether the trial is outside the best 1/factor at this rung so far.

    If fewer than `factor` trials have reached it, only the best one continues.
    """
    reached = [curve[epoch] for curve in curves.values() if epoch in curve]
    kept = max(1, len(reached) // factor)
    return curves[number][epoch] < sorted(reached, reverse=True)[kept - 1]


def _below_median(search: SearchConfig, epoch: int, number: int, curves: Mapping[int, Curve]) -> bool:
    """The trial's best so far is below the median of the others' mean up to this epoch.

    Golovin et al., "Google Vizier", KDD 2017, section 3.2.2.
    """
    others = [
        statistics.fmean(value for e, value in curve.items() if e <= epoch)
        for n, curve in curves.items()
        if n != number and max(curve, default=0) >= epoch
    ]
    enough = len(others) >= search.median.min_trials
    return enough and max(curves[number].values()) < statistics.median(others)
