"""The ledger of a running sweep: what each trial was given, how far it came, how it ended.

It knows nothing of Ray Tune but its trial ids, and keeps the study, the recorders and the person who follows
the sweep in step: every epoch is taken once, every trial ends once, with its true state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from encsearch.config import Config, to_json, with_values
from encsearch.records import Recorder, Report, Status
from encsearch.search.study import Study


@dataclass(frozen=True)
class TrialEvent:
    """What a person following the sweep is told: a trial started, reported an epoch, or ended."""

    number: int
    values: Mapping[str, Any]
    state: str
    epoch: int
    value: float | None
    reason: str | None = None


class SweepObserver(Protocol):
    """What the sweep's owner does about its trials; called in the driver, between two Tune events."""

    def open_recorder(self, number: int, config: Config) -> Recorder:
        """A trial starts. The recorder is closed FINISHED, KILLED (stopped early) or FAILED."""
        ...

    def trial_trained(self, number: int, config: Config, checkpoint: Path) -> None:
        """A trial has ended with a checkpoint, its last epoch's; its recorder is still open."""
        ...

    def follow(self, event: TrialEvent) -> None:
        """Something happened that a person may want to see."""
        ...


@dataclass
class _Entry:
    number: int
    values: Mapping[str, Any]
    config: Config
    recorder: Recorder | None = None
    last: Report | None = None


class Ledger:
    """The trials of one sweep, by Tune's id."""

    def __init__(self, config: Config, study: Study, observer: SweepObserver) -> None:
        self.config = config
        self._study, self._observer = study, observer
        self._open: dict[str, _Entry] = {}

    def propose(self, trial_id: str) -> dict[str, str]:
        """Ask the study for a new trial's values; what Tune hands to the trial."""
        number, values = self._study.ask()
        entry = _Entry(number, values, with_values(self.config, values).model_copy(update={"search": None}))
        self._open[trial_id] = entry
        return {"config": to_json(entry.config)}

    def started(self, trial_id: str) -> None:
        """The trial has a process; called again when a lost trial starts anew, and its record goes on."""
        entry = self._open[trial_id]
        if entry.recorder is None:
            entry.recorder = self._observer.open_recorder(entry.number, entry.config)
            self._tell(entry, "RUNNING")

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take an epoch once, also when a restarted trial repeats it."""
        entry = self._open[trial_id]
        assert entry.recorder is not None
        if "report" not in result:
            return
        report = Report.from_dict(result["report"])
        if entry.last and report.step <= entry.last.step:
            return
        entry.last = report
        self._study.report(entry.number, report.epoch, report.metrics[self.config.metric])
        entry.recorder.log(report)
        self._tell(entry, "RUNNING")

    def ended(self, trial_id: str, failure: str | None, checkpoint: Path | None) -> None:
        """Give the trial its terminal state, from how far it came."""
        entry = self._open.pop(trial_id)
        state, status, reason = self._settle(entry, failure)
        if entry.recorder:
            if checkpoint:
                self._observer.trial_trained(entry.number, entry.config, checkpoint)
            entry.recorder.close(status)
        self._tell(entry, state, reason)

    def end_all(self, reason: str) -> None:
        """End the trials that are still open when the sweep is interrupted."""
        for entry in self._open.values():
            self._study.fail(entry.number, reason)
            if entry.recorder:
                entry.recorder.close("KILLED")
            self._tell(entry, "FAIL", reason)
        self._open.clear()

    def _settle(self, entry: _Entry, failure: str | None) -> tuple[str, Status, str | None]:
        if failure is None and entry.last is None:
            failure = "the trial ended without a report"
        if failure is not None:
            self._study.fail(entry.number, failure)
            return "FAIL", "FAILED", failure
        assert entry.last is not None
        if entry.last.epoch < self.config.train.epochs:
            self._study.prune(entry.number)
            return "PRUNED", "KILLED", None
        self._study.complete(entry.number)
        return "COMPLETE", "FINISHED", None

    def _tell(self, entry: _Entry, state: str, reason: str | None = None) -> None:
        value = entry.last.metrics[self.config.metric] if entry.last else None
        epoch = entry.last.epoch if entry.last else 0
        self._observer.follow(TrialEvent(entry.number, entry.values, state, epoch, value, reason))
