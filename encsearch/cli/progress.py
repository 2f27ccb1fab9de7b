"""Progress for people: a live table on a terminal, plain lines anywhere else. Both go to stderr."""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from encsearch.cli.console import say
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
    format_percent,
    format_price,
    format_score,
)
from encsearch.workflow.job import Progress


@contextmanager
def progress(phase: str) -> Iterator[Progress]:
    """Show progress on stderr, in the form that suits a terminal or a file; `phase` is what begins."""
    if not sys.stderr.isatty():
        lines = LineProgress()
        lines.phase(phase)
        try:
            yield lines
        finally:
            lines.end_phase()
        return
    from rich.console import Console
    from rich.live import Live

    shown = LiveProgress()
    console = Console(stderr=True)
    with Live(console=console, get_renderable=shown.render, refresh_per_second=2, transient=True) as live:
        shown.show_on(live)
        shown.phase(phase)
        yield shown
    shown.conclude()


class LineProgress:
    """One line for each event; a trial has one for its start and one for its end.

    How far a sweep is follows the end or the pause of a trial, once in SWEEP_S seconds at most; how far an
    epoch is comes where nothing else was said for STEP_S. A phase is said when it takes PHASE_S: what is
    refused at once has one line.
    """

    SWEEP_S = STEP_S = 60
    PHASE_S = 10

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._done, self._next_sweep_s = 0, 0.0
        self._said_s, self._begun = 0.0, False
        self._pace = _Pace()
        self._timer: threading.Timer | None = None

    def say(self, line: str) -> None:
        self.end_phase()
        self._said_s = time.monotonic()
        say(f"[{format_clock(self._said_s - self._started)}] {line}")

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


class LiveProgress:
    """Lines that stay, and under them a table of the running and the last finished trials, and what goes on.

    Drawn by a thread, twice a second, so that the clock of a phase shows that something goes on.
    """

    ROWS = 16

    def __init__(self) -> None:
        self._events: dict[int, tuple[TrialEvent, int]] = {}  # with the epochs of the whole trial
        self._heading = self._sweep = self._step = self._phase = ""
        self._phase_s = 0.0
        self._pace = _Pace()

    def show_on(self, live: "Live") -> None:  # type: ignore[name-defined]  # noqa: F821
        self._live = live

    def say(self, line: str) -> None:
        self.end_phase()
        self._live.console.print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)

    def conclude(self) -> None:
        """What was drawn is gone, since the result has it; how far a sweep came stays."""
        if self._sweep:
            self.say(self._sweep)

    def phase(self, line: str) -> None:
        self._phase, self._phase_s, self._step = line, time.monotonic(), ""

    def end_phase(self) -> None:
        self._phase = ""

    def step(self, step: int, total: int, config: Config) -> None:
        self.end_phase()
        self._step = self._pace.step_line(step, total, config)

    def epoch(self, name: str, report: Report, config: Config) -> None:
        self.say(epoch_line(name, report, config))

    def trial(self, event: TrialEvent, config: Config) -> None:
        self.end_phase()
        self._events[event.number] = event, config.train.epochs
        self._heading = f"{config.metric} %"

    def sweep(self, now: SweepProgress, config: Config) -> None:
        self._sweep = sweep_line(now, config)

    def render(self) -> "Group":  # type: ignore[name-defined]  # noqa: F821
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for heading in ("trial", "values", "epoch", self._heading, "state"):
            table.add_column(heading)
        newest = sorted(self._events.values(), key=lambda e: (e[0].state == "RUNNING", e[0].number))
        for event, epochs in newest[-self.ROWS :]:
            value = "" if event.value is None else format_percent(event.value)
            epoch = f"{event.epoch}/{epochs}"
            table.add_row(str(event.number), format_params(event.values), epoch, value, event.state)
        phase = f"{self._phase} ... {format_clock(time.monotonic() - self._phase_s)}" if self._phase else ""
        lines = [Text(for_terminal(line)) for line in (self._sweep, self._step, phase) if line]
        return Group(*([table] if self._events else []), *lines)


class _Pace:
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
