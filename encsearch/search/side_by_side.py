"""A list of trainings instead of a search: Ray Tune runs as many at once as the cluster holds."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from encsearch.config import ScalingConfig, to_json
from encsearch.records import Recorder, Report, Status
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.ablation import Training
from encsearch.search.sweep import TRIAL_RESTARTS
from encsearch.search.trial import Trial, trial_resources
from encsearch.search.trials import TrialEvent, TrialState


class SideBySideObserver(Protocol):
    """What the owner does about its trainings; called in the driver, between two Tune events."""

    def open_recorder(self, training: Training) -> Recorder:
        """A training starts; its recorder is closed with its true status."""
        ...

    def trained(self, training: Training, last: Report, seconds: float, checkpoint: Path) -> None:
        """All epochs have run; `checkpoint` is of the last and is deleted after this call."""
        ...

    def failed(self, training: Training, reason: str) -> None:
        """A training came to nothing; the others go on."""
        ...

    def follow(self, training: Training, event: TrialEvent) -> None:
        """Something happened that a person may want to see."""
        ...


def run_side_by_side(
    trainings: Sequence[Training], scaling: ScalingConfig, folder: Path, observer: SideBySideObserver
) -> None:
    """Run all trainings on the connected Ray, each with the workers of `scaling`.

    The folder is emptied first: what an interrupted run left there starts anew. Of each running training it
    holds the last checkpoint, of an ended one none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    board = _Board(trainings, observer)
    tuner = tune.Tuner(
        tune.with_resources(Trial, trial_resources(scaling)),
        param_space={"config": tune.grid_search(list(board.waiting))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=trainings_at_once(scaling, ray.cluster_resources()),
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.absolute().parent),
            callbacks=[_TellBoard(board)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
        ),
    )
    # Tune prints every failed trial's stack; people get one line from the observer.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    finally:
        board.end_all("interrupted before its end")


@dataclass
class _Entry:
    number: int
    training: Training
    recorder: Recorder
    last: Report | None = None
    seconds: float = 0.0


class _Board:
    """The trainings by the JSON of their configurations: every epoch is taken once, every end once."""

    def __init__(self, trainings: Sequence[Training], observer: SideBySideObserver) -> None:
        self.waiting = {to_json(training.config): (i, training) for i, training in enumerate(trainings)}
        self._observer = observer
        self._open: dict[str, _Entry] = {}

    def started(self, key: str) -> None:
        """The training has a process; called again when a lost one starts anew, and its record goes on."""
        if key not in self._open:
            number, training = self.waiting.pop(key)
            entry = _Entry(number, training, self._observer.open_recorder(training))
            self._open[key] = entry
            self._tell(entry, "RUNNING")

    def reported(self, key: str, result: Mapping[str, Any]) -> None:
        """Take an epoch once, also when a restarted training repeats it."""
        entry = self._open[key]
        if "report" not in result:
            return
        report = Report.from_dict(result["report"])
        if entry.last and report.step <= entry.last.step:
            return
        entry.last = report
        entry.seconds += report.seconds
        entry.recorder.log(report)
        self._tell(entry, "RUNNING")

    def completed(self, key: str, checkpoint: Path) -> None:
        entry = self._open.pop(key)
        assert entry.last is not None, entry.training.name
        try:
            self._observer.trained(entry.training, entry.last, entry.seconds, checkpoint)
        except BaseException:
            entry.recorder.close("FAILED")
            raise
        entry.recorder.close("FINISHED")
        self._tell(entry, "COMPLETE")

    def failed(self, key: str, reason: str, status: Status = "FAILED") -> None:
        entry = self._open.pop(key)
        entry.recorder.close(status)
        self._observer.failed(entry.training, reason)
        self._tell(entry, "FAIL", reason)

    def end_all(self, reason: str) -> None:
        """End the trainings that are still open when the run is interrupted."""
        for key in list(self._open):
            self.failed(key, reason, "KILLED")

    def _tell(self, entry: _Entry, state: TrialState, reason: str | None = None) -> None:
        config = entry.training.config
        values = {"row": entry.training.row, "epochs": config.train.epochs, "seed": config.train.seed}
        epoch = entry.last.epoch if entry.last else 0
        value = entry.last.metrics[config.metric] if entry.last else None
        event = TrialEvent(entry.number, values, state, epoch, value, reason)
        self._observer.follow(entry.training, event)


class _TellBoard(tune.Callback):
    """Tune's events, passed on to the board."""

    def __init__(self, board: _Board) -> None:
        self._board = board

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore of its own, which the list of results makes needless."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._board.started(trial.config["config"])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        self._board.reported(trial.config["config"], result)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        failure = trial.last_result.get("failure")
        if failure:
            self._board.failed(trial.config["config"], failure)
        else:
            self._board.completed(trial.config["config"], Path(trial.checkpoint.path))
        _delete_checkpoint(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = str(trial.get_error() or "unknown reason").strip().splitlines()
        reason = f"the training's process failed: {lines[-1].strip()}"
        self._board.failed(trial.config["config"], reason)
        _delete_checkpoint(trial)


def _delete_checkpoint(trial: TuneTrial) -> None:
    """Hundreds of trainings would fill the disk."""
    if trial.checkpoint:
        shutil.rmtree(trial.checkpoint.path, ignore_errors=True)


def _trial_folder(trial: TuneTrial) -> str:
    return str(trial.trial_id)
