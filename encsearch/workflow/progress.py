"""Progress in lines: what a job has done, and what goes on."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from encsearch.config import Config
from encsearch.errors import for_terminal
from encsearch.reports import Report
from encsearch.search.budget.keeper import SweepProgress
from encsearch.search.trials import TrialEvent
from encsearch.text import (
    format_clock,
    format_cost,
    format_count,
    format_duration,
    format_number,
    format_params,
    format_price,
    format_score,
)
from encsearch.workflow.job import Progress


@contextmanager
def line_progress(say: Callable[[str], object], phase: str) -> Iterator[Progress]:
    """Tell `say` the progress of the block in lines; `phase` is what begins."""
    lines = LineProgress(say)
    lines.phase(phase)
    try:
        yield lines
    finally:
        lines.end_phase()


class LineProgress:
    """One line for each event, to `say`; a trial has one for its start and one for its end.

    How far a sweep is follows the end or the pause of a trial, once in SWEEP_S seconds at most; how far an
    epoch is comes where nothing else was said for STEP_S. A phase is said when it takes PHASE_S: what is
    refused at once has one line.
    """

    SWEEP_S = STEP_S = 60
    PHASE_S = 10

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._started = time.monotonic()
        self._done, self._next_sweep_s = 0, 0.0
        self._said_s, self._begun = 0.0, False
        self._pace = Pace()
        self._timer: threading.Timer | None = None

    def say(self, line: str) -> None:
        self.end_phase()
        self._said_s = time.monotonic()
        self._say(for_terminal(f"[{format_clock(self._said_s - self._started)}] {line}"))

    def phase(self, line: str) -> None:
        self.end_phase()
        self._timer = threading.Timer(self.PHASE_S, self.say, [line])
        self._timer.daemon = True
        self._timer.start()

    def end_phase(self) -> None:
        if self._timer:
            self._timer.cancel()

    def step(self, step: int, total: int, config: Config) -> None:
        if not self._begun or time.monotonic() > self._said_s + self.STEP_S:
            self._begun = True
            self.say(self._pace.step_line(step, total, config))

    def epoch(self, name: str, report: Report, config: Config) -> None:
        self.say(epoch_line(name, report, config))

    def trial(self, event: TrialEvent, config: Config) -> None:
        values = format_params(event.values)
        if event.state == "RUNNING" and event.epoch == 0:
            self.say(f"trial {event.number} starts: {values}")
        elif event.state != "RUNNING":
            score = f"{config.metric} {format_score(event.value)}"
            reason = f" ({event.reason})" if event.reason else ""
            epochs = f"{event.epoch}/{format_count(config.train.epochs, 'epoch')}"
            self.say(f"trial {event.number} {event.state}: {score}, {epochs}{reason}")

    def sweep(self, now: SweepProgress, config: Config) -> None:
        now_s = time.monotonic()
        done = now.ended + now.paused
        if done > self._done and now_s >= self._next_sweep_s:
            self._done, self._next_sweep_s = done, now_s + self.SWEEP_S
            self.say(sweep_line(now, config))


class Pace:
    """How far a training is, and for how long it will go on at its pace until now, validation included."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def step_line(self, step: int, total: int, config: Config) -> str:
        now_s = time.monotonic()
        first, began_s = self._first = self._first or (step, now_s)
        line = f"{config.name} trains: step {format_count(step)} of {format_count(total)}"
        if step and step % (total // config.train.epochs) == 0:
            return f"{line}, the end of an epoch; validating"
        if step == first:
            return line
        return f"{line}; {format_duration((total - step) * (now_s - began_s) / (step - first))} to go"


def sweep_line(now: SweepProgress, config: Config) -> str:
    """How far a sweep is: its trials, the best one, what is spent of each budget, and the time to go."""
    trials = f"{now.ended} of {format_count(now.planned, 'trial')} ended"
    parts = [trials + (f", {now.paused} paused" if now.paused else "")]
    if now.best:
        parts.append(f"best {config.metric} {format_score(now.best.value)} (trial {now.best.number})")
    spent, left = now.spent, now.left
    of_wall = f" of {format_duration(spent.wall_s + left.wall_s)}" if math.isfinite(left.wall_s) else ""
    parts.append(f"{format_duration(spent.wall_s)}{of_wall} spent")
    if math.isfinite(left.device_s):
        whole = format_cost(spent.device_s + left.device_s, "GPU")
        parts.append(f"{format_cost(spent.device_s, 'GPU')} of {whole}")
    if (price := config.scaling.price(spent.device_s)) is not None:
        parts[-1] += format_price(price)
    if now.to_go_s:
        low, high = map(format_duration, now.to_go_s)
        parts.append(f"{low} to {high} to go")
    return "; ".join(parts)


def epoch_line(name: str, report: Report, config: Config) -> str:
    score, loss = format_score(report.metrics[config.metric]), format_number(report.metrics["train/loss"])
    return (
        f"{name} epoch {report.epoch}/{config.train.epochs}: {config.metric} {score}, loss {loss}, "
        f"{format_duration(report.seconds)}" + (f"; ends here: {report.ends}" if report.ends else "")
    )
