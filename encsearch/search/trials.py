"""One trial of a sweep, as its study, its report and the choice of finalists see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TrialState = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING"]


@dataclass(frozen=True)
class TrialRecord:
    """A trial's values by config path and its curve, (epoch, metric) a report.

    `value` is the best of the curve, also of a trial that was pruned; `reason` says why it failed.
    """

    number: int
    values: Mapping[str, Any]
    state: TrialState
    value: float | None
    curve: tuple[tuple[int, float], ...]
    seconds: float
    reason: str | None = None

    @property
    def epochs(self) -> int:
        return self.curve[-1][0] if self.curve else 0


@dataclass(frozen=True)
class TrialEvent:
    """What a person following the sweep is told: a trial started, reported an epoch, or ended.

    `value` is the last report's while the trial runs, and its best at the end.
    """

    number: int
    values: Mapping[str, Any]
    state: TrialState
    epoch: int
    value: float | None
    reason: str | None = None
