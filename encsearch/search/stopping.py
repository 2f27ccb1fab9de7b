"""The decision which trials are stopped early: pure functions of the curves in the study.

Because a decision depends on the curves alone, a killed sweep makes it again after its resume, and the
simulations of `forecast` and of the benchmarks make the same one. Optuna's own pruners store a decision in
the study before they return it; a kill in between would lose the decision.
"""

import statistics
from collections.abc import Mapping, Sequence

from encsearch.config import SearchConfig

Curve = Mapping[int, float]
"""Metric by epoch."""


def should_stop(search: SearchConfig, epochs: int, number: int, curves: Mapping[int, Curve]) -> bool:
    """Whether to stop the trial `number`, which has just reported.

    `curves` holds every trial's curve so far, by number; `epochs` is a full trial's length, where none is
    stopped.
    """
    epoch = max(curves[number])
    if epoch not in checked_epochs(search, epochs, number):
        return False
    match search.scheduler:
        case "asha" | "hyperband":
            bracket = bracket_of(search, epochs, number)
            rivals = {n: c for n, c in curves.items() if bracket_of(search, epochs, n) == bracket}
            return _below_rung(search.asha.reduction_factor, epoch, number, rivals)
        case "median":
            return _below_median(search, epoch, number, curves)
        case "none":
            return False


def checked_epochs(search: SearchConfig, epochs: int, number: int) -> Sequence[int]:
    """Epochs before the last after which the trial may be stopped: its rungs, if the scheduler has any."""
    match search.scheduler:
        case "asha" | "hyperband":
            return all_rungs(search, epochs)[bracket_of(search, epochs, number) :]
        case "median":
            return range(search.median.grace_epochs, epochs)
        case "none":
            return ()


def all_rungs(search: SearchConfig, epochs: int) -> tuple[int, ...]:
    """first_rung * reduction_factor ** n below the full length (Li et al., MLSys 2020, algorithm 2)."""
    rungs, rung = [], search.asha.first_rung(epochs)
    while rung < epochs:
        rungs.append(rung)
        rung *= search.asha.reduction_factor
    return tuple(rungs)


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
