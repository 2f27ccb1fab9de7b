"""The forecast of a sweep's remaining time: many random sweeps are simulated, and their spread is reported.

`rehearsal` simulates which trials are stopped; its assumptions hold here too. A trial's seconds an epoch are
drawn from the measured ones, and all may be off by a common factor (`Pace.doubt`). Pure.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encsearch.config import ScalingConfig, SearchConfig
from encsearch.search.budget.rehearsal import Rehearsal, rehearse
from encsearch.search.budget.rules import (
    Cost,
    Needs,
    Pace,
    Spent,
    compute_needs,
    confirm_cost,
    confirm_places,
    devices_of,
    left_of,
    spent_by,
)
from encsearch.search.study.proposals import count_points
from encsearch.search.trials import Trial

REPETITIONS = 200
# Simulating which trials are stopped costs far more than simulating their times, and varies less.
# Trials that start in all rehearsals together, and trials so far that they all go through.
REHEARSED_TRIALS, KNOWN_TRIALS = 800, 40_000
MIN_REHEARSALS, MAX_REHEARSALS = 2, 40
# At most this many trials are simulated; beyond that, each one represents several.
MAX_PLAYED = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The 10 %, 50 % and 90 % quantiles."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """The rest of the search; both times include the confirmation of its finalists.

    `device_s` adds up the seconds of all GPUs, or of all CPUs where no GPU is booked.
    """

    wall_s: Interval
    device_s: Interval
    trials: Interval
    epochs: Interval


@dataclass(frozen=True)
class ForecastPoint:
    """A forecast of the sweep's end, made `elapsed_s` after its start; all are seconds since the start."""

    elapsed_s: float
    low_s: float
    median_s: float
    high_s: float


@dataclass(frozen=True)
class Backtest:
    """How good the forecasts were.

    `errors` has (share of the sweep, error of the median as a share of the whole time, positive if too long):
    for the first forecast, and for the last one before 25, 50 and 75 %. `held` is the share of the forecasts
    whose interval contained the true end; 80 % would be right.
    """

    errors: tuple[tuple[float, float], ...]
    held: float


