"""Random simulations of which trials a sweep stops, and when, under its own rule. Pure, without a clock.

Assumptions: a trial's curve is drawn at random from the ended trials, with some noise; a curve that was cut
short stays level. Until enough trials have ended, curves rise alike and differ by a constant, so that a
trial's rank persists except for the noise. No trial fails, and no limit refuses one.
"""

import heapq
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encsearch.config import SearchConfig
from encsearch.search.stopping import Rungs, Verdict, checked_epochs, judge
from encsearch.search.trials import Trial

# MAX_RIVALS rivals, drawn at random, represent a larger number of them. If a trial may be stopped after twice
# MAX_CHECKS epochs or more, only every second, third, ... of them is checked.
MAX_RIVALS, MAX_CHECKS = 24, 8
# MIN_DONORS real curves are enough to draw from; otherwise there are NUM_ARTIFICIAL artificial ones.
MIN_DONORS, NUM_ARTIFICIAL = 5, 32
# Standard deviation of an epoch's noise, as a share of the trials' standard deviation.
NOISE = 0.3


@dataclass(frozen=True)
class Rehearsal:
    """One random sweep: remaining epochs of each open trial, and epochs of each one that starts later.

    A paused trial that is not promoted has none left.
    """

    running: tuple[int, ...]
    started: tuple[int, ...]


def rehearse(
    search: SearchConfig,
    epochs: int,
    trials: Sequence[Trial],
    *,
    num_new: int,
    at_once: int,
    seed: int,
) -> Rehearsal:
    """Simulate the sweep to its end, `at_once` trials at a time, from the present state of `trials`.

    `epochs` is a full trial's length; every epoch takes the same time.
    """
    return _Sweep(search, epochs, trials, random.Random(seed)).play(num_new, at_once)


class _Sweep:
    """The state of one simulated sweep."""

    def __init__(
        self, search: SearchConfig, epochs: int, trials: Sequence[Trial], rng: random.Random
    ) -> None:
        self._search, self._epochs, self._rng = search, epochs, rng
        self._open = {r.number: r.epochs for r in trials if r.state in ("RUNNING", "PAUSED")}
        self._paused = {r.number for r in trials if r.state == "PAUSED"}
        self._rungs = Rungs(search, epochs)
        self._standing = {r.number: r.curve[-1][1] for r in trials if r.number in self._open and r.curve}
        self._next = max((r.number for r in trials), default=-1) + 1
        self._donors = _donors(trials, epochs, rng)
        self._noise = NOISE * statistics.pstdev(donor[0] for donor in self._donors)
        self._curves: dict[int, dict[int, float]] = {}
        self._reached: dict[int, list[int]] = {}  # trials that have reported, by epoch
        for trial in trials:
            checks = self._checks(trial.number)
            for epoch, value in trial.curve:
                if epoch in checks:
                    self._report(trial.number, epoch, value)
        for number in self._paused:
            self._rungs.pause(number, self._curves[number])

    def play(self, num_new: int, at_once: int) -> Rehearsal:
        new = [self._next + place for place in range(num_new)]
        done = dict.fromkeys(new, 0) | self._open
        futures = {number: self._future(number) for number in done}
        running = [number for number in self._open if number not in self._paused]
        waiting = iter([*running, *new])
        # (time, trial) of the next check of each trial that runs, in order of time.
        events: list[tuple[int, int]] = []
        now = 0
        places = max(at_once, len(running))
        while True:
            while len(events) < places and (number := self._take(waiting, is_idle=not events)) is not None:
                heapq.heappush(events, (now + self._next_check(number, done[number]) - done[number], number))
            if not events:
                break
            now, number = heapq.heappop(events)
            epoch = done[number] = self._next_check(number, done[number])
            if epoch == self._epochs:
                continue
            self._report(number, epoch, futures[number][epoch - 1] + self._rng.gauss(0, self._noise))
            match self._judge(number, epoch):
                case "continue":
                    heapq.heappush(events, (now + self._next_check(number, epoch) - epoch, number))
                case "pause":
                    self._rungs.pause(number, self._curves[number])
                case "stop":
                    pass
        remaining = tuple(done[number] - before for number, before in self._open.items())
        return Rehearsal(remaining, tuple(done[number] for number in new))

    def _take(self, waiting: Iterator[int], is_idle: bool) -> int | None:
        """The next trial for a free place: a promoted one, or a new one; when none is left, the best."""
        for keep_one in (False, True):
            number = self._rungs.find_promotable(keep_one=keep_one)
            if number is not None:
                self._rungs.go_on(number, self._curves[number])
                return number
            if not keep_one and (number := next(waiting, None)) is not None:
                return number
            if not is_idle:
                return None
        return None

    def _next_check(self, number: int, epoch: int) -> int:
        return next((e for e in self._checks(number) if e > epoch), self._epochs)

    def _report(self, number: int, epoch: int, value: float) -> None:
        self._curves.setdefault(number, {})[epoch] = value
        self._rungs.report(number, epoch, value)
        self._reached.setdefault(epoch, []).append(number)

    def _judge(self, number: int, epoch: int) -> Verdict:
        if self._search.scheduler == "asha":
            return judge(self._search, self._epochs, number, self._curves, self._rungs)
        rivals = self._reached[epoch]
        if len(rivals) > MAX_RIVALS:
            rivals = self._rng.sample(rivals, MAX_RIVALS)
        curves = {n: self._curves[n] for n in [number, *rivals]}
        return judge(self._search, self._epochs, number, curves)

    def _checks(self, number: int) -> Sequence[int]:
        """The `checked_epochs`, or some of them if there are many."""
        epochs = checked_epochs(self._search, self._epochs, number)
        return epochs[:: max(1, len(epochs) // MAX_CHECKS)]

    def _future(self, number: int) -> list[float]:
        """Values by epoch, from 1; a running trial keeps its present value."""
        if number in self._standing:
            return [self._standing[number]] * self._epochs
        return self._rng.choice(self._donors)


def _donors(trials: Sequence[Trial], epochs: int, rng: random.Random) -> list[list[float]]:
    ended = [r for r in trials if r.curve and r.state in ("COMPLETE", "PRUNED")]
    if len(ended) >= MIN_DONORS:
        return [_levelled(r.curve, epochs) for r in ended]
    levels = [rng.gauss(0, 1) for _ in range(NUM_ARTIFICIAL)]
    return [[level - 3 / epoch for epoch in range(1, epochs + 1)] for level in levels]


def _levelled(curve: Sequence[tuple[int, float]], epochs: int) -> list[float]:
    """A value for every epoch: the latest one reported by then."""
    by_epoch = dict(curve)
    values, value = [], curve[0][1]
    for epoch in range(1, epochs + 1):
        value = by_epoch.get(epoch, value)
        values.append(value)
    return values
