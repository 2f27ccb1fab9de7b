"""The driver's side of Ray Tune running the trainings of a board; `trial` is the worker's side.

Tune's own checkpoints, retries and experiment state are not used. A training's folder holds all that it needs
to continue, so a lost process, a lost node and a killed driver are one case: the training is assigned again.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from encsearch.config import ScalingConfig, to_json
from encsearch.errors import NoticeError, TrainingError, last_line
from encsearch.runner.monitor import count_recovery
from encsearch.runner.notice import sigterm_notice
from encsearch.runner.pulse import passing_on
from encsearch.search.tune.board import Board
from encsearch.search.tune.trial import TrialTrainable, trial_resources

MAX_REASON = 200  # characters


def run_board(board: Board[Any], scaling: ScalingConfig, folder: Path) -> None:
    """Run the board's trainings on the connected Ray until it is done or over, each with `scaling`'s workers.

    `folder` is Tune's scratch folder, deleted at the end. Raises NoticeError after SIGTERM, once all that run
    have saved their state, and TrainingError when one of them cannot write: all are left as they are.
    """
    # Tune 2.60 would start one process at a time, which takes seconds each; the board has room for so many.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(board.room)
    # Tune silently continues an experiment whose name and storage it finds again.
    name = secrets.token_hex(8)
    stopper = _StopByBoard(board)
    job = folder.absolute().parent.name
    count_recovery(job, 0)
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, trial_resources(scaling)),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=_AskBoard(board, name, stopper),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder.absolute()),
            stop=stopper,
            callbacks=[_TellBoard(board, job)],
            verbose=0,
            # Otherwise Tune 2.60 shows a table in a notebook, and deletes what the cell has printed.
            progress_reporter=tune.CLIReporter(),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    # Tune prints every failed trial's stack; people get one line from the board.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with (
            sigterm_notice() as stopper.notice,
            passing_on(name, stopper.notice),
            losing_what_memory_kills(),
        ):
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def losing_what_memory_kills() -> Iterator[None]:
    """Lose a training whose process Ray's memory monitor killed, as any that lost its process.

    Tune 2.60 does not expect that error of a process that starts or is used again, and ends the experiment.
    """
    handle = RayActorManager._actor_task_failed

    def handle_all(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        handle(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = handle_all
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = handle


class _HoldsBoard:
    """Leaves the board out of Tune's pickles: Tune's own restore is not needed, see the folders."""

    def __init__(self, board: Board[Any]) -> None:
        self._board = board

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_board", "notice")}


class _AskBoard(_HoldsBoard, Searcher):
    """Answers when Tune asks for a new trial.

    Ray's own OptunaSearch would store a trial that the scheduler stopped as complete, with its partial value.
    """

    def __init__(self, board: Board[Any], sweep: str, stopper: "_StopByBoard") -> None:
        Searcher.__init__(self)
        _HoldsBoard.__init__(self, board)
        self._sweep, self._stopper = sweep, stopper

    def suggest(self, trial_id: str) -> Any:
        assignment = None if self._stopper.is_noticed() else self._board.next_assignment(trial_id)
        if assignment:
            return {
                "config": to_json(assignment.config),
                "folder": str(assignment.folder.absolute()),
                "fingerprint": assignment.fingerprint,
                "sweep": self._sweep,
                "measures_latency": assignment.measures_latency,
                "keeps_best": assignment.keeps_best,
            }
        is_done = self._board.is_done() and not self._stopper.is_noticed()
        return Searcher.FINISHED if is_done else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the callback below gets the same event, with the trial's error."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk after every event."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk after every event."""


class _StopByBoard(_HoldsBoard, tune.Stopper):
    """Tune calls it after every result, before all other callbacks, and several times a second."""

    notice: Callable[[], bool] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._board.reported(trial_id, result)

    def is_noticed(self) -> bool:
        """Whether the driver was told to end: nothing new starts."""
        return self.notice is not None and self.notice()

    def stop_all(self) -> bool:
        if self._board.ends_for:
            raise TrainingError(self._board.ends_for)
        if self.is_noticed() and self._board.is_saved():
            raise NoticeError("the state of all that ran is saved")
        return self._board.is_over()


class _TellBoard(_HoldsBoard, tune.Callback):
    """Passes Tune's other events on to the board."""

    def __init__(self, board: Board[Any], job: str) -> None:
        super().__init__(board)
        self._job = job

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._board.started(trial.trial_id)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._board.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if self._board.lost(trial.trial_id, _last_line(Path(trial.error_file))):
            count_recovery(self._job)


def _last_line(error_file: Path) -> str:
    """Last line of the error file that Tune wrote here; `TuneTrial.get_error` reads a later copy.

    Shortened, because Ray 2.60 adds a paragraph on possible causes when a process is lost.
    """
    text = error_file.read_text(encoding="utf-8").strip() if error_file.exists() else ""
    return shorten(last_line(text), MAX_REASON, placeholder=" ...") if text else "unknown reason"
