"""A sweep's records in MLflow: one parent run, and one child for each trial and finalist, despite kills."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from encsearch.config import Config
from encsearch.data.store import Store
from encsearch.reports import REPORTS_FILE, Recorder, Report, distinct_reports
from encsearch.runner.torch_process import TorchProcess
from encsearch.search.confirm.finalists import Finalist, mean_report, representative
from encsearch.search.confirm.trainings import Confirmation
from encsearch.search.ledger import trial_folder
from encsearch.search.trials import STATUS_OF, Trial, TrialEvent, TrialState, seeded_config
from encsearch.text import format_count, format_money, format_score
from encsearch.tracking.browse.rows import CONFIGURATION_TAG
from encsearch.tracking.outbox.record import Record, RunRecord
from encsearch.train.checkpoint_files import drop_checkpoints, find_newest
from encsearch.workflow.job import Progress
from encsearch.workflow.recorder import (
    REASON_TAG,
    TrainingRecorder,
    start_recorder,
    start_run,
)
from encsearch.workflow.sweep.folder import StudyPlace
from encsearch.workflow.sweep.networks import keep_finalist

SWEEP_TAG, STATE_TAG, PRICE_TAG = "encsearch.sweep", "encsearch.state", "encsearch.price"
# In the name of a finalist or a baseline.
SEED = re.compile(r"-seed\d+")


def parent_run(config: Config, store: Store, record: Record, folder: Path, place: StudyPlace) -> RunRecord:
    """Start the sweep's own run, or continue the one that an earlier process started.

    Its name is the study's, since the folder may have been moved.
    """
    return start_run(
        config,
        store,
        record,
        run=place.name,
        kind="sweep",
        artifacts=folder / "artifacts",
        tags={SWEEP_TAG: place.name},
    )


class SweepRecords:
    """Records trials and finalists as children of the sweep's run, and passes events on to the user.

    A child whose name exists already is continued. It implements `SweepObserver` and `ConfirmObserver`.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        record: Record,
        parent: str,
        folder: Path,
        progress: Progress,
        networks: TorchProcess,
    ) -> None:
        self._config, self._store, self._record, self._parent = config, store, record, parent
        self._folder, self._progress, self._networks = folder, progress, networks
        self._trials: dict[int, TrainingRecorder] = {}
        self._states: dict[int, TrialState] = {}

    def settle(self, trials: Sequence[Trial]) -> None:
        """Close the records of ended trials with their true status, if a kill prevented that.

        The study may have stored the end just before a kill or a Ctrl-C, or a spent budget may have ended a
        trial that was waiting to continue.
        """
        for trial in trials:
            state = self._record.find(f"trial{trial.number}")
            if state is None or trial.state in ("RUNNING", "PAUSED"):
                continue
            is_true = (state.status, state.noted.get(STATE_TAG)) == (STATUS_OF[trial.state], trial.state)
            if not is_true or state.reaped or find_newest(trial_folder(self._folder, trial.number)):
                self._settle(trial)

    def open_recorder(self, number: int, config: Config) -> Recorder:
        self._trials[number] = self._open_trial(number, config)
        return self._trials[number]

    def trial_ended(self, event: TrialEvent, config: Config, folder: Path) -> None:
        recorder = self._trials.pop(event.number)
        self._conclude(recorder, event.state, event.reason, event.cost_seconds, config, folder)

    def follow(self, event: TrialEvent) -> None:
        recorder, before = self._trials.get(event.number), self._states.get(event.number)
        if recorder and event.state in ("RUNNING", "PAUSED") and event.state != before:
            self._states[event.number] = event.state
            recorder.note(STATE_TAG, event.state)
        self._progress.trial(event, self._config)

    def say(self, line: str) -> None:
        self._progress.say(line)

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        kind = "baseline" if trial is None else "finalist"
        tags = {CONFIGURATION_TAG: SEED.sub("", name)}
        tags |= {"encsearch.trial": str(trial)} if trial is not None else {}
        workers, epochs = config.scaling.num_workers, config.train.epochs
        self._progress.say(
            f"{kind} {name}: {format_count(workers, 'worker')}, {format_count(epochs, 'epoch')}"
        )
        return self._open(name, kind, config, self._artifacts(name), tags)

    def finalist_trained(self, finalist: Finalist) -> None:
        artifacts = self._artifacts(finalist.name)
        result = finalist.result
        self._progress.phase(f"keeping the model of {finalist.name}, drawing its pictures")
        self._networks.call(
            keep_finalist, finalist.config, self._store, result.best_checkpoint, result.best, artifacts
        )
        self._progress.say(f"{finalist.name}: {finalist.config.metric} {format_score(finalist.value)}")

    def finalist_failed(self, name: str, reason: str) -> None:
        self._progress.say(f"{name} failed: {reason}")

    def record_configurations(self, confirmation: Confirmation) -> None:
        """Record what several seeds say of each configuration, in one run beside those of its seeds.

        With one seed there is nothing to add to its run.
        """
        ranking = confirmation.ranking
        for standing in (*ranking.standings, *ranking.baselines):
            trainings = confirmation.trainings_of(standing)
            if len(trainings) < 2:
                continue
            middle = representative(trainings)
            values = list(standing.configuration.values.values())
            over_seeds = {"mean": fmean(values), "sd": stdev(values)}
            if standing.lower_bound is not None:
                over_seeds["lower_bound"] = standing.lower_bound
            report = mean_report(trainings)
            metrics = {**report.metrics, "num_seeds": len(values)}
            metrics |= {f"over_seeds/{name}": value for name, value in over_seeds.items()}
            run = start_run(
                middle.config,
                self._store,
                self._record,
                run=SEED.sub("-mean", middle.name),
                kind="configuration",
                artifacts=self._folder / "finalists" / "configurations" / middle.name,
                parent=self._parent,
                tags={
                    SWEEP_TAG: self._parent,
                    CONFIGURATION_TAG: SEED.sub("", middle.name),
                    "encsearch.seeds": ", ".join(str(training.seed) for training in trainings),
                    **({"encsearch.trial": str(middle.trial)} if middle.trial is not None else {}),
                },
            )
            run.summarize(replace(report, metrics=metrics))
            run.close("FINISHED")

    def _settle(self, trial: Trial) -> None:
        folder = trial_folder(self._folder, trial.number)
        config = seeded_config(self._config, trial.values, trial.repeat)
        recorder = self._open_trial(trial.number, config)
        for report in distinct_reports(folder / REPORTS_FILE):
            # The trial may have written an epoch that the sweep had not taken before the end.
            if report.epoch <= trial.epochs:
                recorder.log(report)
        self._conclude(recorder, trial.state, trial.reason, trial.cost_seconds, config, folder)
        recorder.close(STATUS_OF[trial.state])

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
            # The ledger's events show the progress of trials.
            if kind != "trial":
                self._progress.epoch(name, report, config)

        return start_recorder(
            config,
            self._store,
            self._record,
            run=name,
            kind=kind,
            artifacts=artifacts,
            parent=self._parent,
            tags={SWEEP_TAG: self._parent, **tags},
            follow=follow,
        )

    def _conclude(
        self,
        recorder: TrainingRecorder,
        state: TrialState,
        reason: str | None,
        cost_s: float,
        config: Config,
        folder: Path,
    ) -> None:
        """Record a trial's end, draw its last predictions, and drop its checkpoint."""
        recorder.note(STATE_TAG, state)
        if (price := config.scaling.price(cost_s)) is not None:
            recorder.note(PRICE_TAG, format_money(price))
        if reason:
            recorder.note(REASON_TAG, reason)
        if state != "FAIL":
            recorder.draw_panels()
        drop_checkpoints(folder)
