"""The board of trainings that Ray Tune runs: which are running, their progress, and one end for each.

It connects `driver` with the code that has trainings to run, and does not depend on Ray.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from encsearch.config import Config
from encsearch.reports import Recorder, Report
from encsearch.search.trials import ENDS_ALL, SAVED

# Number of times that a training whose process is lost restarts from its last checkpoint.
RESTARTS = 2


@dataclass(frozen=True)
class Assignment:
    """One training; `folder` keeps its reports and its newest checkpoint, so that it can continue.

    With `keeps_best` the best epoch's checkpoint stays there, too. The process that reads a store with
    another fingerprint than `fingerprint` refuses it.
    """

    config: Config
    folder: Path
    fingerprint: str
    measures_latency: bool = False
    keeps_best: bool = False


@dataclass
class BoardEntry:
    """A training over all its attempts; `last` is its newest report, `seconds` sums those of all reports."""

    number: int
    assignment: Assignment
    recorder: Recorder | None = None
    last: Report | None = None
    seconds: float = 0.0
    failure: str | None = None
    restarts: int = 0
    is_saved: bool = False


E = TypeVar("E", bound=BoardEntry)


class Board(ABC, Generic[E]):
    """Waiting trainings and running trainings, at most `room` of the latter at once.

    Called in the driver, one event after the other; `key` is Tune's name of one attempt at a training. An
    attempt that continues from a checkpoint repeats the earlier reports; every epoch is taken once.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._waiting: deque[E] = deque()
        self._out: dict[str, E] = {}
        self.ends_for: str | None = None  # what makes all of them stop, to be resumed

    def next_assignment(self, key: str) -> Assignment | None:
        """The training to start now; None if there is none at the moment."""
        if not self._waiting or len(self._out) >= self.room:
            return None
        entry = self._out[key] = self._waiting.popleft()
        return entry.assignment

    def is_done(self) -> bool:
        """Whether nothing runs and nothing is left to start."""
        return not self._out and not self._waiting

    def is_over(self) -> bool:
        """Whether to end all running trainings now; asked several times a second."""
        return False

    def is_saved(self) -> bool:
        """Whether all that run have saved their state since the driver was told to end."""
        return all(entry.is_saved for entry in self._out.values())

    def started(self, key: str) -> None:
        entry = self._out[key]
        if entry.recorder is None:
            self._begin(entry)

    def reported(self, key: str, result: Mapping[str, Any]) -> bool:
        """Take a step's result, see `trial.TrialTrainable.step`; return whether to stop the training."""
        self._hear(self._out[key], result)
        return False

    def ended(self, key: str) -> None:
        """The training ended: by its last epoch, a `failure` that it reported, or a stop."""
        self._end(self._out.pop(key))

    def lost(self, key: str, reason: str) -> bool:
        """The training's process is gone; return whether the training starts again."""
        entry = self._out.pop(key)
        starts_again = entry.restarts < RESTARTS
        if starts_again:
            entry.restarts += 1
            self._waiting.append(entry)
        else:
            entry.failure = f"its process failed {RESTARTS + 1} times: {reason}"
            self._end(entry)
        return starts_again

    def _hear(self, entry: E, result: Mapping[str, Any]) -> Report | None:
        """Read a result; take its report unless it repeats an earlier one."""
        entry.failure, entry.is_saved = result.get("failure"), SAVED in result
        self.ends_for = self.ends_for or result.get(ENDS_ALL)
        if "report" not in result:
            return None
        report = Report.from_dict(result["report"])
        if entry.last is None or report.step > entry.last.step:
            entry.last = report
            entry.seconds += report.seconds
            self._take(entry, report)
        return report

    @abstractmethod
    def _begin(self, entry: E) -> None:
        """Open the training's recorder; the training starts for the first time in this process."""

    @abstractmethod
    def _take(self, entry: E, report: Report) -> None:
        """Take an epoch that this process has not seen before; the recorder is open."""

    @abstractmethod
    def _end(self, entry: E) -> None:
        """End the training once, by its `failure` or by the epochs that it reached; close the recorder."""

    def _still_open(self) -> list[E]:
        """Take all trainings off the board and return them; the caller ends them."""
        entries = [*self._out.values(), *self._waiting]
        self._out.clear()
        self._waiting.clear()
        return entries
