"""A list of trainings instead of a search; as many run at once as fit on the cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray

from encsearch.config import ScalingConfig
from encsearch.reports import Recorder, Report
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.ablation.plan import PlannedTraining
from encsearch.search.trials import TrialEvent, TrialState
from encsearch.search.tune.board import Assignment, Board, BoardEntry
from encsearch.search.tune.driver import run_board
from encsearch.train.checkpoint import drop_checkpoints, find_newest


class SideBySideObserver(Protocol):
    """The owner's reactions to its trainings; called in the driver, between two Tune events."""

    def open_recorder(self, training: PlannedTraining) -> Recorder:
        """A training starts; its recorder is closed with its true status."""
        ...

    def trained(self, training: PlannedTraining, last: Report, seconds: float, checkpoint: Path) -> None:
        """All epochs have run; `checkpoint` is the last one and is deleted after this call."""
        ...

    def failed(self, training: PlannedTraining, reason: str) -> None:
        """A training failed; the others continue."""
        ...

    def follow(self, training: PlannedTraining, event: TrialEvent) -> None:
        """Something happened that the user may want to see."""
        ...


def run_side_by_side(
    trainings: Sequence[PlannedTraining],
    scaling: ScalingConfig,
    folder: Path,
    observer: SideBySideObserver,
    *,
    fingerprint: str,
) -> None:
    """Run all trainings on the connected Ray, each with the workers of `scaling`.

    `folder` keeps the reports of each training and the last checkpoint of a running one; a second call
    continues from there.
    """
    room = trainings_at_once(scaling, ray.cluster_resources())
    board = _SideBySide(trainings, observer, folder, fingerprint, room)
    try:
        run_board(board, scaling, folder.with_name(f"{folder.name}-tune"))
    finally:
        board.end_all("interrupted before its end")


@dataclass(kw_only=True)
class _Entry(BoardEntry):
    training: PlannedTraining


class _SideBySide(Board[_Entry]):
    """A board on which all trainings wait from the start."""

    def __init__(
        self,
        trainings: Sequence[PlannedTraining],
        observer: SideBySideObserver,
        folder: Path,
        fingerprint: str,
        room: int,
    ) -> None:
        super().__init__(room)
        self._observer = observer
        for number, training in enumerate(trainings):
            assignment = Assignment(training.config, folder / training.name, fingerprint)
            self._waiting.append(_Entry(number, assignment, training=training))

    def end_all(self, reason: str) -> None:
        """End the trainings that are still open when the run is interrupted."""
        for entry in self._still_open():
            if entry.recorder:
                entry.recorder.close("KILLED")
                self._follow(entry, "FAIL", reason)

    def _begin(self, entry: _Entry) -> None:
        entry.recorder = self._observer.open_recorder(entry.training)
        self._follow(entry, "RUNNING")

    def _take(self, entry: _Entry, report: Report) -> None:
        assert entry.recorder is not None
        entry.recorder.log(report)
        self._follow(entry, "RUNNING")

    def _end(self, entry: _Entry) -> None:
        if entry.failure:
            if entry.recorder:
                entry.recorder.close("FAILED")
            drop_checkpoints(entry.assignment.folder)
            self._observer.failed(entry.training, entry.failure)
            self._follow(entry, "FAIL", entry.failure)
            return
        checkpoint = find_newest(entry.assignment.folder)
        assert entry.last is not None, entry.training.name
        assert checkpoint is not None, entry.training.name
        assert entry.recorder is not None, entry.training.name
        try:
            self._observer.trained(entry.training, entry.last, entry.seconds, checkpoint)
        except BaseException:
            entry.recorder.close("FAILED")
            raise
        entry.recorder.close("FINISHED")
        drop_checkpoints(entry.assignment.folder)
        self._follow(entry, "COMPLETE")

    def _follow(self, entry: _Entry, state: TrialState, reason: str | None = None) -> None:
        config = entry.training.config
        values = {"row": entry.training.row, "epochs": config.train.epochs, "seed": config.train.seed}
        epoch = entry.last.epoch if entry.last else 0
        value = entry.last.metrics[config.metric] if entry.last else None
        event = TrialEvent(entry.number, values, state, epoch, value, reason)
        self._observer.follow(entry.training, event)
