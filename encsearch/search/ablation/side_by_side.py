"""A list of trainings instead of a search: as many run at once as the cluster holds."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from encsearch.config import ScalingConfig
from encsearch.reports import Recorder, Report
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.ablation.plan import Training
from encsearch.search.trials import TrialEvent, TrialState
from encsearch.search.tune.driver import run_jobs
from encsearch.search.tune.jobs import RESTARTS, Job
from encsearch.train.checkpoint import drop_checkpoints, newest


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
    trainings: Sequence[Training],
    scaling: ScalingConfig,
    folder: Path,
    observer: SideBySideObserver,
    *,
    fingerprint: str,
) -> None:
    """Run all trainings on the connected Ray, each with the workers of `scaling`.

    `folder` keeps the reports of each, and of a running one the last checkpoint: a second call goes on from
    there.
    """
    room = trainings_at_once(scaling, ray.cluster_resources())
    board = _Board(trainings, observer, folder, fingerprint, room)
    try:
        run_jobs(board, scaling, folder.with_name(f"{folder.name}-tune"))
    finally:
        board.end_all("interrupted before its end")


@dataclass
class _Entry:
    number: int
    training: Training
    recorder: Recorder | None = None
    last: Report | None = None
    seconds: float = 0.0
    failure: str | None = None
    restarts: int = 0


class _Board:
    """The trainings as a `JobSource`: every epoch is taken once, every end once."""

    def __init__(
        self,
        trainings: Sequence[Training],
        observer: SideBySideObserver,
        folder: Path,
        fingerprint: str,
        room: int,
    ) -> None:
        self._waiting = deque(_Entry(number, training) for number, training in enumerate(trainings))
        self._observer, self._folder, self._fingerprint, self._room = observer, folder, fingerprint, room
        self._open: dict[str, _Entry] = {}

    def next_job(self, key: str) -> Job | None:
        if not self._waiting or len(self._open) >= self._room:
            return None
        entry = self._open[key] = self._waiting.popleft()
        return Job(entry.training.config, self._place(entry), self._fingerprint)

    def is_done(self) -> bool:
        return not self._open and not self._waiting

    def is_over(self) -> bool:
        return False

    def started(self, key: str) -> None:
        entry = self._open[key]
        if entry.recorder is None:
            entry.recorder = self._observer.open_recorder(entry.training)
            self._tell(entry, "RUNNING")

    def reported(self, key: str, result: Mapping[str, Any]) -> bool:
        """Take an epoch once, also when a restarted training repeats it."""
        entry = self._open[key]
        entry.failure = result.get("failure")
        if "report" not in result:
            return False
        report = Report.from_dict(result["report"])
        if entry.last is None or report.step > entry.last.step:
            entry.last = report
            entry.seconds += report.seconds
            assert entry.recorder is not None
            entry.recorder.log(report)
            self._tell(entry, "RUNNING")
        return False

    def ended(self, key: str) -> None:
        entry = self._open.pop(key)
        if entry.failure:
            self._fail(entry, entry.failure)
            return
        checkpoint = newest(self._place(entry))
        assert entry.last is not None, entry.training.name
        assert checkpoint is not None, entry.training.name
        assert entry.recorder is not None, entry.training.name
        try:
            self._observer.trained(entry.training, entry.last, entry.seconds, checkpoint)
        except BaseException:
            entry.recorder.close("FAILED")
            raise
        entry.recorder.close("FINISHED")
        drop_checkpoints(self._place(entry))
        self._tell(entry, "COMPLETE")

    def lost(self, key: str, reason: str) -> None:
        entry = self._open.pop(key)
        if entry.restarts < RESTARTS:
            entry.restarts += 1
            self._waiting.append(entry)
        else:
            self._fail(entry, f"the training's process failed {RESTARTS + 1} times: {reason}")

    def end_all(self, reason: str) -> None:
        """End the trainings that are still open when the run is interrupted."""
        for entry in self._open.values():
            if entry.recorder:
                entry.recorder.close("KILLED")
                self._tell(entry, "FAIL", reason)
        self._open.clear()

    def _fail(self, entry: _Entry, reason: str) -> None:
        if entry.recorder:
            entry.recorder.close("FAILED")
        drop_checkpoints(self._place(entry))
        self._observer.failed(entry.training, reason)
        self._tell(entry, "FAIL", reason)

    def _place(self, entry: _Entry) -> Path:
        return self._folder / entry.training.name

    def _tell(self, entry: _Entry, state: TrialState, reason: str | None = None) -> None:
        config = entry.training.config
        values = {"row": entry.training.row, "epochs": config.train.epochs, "seed": config.train.seed}
        epoch = entry.last.epoch if entry.last else 0
        value = entry.last.metrics[config.metric] if entry.last else None
        event = TrialEvent(entry.number, values, state, epoch, value, reason)
        self._observer.follow(entry.training, event)
