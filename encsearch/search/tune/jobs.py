"""What Ray Tune is given to run, and whom it tells: the seam between `driver` and the two that use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from encsearch.config import Config

# A training whose process is lost is started again from its last checkpoint this often.
RESTARTS = 2


@dataclass(frozen=True)
class Job:
    """One training; `folder` keeps its reports and its newest checkpoint, so that it can go on.

    A store whose fingerprint is not `fingerprint` is refused by the process that reads it.
    """

    config: Config
    folder: Path
    fingerprint: str
    measures_latency: bool = False


class JobSource(Protocol):
    """Called in the driver, one event after the other; `key` is Tune's name of one attempt at a job."""

    def next_job(self, key: str) -> Job | None:
        """What to start now; None if nothing is to be started at the moment."""
        ...

    def is_done(self) -> bool:
        """Nothing runs and nothing is to come."""
        ...

    def is_over(self) -> bool:
        """Asked several times a second: whether all that runs is to be ended now."""
        ...

    def started(self, key: str) -> None: ...

    def reported(self, key: str, result: Mapping[str, Any]) -> bool:
        """A step's result, see `trial.Trial.step`; whether the training is to be stopped."""
        ...

    def ended(self, key: str) -> None:
        """After its last epoch, a `failure` that it reported, or a stop."""
        ...

    def lost(self, key: str, reason: str) -> None:
        """Its process is gone; the job may be given out again."""
        ...
