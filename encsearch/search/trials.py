"""The record of one trial of a sweep, and the check whether trials are comparable."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from encsearch.config import Config, trial_config
from encsearch.reports import Status

TrialState = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING", "PAUSED"]

# Names of a model's size and latency, in a trial's results and in its study.
PARAMETERS, LATENCY = "parameters", "latency_ms"
# In a trial's result: it was told to end, and its state is on disk; why no trial can go on.
SAVED, ENDS_ALL = "saved", "ends_all"

# The status with which an ended trial's record is closed. One that was stopped early did what it was to do.
STATUS_OF: Mapping[TrialState, Status] = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}


@dataclass(frozen=True)
class Trial:
    """A trial's values by config path and its curve, (epoch, metric) a report.

    `value` is the best of the curve, also if the trial was pruned; `reason` says why it failed, was refused
    or was ended by the budget. `seconds` is the time of its epochs, without the time between a kill and the
    resume; `cost_seconds` adds up all its devices: GPUs, or CPUs where no GPU was booked. `hardware` lists
    what it ran on, in order: more than one entry if that changed. `minimized` is the second objective.
    `refused` trials exceeded a limit and never trained; `rerun_of` is the flagged trial that this repeats.
    `origin` says who proposed the values, see `proposals.Origin`; None for queued points. `repeat` counts the
    earlier trials with the same values, see `seeded_config`.
    """

    number: int
    values: Mapping[str, Any]
    state: TrialState
    value: float | None
    curve: tuple[tuple[int, float], ...]
    seconds: float
    reason: str | None = None
    cost_seconds: float = 0.0
    hardware: tuple[str, ...] = ()
    parameters: int | None = None
    minimized: float | None = None
    refused: bool = False
    rerun_of: int | None = None
    origin: str | None = None
    repeat: int = 0

    @property
    def epochs(self) -> int:
        return self.curve[-1][0] if self.curve else 0


def seeded_config(config: Config, values: Mapping[str, Any], repeat: int) -> Config:
    """The configuration of a trial; one that repeats earlier ones has the next seed."""
    seed = {"train.seed": config.train.seed + repeat} if repeat else {}
    return trial_config(config, {**values, **seed})


@dataclass(frozen=True)
class TrialEvent:
    """An event that the user sees: a trial started, reported an epoch, or ended.

    `value` is the last report's while the trial runs, and its best at the end.
    """

    number: int
    values: Mapping[str, Any]
    state: TrialState
    epoch: int
    value: float | None
    reason: str | None = None
    cost_seconds: float = 0.0


def flag_trials(trials: Sequence[Trial]) -> Mapping[int, str]:
    """Give the reason for each trial that is not comparable, by its number.

    Hardware, software and the number of workers change rounding, batch norm and latency, and so the metric. A
    trial is flagged if they changed midway, or if they differ from most trials that kept theirs (in a tie,
    the hardware of the first trial counts). A trial that never reported has no entry.
    """
    kept = Counter(trial.hardware[0] for trial in trials if len(trial.hardware) == 1)
    usual = max(kept, key=kept.__getitem__, default=None)
    reasons = {}
    for trial in trials:
        if len(trial.hardware) > 1:
            reasons[trial.number] = f"changed midway: {', then '.join(trial.hardware)}"
        elif trial.hardware and trial.hardware[0] != usual:
            reasons[trial.number] = f"ran on {trial.hardware[0]}, most trials on {usual}"
    return reasons
