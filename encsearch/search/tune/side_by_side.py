"""A list of trainings instead of a search; as many run at once as fit on the cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from encsearch.config import Config, ScalingConfig
from encsearch.errors import NoticeError
from encsearch.reports import Recorder, Report
from encsearch.search.trials import TrialEvent, TrialState
from encsearch.search.tune.board import Assignment, Board, BoardEntry
from encsearch.search.tune.driver import run_board
from encsearch.train.checkpoint_files import drop_checkpoints


class Planned(Protocol):
    """A training of the list; `name` is its folder and its record, `row` what people see of it."""

    @property
    def name(self) -> str: ...

    @property
    def row(self) -> str: ...

    @property
    def config(self) -> Config: ...


P = TypeVar("P", bound=Planned)
T_contra = TypeVar("T_contra", bound=Planned, contravariant=True)


class SideBySideObserver(Protocol[T_contra]):
    """The owner's reactions to its trainings; called in the driver, between two Tune events."""

    def open_recorder(self, training: T_contra) -> Recorder:
        """A training starts; its recorder is closed with its true status."""
        ...

    def trained(self, training: T_contra, last: Report, seconds: float, folder: Path) -> None:
        """All epochs have run; the recorder is open, and `folder` has the reports and the checkpoints."""
        ...

    def recorded(self, training: T_contra) -> None:
        """The recorder is closed; the last checkpoint is deleted after this call."""
        ...

    def failed(self, training: T_contra, reason: str) -> None:
        """A training failed; the others continue."""
        ...

    def follow(self, training: T_contra, event: TrialEvent) -> None:
        """Something happened that the user may want to see."""
        ...


def run_side_by_side(
    trainings: Sequence[P],
    scaling: ScalingConfig,
    folder: Path,
    observer: SideBySideObserver[P],
    *,
    fingerprint: str,
    room: int,
    keeps_best: bool = False,
) -> None:
    """Run all trainings on the connected Ray, each with the workers of `scaling`, `room` at once.

    `folder` keeps the reports of each training and the last checkpoint of a running one; a second call
    continues from there. With `keeps_best` the checkpoint of the best epoch stays, see `find_best`.
    """
    board = _SideBySide(trainings, observer, folder, fingerprint, room, keeps_best)
    try:
        run_board(board, scaling, folder.with_name(f"{folder.name}-tune"))
    finally:
        board.end_all("interrupted before its end")


class _Entry(BoardEntry, Generic[P]):
    """Its number is the place of `training` in the list."""

    def __init__(self, number: int, assignment: Assignment, training: P) -> None:
        super().__init__(number, assignment)
        self.training = training


class _SideBySide(Board[_Entry[P]]):
    """A board on which all trainings wait from the start."""

    def __init__(
        self,
        trainings: Sequence[P],
        observer: SideBySideObserver[P],
        folder: Path,
        fingerprint: str,
        room: int,
        keeps_best: bool,
    ) -> None:
        super().__init__(room)
        self._observer = observer
        for number, training in enumerate(trainings):
            place = folder / training.name
            assignment = Assignment(training.config, place, fingerprint, keeps_best=keeps_best)
            self._waiting.append(_Entry(number, assignment, training))

    def end_all(self, reason: str) -> None:
        """End the trainings that are still open when the run is interrupted."""
        for entry in self._still_open():
            if entry.recorder:
                entry.recorder.close("KILLED")
                self._follow(entry, "FAIL", reason)

    def _begin(self, entry: _Entry[P]) -> None:
        entry.recorder = self._observer.open_recorder(entry.training)
        self._follow(entry, "RUNNING")

    def _take(self, entry: _Entry[P], report: Report) -> None:
        assert entry.recorder is not None
        entry.recorder.log(report)
        self._follow(entry, "RUNNING")

    def _end(self, entry: _Entry[P]) -> None:
        if entry.failure:
            if entry.recorder:
                entry.recorder.close("FAILED")
            drop_checkpoints(entry.assignment.folder)
            self._observer.failed(entry.training, entry.failure)
            self._follow(entry, "FAIL", entry.failure)
            return
        assert entry.last is not None, entry.training.name
        assert entry.recorder is not None, entry.training.name
        try:
            self._observer.trained(entry.training, entry.last, entry.seconds, entry.assignment.folder)
        except BaseException as error:
            is_kill = isinstance(error, KeyboardInterrupt | SystemExit | NoticeError)
            entry.recorder.close("KILLED" if is_kill else "FAILED")
            raise
        entry.recorder.close("FINISHED")
        self._observer.recorded(entry.training)
        drop_checkpoints(entry.assignment.folder)
        self._follow(entry, "COMPLETE", entry.last.ends or None)

    def _follow(self, entry: _Entry[P], state: TrialState, reason: str | None = None) -> None:
        config = entry.training.config
        values = {"row": entry.training.row, "epochs": config.train.epochs, "seed": config.train.seed}
        epoch = entry.last.epoch if entry.last else 0
        value = entry.last.metrics[config.metric] if entry.last else None
        event = TrialEvent(entry.number, values, state, epoch, value, reason)
        self._observer.follow(entry.training, event)
