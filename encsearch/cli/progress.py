"""Progress for people: a live table on a terminal, plain lines anywhere else. Both go to stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from encsearch.cli.console import say
from encsearch.config import Config
from encsearch.errors import for_terminal
from encsearch.reports import Report
from encsearch.search.budget.keeper import SweepProgress
from encsearch.search.trials import TrialEvent
from encsearch.text import format_clock, format_params, format_percent
from encsearch.workflow.job import Progress
from encsearch.workflow.progress import Pace, epoch_line, line_progress, sweep_line


@contextmanager
def progress(phase: str) -> Iterator[Progress]:
    """Show progress on stderr, in the form that suits a terminal or a file; `phase` is what begins."""
    if not sys.stderr.isatty():
        with line_progress(say, phase) as lines:
            yield lines
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


class LiveProgress:
    """Lines that stay, and under them a table of the running and the last finished trials, and what goes on.

    Drawn by a thread, twice a second, so that the clock of a phase shows that something goes on.
    """

    ROWS = 16

    def __init__(self) -> None:
        self._events: dict[int, tuple[TrialEvent, int]] = {}  # with the epochs of the whole trial
        self._heading = self._sweep = self._step = self._phase = ""
        self._phase_s = 0.0
        self._pace = Pace()

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
