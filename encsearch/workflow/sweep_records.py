"""What a sweep leaves in MLflow: one parent run, one child a trial and a finalist, also over kills."""

from collections.abc import Sequence
from pathlib import Path

from encsearch.config import Config, flatten, with_values
from encsearch.records import Recorder, Report
from encsearch.search.confirm.finalists import Finalist
from encsearch.search.ledger import trial_folder
from encsearch.search.trials import STATUS_OF, TrialEvent, TrialRecord, TrialState
from encsearch.search.tune.jobs import REPORTS_FILE
from encsearch.spool import distinct_reports
from encsearch.tracking.lineage import lineage
from encsearch.tracking.mlflow import (
    MlflowRecorder,
    Tracking,
    children_by_name,
    continue_run,
    find_run,
    start_run,
)
from encsearch.train.checkpoint import drop_checkpoints, newest
from encsearch.workflow.progress import Progress
from encsearch.workflow.recorded import (
    TrainingRecorder,
    checkpoint_model,
    recorder_of,
    save_model,
    write_context,
    write_panels,
)
from encsearch.workflow.sweep_folder import StudyPlace

SWEEP_TAG = "encsearch.sweep"


def parent_run(config: Config, tracking: Tracking, folder: Path, place: StudyPlace) -> MlflowRecorder:
    """The sweep's own run: a new one, or the one that a process before this one has started.

    It goes by the study's name, since the folder may have been moved.
    """
    artifacts = folder / "artifacts"
    found = find_run(tracking, SWEEP_TAG, place.name)
    if found:
        return continue_run(tracking, found.run_id, flatten(config), artifacts)
    return start_run(
        tracking,
        name=place.name,
        params=flatten(config),
        tags={**lineage(place.fingerprint, Path.cwd()), "encsearch.kind": "sweep", SWEEP_TAG: place.name},
        artifact_dir=artifacts,
    )


class SweepRecords:
    """Records trials and finalists as children of the sweep's run, and passes events on to the person.

    A child that exists by its name goes on. It implements `SweepObserver` and `ConfirmObserver`.
    """

    def __init__(
        self, config: Config, tracking: Tracking, parent_run_id: str, folder: Path, progress: Progress
    ) -> None:
        self.tracking, self.parent_run_id = tracking, parent_run_id
        self._config, self._folder, self._progress = config, folder, progress
        self.run_ids = {name: run.run_id for name, run in children_by_name(tracking, parent_run_id).items()}
        self._trials: dict[int, TrainingRecorder] = {}

    def settle(self, records: Sequence[TrialRecord]) -> None:
        """End the records, still open at a kill, of trials that have ended.

        Of some the end was noted just before; others wait to go on when a spent budget ends them.
        """
        known = children_by_name(self.tracking, self.parent_run_id)
        for record in records:
            child = known.get(f"trial{record.number}")
            is_open = child is not None and child.status == "RUNNING"
            if record.state != "RUNNING" and (is_open or newest(trial_folder(self._folder, record.number))):
                self._settle(record)

    def open_recorder(self, number: int, config: Config) -> Recorder:
        self._trials[number] = self._open_trial(number, config)
        return self._trials[number]

    def trial_ended(self, event: TrialEvent, config: Config, folder: Path) -> None:
        _conclude(self._trials.pop(event.number), event.state, event.reason, config, folder)

    def follow(self, event: TrialEvent) -> None:
        self._progress.trial(event, self._config)

    def say(self, line: str) -> None:
        self._progress.say(line)

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        kind = "baseline" if trial is None else "finalist"
        tags = {"encsearch.trial": str(trial)} if trial is not None else {}
        workers, epochs = config.scaling.num_workers, config.train.epochs
        self._progress.say(f"{kind} {name}: {workers} Ray Train workers, {epochs} epochs")
        return self._open(name, kind, config, self._artifacts(name), tags)

    def finalist_trained(self, finalist: Finalist) -> None:
        artifacts = self._artifacts(finalist.name)
        best = finalist.result.best
        bundle = checkpoint_model(finalist.config, finalist.result.best_checkpoint, best.metrics)
        save_model(bundle, artifacts / "bundle")
        write_panels(bundle, artifacts)
        write_context(bundle, artifacts)
        self._progress.say(f"{finalist.name}: {finalist.config.metric} {finalist.value:.4f}")

    def finalist_failed(self, name: str, reason: str) -> None:
        self._progress.say(f"{name} failed: {reason}")

    def _settle(self, record: TrialRecord) -> None:
        folder = trial_folder(self._folder, record.number)
        config = with_values(self._config.model_copy(update={"search": None}), record.values)
        recorder = self._open_trial(record.number, config)
        for report in distinct_reports(folder / REPORTS_FILE):
            # The trial may have written an epoch that its sweep had not taken when it was ended.
            if report.epoch <= record.epochs:
                recorder.log(report)
        _conclude(recorder, record.state, record.reason, config, folder)
        recorder.close(STATUS_OF[record.state])

    def _open_trial(self, number: int, config: Config) -> TrainingRecorder:
        name = f"trial{number}"
        artifacts = self._folder / "trial-artifacts" / name
        return self._open(name, "trial", config, artifacts, {"encsearch.trial": str(number)})

    def _artifacts(self, finalist: str) -> Path:
        return self._folder / "finalists" / finalist / "artifacts"

    def _open(
        self, name: str, kind: str, config: Config, artifacts: Path, tags: dict[str, str]
    ) -> TrainingRecorder:
        def follow(report: Report) -> None:
            # Trials are followed through the ledger's events.
            if kind != "trial":
                self._progress.epoch(name, report, config)

        recorder = recorder_of(
            config,
            self.tracking,
            name=name,
            kind=kind,
            artifacts=artifacts,
            parent_run_id=self.parent_run_id,
            tags=tags,
            follow=follow,
            run_id=self.run_ids.get(name),
        )
        self.run_ids[name] = recorder.run_id
        return recorder


def _conclude(
    recorder: TrainingRecorder, state: TrialState, reason: str | None, config: Config, folder: Path
) -> None:
    """Note a trial's end and picture its last model; after that its checkpoint is needed no more."""
    recorder.note("encsearch.state", state)
    if reason:
        recorder.note("encsearch.reason", reason)
    checkpoint = newest(folder)
    if checkpoint and state != "FAIL":
        write_panels(checkpoint_model(config, checkpoint, {}), recorder.artifacts)
    drop_checkpoints(folder)
