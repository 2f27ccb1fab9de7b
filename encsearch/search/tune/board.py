"""The board of trainings that Ray Tune runs: which are out, how far each came, and that each ends once.

It is the seam between `driver` and those that have trainings to run, and knows nothing of Ray.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from encsearch.config import Config
from encsearch.reports import Recorder, Report

# A training whose process is lost is started again from its last checkpoint this often.
RESTARTS = 2


@dataclass(frozen=True)
class Assignment:
    """One training; `folder` keeps its reports and its newest checkpoint, so that it can go on.

    A store whose fingerprint is not `fingerprint` is refused by the process that reads it.
    """

    config: Config
    folder: Path
    fingerprint: str
    measures_latency: bool = False


@dataclass
class Entry:
    """A job on the board, over all attempts at it; `last` is its newest report, `seconds` of all reports."""

    number: int
    assignment: Assignment
    recorder: Recorder | None = None
    last: Report | None = None
    seconds: float = 0.0
    failure: str | None = None
    restarts: int = 0


E = TypeVar("E", bound=Entry)


class Board(ABC, Generic[E]):
    """Jobs that wait and jobs that are out, at most `room` of these at once.

    Called in the driver, one event after the other; `key` is Tune's name of one attempt at a job. An attempt
    that goes on from a checkpoint reports again what was reported before; every epoch is taken once.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: deque[E] = deque()
        self._out: dict[str, E] = {}

    def next_assignment(self, key: str) -> Assignment | None:
        """What to start now; None if nothing is to be started at the moment."""
        if not self._waiting or len(self._out) >= self._room:
            return None
        entry = self._out[key] = self._waiting.popleft()
        return entry.assignment

    def is_done(self) -> bool:
        """Nothing runs and nothing is to come."""
        return not self._out and not self._waiting

    def is_over(self) -> bool:
        """Asked several times a second: whether all that runs is to be ended now."""
        return False

    def started(self, key: str) -> None:
        entry = self._out[key]
        if entry.recorder is None:
            self._begin(entry)

    def reported(self, key: str, result: Mapping[str, Any]) -> bool:
        """A step's result, see `trial.Trial.step`; whether the training is to be stopped."""
        self._hear(self._out[key], result)
        return False

    def ended(self, key: str) -> None:
        """After its last epoch, a `failure` that it reported, or a stop."""
        self._end(self._out.pop(key))

    def lost(self, key: str, reason: str) -> bool:
        """Its process is gone; whether the job will be given out again."""
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
        """The report of a result, which is taken unless it is a repetition."""
        entry.failure = result.get("failure")
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
        """Open the job's recorder: it starts for the first time in this process."""

    @abstractmethod
    def _take(self, entry: E, report: Report) -> None:
        """An epoch that was not reported before in this process; the recorder is open."""

    @abstractmethod
    def _end(self, entry: E) -> None:
        """The job's one end, with a `failure` or by how far it came; closes the recorder."""

    def _still_open(self) -> list[E]:
        """Take all jobs off the board, whose end is up to the caller."""
        entries = [*self._out.values(), *self._waiting]
        self._out.clear()
        self._waiting.clear()
        return entries