def forecast(
    search: SearchConfig,
    scaling: ScalingConfig,
    epochs: int,
    trials: Sequence[Trial],
    pace: Pace,
    *,
    elapsed_s: float,
    at_once: int,
    num_confirmed: int = 0,
    seed: int = 0,
) -> Forecast:
    """Forecast the rest of a sweep `elapsed_s` after its start, with `at_once` trials at a time.

    `epochs` is a full trial's length, `trials` are all trials so far, and `num_confirmed` trainings after the
    search are finished. As in `rules.decide`, the search ends when only the time that its finalists need is
    left. The same arguments give the same forecast.
    """
    rng = np.random.default_rng((seed, len(trials)))
    spent = spent_by(trials, elapsed_s)
    needs = compute_needs(search, scaling, epochs, pace, at_once)
    limit = _search_limit(search, needs, spent)
    devices = devices_of(scaling)
    to_start = min(num_to_start(search, spent), _startable(limit, devices, pace, at_once))
    num_new = int(min(to_start, MAX_PLAYED))
    affordable = min(REHEARSED_TRIALS // (num_new + 1), KNOWN_TRIALS // (len(trials) + 1))
    rehearsals = [
        rehearse(search, epochs, trials, num_new=num_new, at_once=at_once, seed=int(rng.integers(2**31)))
        for _ in range(min(max(affordable, MIN_REHEARSALS), MAX_REHEARSALS))
    ]
    played = _play_time(rng, rehearsals, pace, at_once, weight=to_start / max(1, num_new))
    ends = _end_of_search(played, limit, devices)
    each = confirm_cost(search.confirm, scaling, epochs, 1)
    fixed = confirm_cost(search.confirm, scaling, epochs, 0)
    count = max(0, needs.plan.num_trainings - num_confirmed)
    drawn = _draw(rng, pace, (REPETITIONS, count)) * played.factor[:, None]
    each_s = fixed.wall_s + (each.wall_s - fixed.wall_s) * drawn
    each_s *= np.exp(rng.normal(0, pace.confirm_doubt, size=REPETITIONS))[:, None]
    places = confirm_places(search, scaling, at_once)
    # Finalists come first, and baselines wait for all of them.
    num_last = min(count, len(needs.plan.baselines) * len(needs.plan.seeds))
    confirm_s = sum(
        each_s[:, turn : min(turn + places, end)].max(axis=1)
        for start, end in ((0, count - num_last), (count - num_last, count))
        for turn in range(start, end, places)
    )
    device_s = played.busy(ends) * devices + each_s.sum(axis=1) * each.device_s / each.wall_s
    return Forecast(
        wall_s=_interval(ends + confirm_s),
        device_s=_interval(device_s),
        trials=_interval(played.num_started(ends)),
        epochs=_interval(played.num_epochs(ends)),
    )


def num_to_start(search: SearchConfig, spent: Spent) -> int:
    """Number of trials that the budget, or a finite space, has left."""
    planned: float = search.budget.trials
    if search.repeats == "none":
        planned = min(planned, count_points(search.space))
    return max(0, int(planned) - spent.trials)


def backtest(points: Sequence[ForecastPoint], ended_s: float) -> Backtest | None:
    """Compare the forecasts that were made during a sweep with its end; None if there were none."""
    if not points or ended_s <= 0:
        return None
    errors = []
    for share in (0.0, 0.25, 0.5, 0.75):
        made = [point for point in points if point.elapsed_s <= share * ended_s] or points[:1]
        errors.append((share, made[-1].median_s / ended_s - 1))
    held = sum(point.low_s <= ended_s <= point.high_s for point in points) / len(points)
    return Backtest(tuple(errors), held)


def _search_limit(search: SearchConfig, needs: Needs, spent: Spent) -> Cost:
    """The cost that the search may still add before the rest is needed for its finalists."""
    left = left_of(search.budget, spent.cost + needs.confirm)
    return Cost(max(0.0, left.wall_s), max(0.0, left.device_s))


@dataclass(frozen=True)
class _Played:
    """Start and end, in s from now, and epochs of each trial (columns) in each repetition (rows).

    `startup` is the time before a trial's first epoch, `factor` (rows) the error that all times have in
    common. The first `num_running` trials run already. `weights` is the number of trials in a column.
    """

    starts: Floats
    ends: Floats
    epochs: Floats
    startup: Floats
    factor: Floats
    num_running: int
    weights: Floats

    def busy(self, until: Floats) -> Floats:
        """Seconds of all trials together, up to the time `until` of each repetition."""
        total: Floats = np.clip(until[:, None] - self.starts, 0, self.ends - self.starts).sum(axis=1)
        return total

    def num_started(self, until: Floats) -> Floats:
        """Number of trials that do not run yet and start before `until`."""
        # A paused trial that is not promoted takes no time.
        lengths = np.maximum(self.ends - self.starts, 1e-9)
        share = np.clip((until[:, None] - self.starts) / lengths, 0, 1)
        count: Floats = np.ceil(share * self.weights)[:, self.num_running :].sum(axis=1)
        return count

    def num_epochs(self, until: Floats) -> Floats:
        """Number of epochs that end before `until`."""
        training = np.maximum(self.ends - self.starts - self.startup, 1e-9)
        share = np.clip((until[:, None] - self.starts - self.startup) / training, 0, 1)
        total: Floats = (np.floor(share * self.epochs * self.weights + 1e-9)).sum(axis=1)
        return total


def _play_time(
    rng: np.random.Generator, rehearsals: Sequence[Rehearsal], pace: Pace, at_once: int, weight: float
) -> _Played:
    """Draw a rehearsal for each repetition and times for its trials; a new one stands for `weight` trials."""
    num_running = len(rehearsals[0].running)
    epochs = np.array([r.running + r.started for r in rehearsals], dtype=np.float64)
    epochs = epochs[rng.integers(len(rehearsals), size=REPETITIONS)]
    is_running = np.arange(epochs.shape[1]) < num_running
    factor = np.exp(rng.normal(0, pace.doubt, size=REPETITIONS))
    # The current epoch of a running trial is taken as half over.
    training = np.maximum(epochs - 0.5 * is_running, 0) * _draw(rng, pace, epochs.shape)
    weights = np.where(is_running, 1, weight)
    startup = weights * np.where(is_running, 0, pace.startup_s) * factor[:, None]
    seconds = startup + weights * training * factor[:, None]
    starts = np.array([_starts(row, at_once) for row in seconds.tolist()]).reshape(epochs.shape)
    return _Played(starts, starts + seconds, epochs, startup, factor, num_running, weights)


def _starts(seconds: list[float], at_once: int) -> list[float]:
    """Start times of the trainings if `at_once` run at a time, each in the first free place."""
    free = [0.0] * at_once
    starts = []
    for length in seconds:
        starts.append(free[0])
        if length:  # a paused trial that is not promoted takes no place
            heapq.heapreplace(free, free[0] + length)
    return starts


def _draw(rng: np.random.Generator, pace: Pace, shape: tuple[int, int]) -> Floats:
    """Draw seconds an epoch, interpolated between the measured ones."""
    places = np.linspace(0, 1, len(pace.epoch_s))
    drawn: Floats = np.interp(rng.random(shape), places, pace.epoch_s)
    return drawn


def _startable(limit: Cost, devices: float, pace: Pace, at_once: int) -> float:
    """Upper bound of the trials that start within the limit: one epoch each, at twice the fastest speed."""
    seconds = min(at_once * limit.wall_s, limit.device_s / devices)
    return float(np.ceil(2 * seconds / (pace.startup_s + pace.quantile(0))))


def _end_of_search(played: _Played, limit: Cost, devices: float) -> Floats:
    """Time at which each repetition's last trial ends, or the limit ends it."""
    ends: Floats = np.minimum(played.ends.max(axis=1, initial=0), limit.wall_s)
    if math.isinf(limit.device_s):
        return ends
    low = np.zeros_like(ends)
    for _ in range(30):  # by bisection, since device seconds only grow
        middle = (low + ends) / 2
        is_over = played.busy(middle) * devices > limit.device_s
        low, ends = np.where(is_over, low, middle), np.where(is_over, middle, ends)
    return ends


def _interval(values: Floats) -> Interval:
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return Interval(low, median, high)
