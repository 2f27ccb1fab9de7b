"""The record of a job: what its MLflow runs are to hold, written beside the job before anything is sent.

record/events.jsonl   every event, once, in order, on disk (fsync) when the call that made it returns
record/owner.lock     held by the process that runs the job; the kernel lets go of it when the process dies
record/owner.json     which process that is, and on which machine
record/sent.json      how far the sender has come, and the MLflow run id of each run; see `sending`

Nothing here waits for a server or imports mlflow: a training that is recorded costs one append an epoch.
"""

import fcntl
import json
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encsearch.errors import UserError
from encsearch.records import Point, Report, Status
from encsearch.redaction import without_secrets
from encsearch.spool import append_line
from encsearch.tracking.events import (
    Dataset,
    Ended,
    Event,
    Filed,
    Logged,
    Started,
    Tagged,
    read_events,
    to_values,
)

FOLDER, EVENTS_FILE, OWNER_LOCK, OWNER_FILE = "record", "events.jsonl", "owner.lock", "owner.json"
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000


@contextmanager
def owned(job_folder: Path) -> Iterator["Record"]:
    """The record in a job's folder, new or to go on with; this process alone writes it.

    Raises UserError when another process does.
    """
    folder = job_folder / FOLDER
    folder.mkdir(exist_ok=True)
    with open(folder / OWNER_LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{job_folder}: another process is recording this job; wait for it or end it"
            ) from None
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        (folder / OWNER_FILE).write_text(json.dumps(owner) + "\n", encoding="utf-8")
        yield Record(job_folder)


@dataclass
class _RunState:
    """What the events say of a run so far."""

    started: Started
    is_open: bool = True
    last_epoch: int = -1
    num_reports: int = 0
    newest: dict[str, float] = field(default_factory=dict)


class Record:
    """All runs of one job. Its methods may be called from several threads."""

    def __init__(self, job_folder: Path) -> None:
        self.job_folder = job_folder
        self._path = job_folder / FOLDER / EVENTS_FILE
        self._lock = threading.Lock()
        self._runs: dict[str, _RunState] = {}
        for event, _ in read_events(self._path):
            self._take(event)

    def open_runs(self) -> list[str]:
        """The runs that have not ended, in the order in which they were begun."""
        return [run for run, state in self._runs.items() if state.is_open]

    def has(self, run: str) -> bool:
        return run in self._runs

    def start(
        self,
        run: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent: str | None = None,
        dataset: Dataset | None = None,
        artifacts: Path | None = None,
    ) -> "RunRecord":
        """Begin a run, or go on with the one of that name; `params` are a flattened configuration.

        What lies in `artifacts`, a folder below the job's, is stored when the run is closed.
        """
        known = self._runs.get(run)
        texts = {path: _param_text(value) for path, value in params.items()}
        key = known.started.key if known else uuid.uuid4().hex
        self.append(Started(run, now_ms(), key, texts, _clean(tags), parent, dataset))
        return RunRecord(self, run, artifacts)

    def append(self, event: Event) -> None:
        """On disk when it returns."""
        with self._lock:
            append_line(self._path, to_values(event))
            self._take(event)

    def state(self, run: str) -> _RunState:
        return self._runs[run]

    def _take(self, event: Event) -> None:
        if isinstance(event, Started):
            state = self._runs.setdefault(event.run, _RunState(event))
            state.is_open = True
            return
        state = self._runs[event.run]
        if isinstance(event, Ended):
            state.is_open = False
        elif isinstance(event, Logged):
            for point in event.points:
                state.newest |= point.values
                if "epoch" in point.values:
                    state.last_epoch = int(point.values["epoch"])
                    state.num_reports += 1


class RunRecord:
    """A `Recorder` of one run. The first report of an epoch stands; one that comes again is ignored."""

    def __init__(self, record: Record, run: str, artifacts: Path | None) -> None:
        self.run = run
        self._record, self._artifacts = record, artifacts
        self._is_closed = False

    def log(self, report: Report) -> None:
        state = self._record.state(self.run)
        if report.epoch <= state.last_epoch:
            return
        values = _figures(report)
        best = {
            name: state.newest.get(f"best/{name}", -math.inf) for name in report.metrics if _is_score(name)
        }
        for name, before in best.items():
            # A score of a diverged epoch is NaN, which is greater than nothing.
            value = report.metrics[name] if report.metrics[name] > before else before
            # Logged every time, since the UI ranks by a metric's last value.
            if value > -math.inf:
                values[f"best/{name}"] = value
        values |= {"seconds": report.seconds, "epoch": report.epoch}
        points = (*report.points, Point(report.step, now_ms(), values))
        self._record.append(Logged(self.run, tuple(_named(point) for point in points)))

    def summarize(self, report: Report) -> None:
        """Log what stands for a whole sweep, unless it was logged before.

        MLflow shows the value of the highest step, so the step counts the summaries: an extended sweep's
        winner may have fewer epochs than the one before.
        """
        state = self._record.state(self.run)
        if any(state.newest.get(metric_name(name)) != value for name, value in report.metrics.items()):
            epoch = max(report.epoch, state.last_epoch + 1)
            self.log(replace(report, epoch=epoch, step=state.num_reports, points=()))

    def note(self, tag: str, text: str) -> None:
        self._record.append(Tagged(self.run, _clean({tag: text})))

    def file(self, path: Path, target: str = "") -> None:
        """Store a file, or all in a folder, which lies below the job's folder, as an artifact."""
        self._record.append(Filed(self.run, str(path.relative_to(self._record.job_folder)), target))

    def close(self, status: Status) -> None:
        """A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._artifacts and self._artifacts.is_dir():
            self.file(self._artifacts)
        self._record.append(Ended(self.run, now_ms(), status))


def now_ms() -> int:
    return int(time.time() * 1000)


def metric_name(name: str) -> str:
    """MLflow takes letters, digits and _-. :/ in a metric's name."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _figures(report: Report) -> dict[str, float]:
    return dict(report.metrics) | {f"IoU/{name}": iou for name, iou in report.class_iou.items()}


def _is_score(name: str) -> bool:
    return name.startswith(("mIoU", "pixAcc"))


def _named(point: Point) -> Point:
    return replace(point, values={metric_name(name): value for name, value in point.values.items()})


def _param_text(value: Any) -> str:
    """As the recipe would write it: null, true, 0.01; text as it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    return without_secrets(text)[:MAX_PARAM_LENGTH]


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    return {tag: without_secrets(text)[:MAX_TAG_LENGTH] for tag, text in tags.items()}
