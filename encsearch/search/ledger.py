"""The ledger of a running sweep: what each trial was given, how far it came, how it ended.

It knows nothing of Ray Tune but its trial ids, and keeps the study, the recorders and the person who follows
the sweep in step: every epoch is taken once, every trial ends once, with its true state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from encsearch.config import Config, to_json, with_values
from encsearch.errors import UserError
from encsearch.records import Recorder, Report, Status
from encsearch.search.study import Study
from encsearch.search.trials import TrialEvent, TrialState


class SweepObserver(Protocol):
    """What the sweep's owner does about its trials; called in the driver, between two Tune events."""

    def open_recorder(self, number: int, config: Config) -> Recorder:
        """A trial starts. The recorder is closed FINISHED, KILLED (stopped early) or FAILED."""
        ...

    def trial_ended(self, event: TrialEvent, config: Config, checkpoint: Path | None) -> None:
        """A trial has come to its end, with the checkpoint of its last epoch; its recorder is still open."""
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
    best: float | None = None


class Ledger:
    """The trials of one sweep, by Tune's id."""

    def __init__(self, config: Config, study: Study, observer: SweepObserver) -> None:
        self.config = config
        self._study, self._observer = study, observer
        self._open: dict[str, _Entry] = {}

    def propose(self, trial_id: str) -> dict[str, str]:
        """Ask the study for a new trial's values; what Tune hands to the trial."""
        number, values = self._study.ask()
        try:
            config = with_values(self.config.model_copy(update={"search": None}), values)
        except UserError as error:
            self._study.fail(number, str(error))
            raise
        entry = _Entry(number, values, config)
        self._open[trial_id] = entry
        return {"config": to_json(entry.config)}

    def started(self, trial_id: str) -> None:
        """The trial has a process; called again when a lost trial starts anew, and its record goes on."""
        entry = self._open[trial_id]
        if entry.recorder is None:
            entry.recorder = self._observer.open_recorder(entry.number, entry.config)
            self._observer.follow(self._event(entry, None))

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take an epoch once, also when a restarted trial repeats it."""
        entry = self._open[trial_id]
        assert entry.recorder is not None
        if "report" not in result:
            return
        report = Report.from_dict(result["report"])
        if entry.last and report.step <= entry.last.step:
            return
        value = report.metrics[self.config.metric]
        entry.last, entry.best = report, value if entry.best is None else max(entry.best, value)
        self._study.report(entry.number, report.epoch, value)
        entry.recorder.log(report)
        self._observer.follow(self._event(entry, value))

    def ended(self, trial_id: str, failure: str | None, checkpoint: Path | None) -> None:
        """Give the trial its terminal state, from how far it came."""
        entry = self._open.pop(trial_id)
        if failure is None and entry.last is None:
            failure = "the trial ended without a report"
        if failure is not None:
            self._study.fail(entry.number, failure)
            self._end(entry, "FAIL", "FAILED", failure, checkpoint)
        elif entry.last and entry.last.epoch < self.config.train.epochs:
            self._study.prune(entry.number)
            self._end(entry, "PRUNED", "KILLED", None, checkpoint)
        else:
            self._study.complete(entry.number)
            self._end(entry, "COMPLETE", "FINISHED", None, checkpoint)

    def end_all(self, reason: str) -> None:
        """End the trials that are still open when the sweep is interrupted."""
        for entry in self._open.values():
            self._study.fail(entry.number, reason)
            self._end(entry, "FAIL", "KILLED", reason, checkpoint=None)
        self._open.clear()

    def _end(
        self, entry: _Entry, state: TrialState, status: Status, reason: str | None, checkpoint: Path | None
    ) -> None:
        event = self._event(entry, entry.best, state, reason)
        if entry.recorder:
            try:
                self._observer.trial_ended(event, entry.config, checkpoint)
            finally:
                entry.recorder.close(status)
        self._observer.follow(event)

    def _event(
        self, entry: _Entry, value: float | None, state: TrialState = "RUNNING", reason: str | None = None
    ) -> TrialEvent:
        epoch = entry.last.epoch if entry.last else 0
        return TrialEvent(entry.number, entry.values, state, epoch, value, reason)
