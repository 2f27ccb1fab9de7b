"""The record of a job: all that goes into its MLflow runs, written to its folder before anything is sent.

record/events.jsonl   every event, once, in order, on disk (fsync) when the call that made it returns
record/owner.lock     held by the process that runs the job; the kernel releases it when the process dies
record/owner.json     which process that is, and on which machine
record/sent.json      how far the sender has come, and the MLflow run id of each run; see forward.py

Nothing here waits for a server or imports mlflow: recording a training costs one append an epoch.
"""

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from encsearch.errors import UserError
from encsearch.files import append_line, hold_lock, write_whole
from encsearch.parts import is_part
from encsearch.redaction import without_secrets
from encsearch.reports import Point, Report, Status
from encsearch.text import metric_name, round_figure
from encsearch.tracking.outbox.events import (
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
NOTE_TAG = "mlflow.note.content"
# On a run that another process closed because its own was dead; if the run went on, it also says when.
REAPED_TAG = "encsearch.reaped"
# Whoever closes the runs of a dead job holds the lock for a moment; a live job holds it to its end.
OWNER_WAIT_S = 5


def find_jobs(folder: Path) -> list[Path]:
    """List the jobs with a record: the folder itself, or those in it. Raises UserError if there is none."""
    if (folder / FOLDER / EVENTS_FILE).is_file():
        return [folder]
    found = sorted(path.parents[1] for path in folder.glob(f"*/{FOLDER}/{EVENTS_FILE}"))
    if not found:
        raise UserError(f"{folder}: neither a job's folder nor one of jobs (no {FOLDER}/{EVENTS_FILE})")
    return found


@contextmanager
def own_record(job_folder: Path, root: Path = Path()) -> Iterator["Record"]:
    """Create or continue the record in a job's folder; this process alone writes it.

    `root` is the folder whose code the job runs, the working directory unless it is given: an absolute path,
    since that folder may be deleted.

    Runs that are open when the block ends are closed as KILLED. Raises UserError when another process writes.
    """
    folder = job_folder / FOLDER
    folder.mkdir(exist_ok=True)
    with hold_lock(folder / OWNER_LOCK, OWNER_WAIT_S) as is_held:
        if not is_held:
            raise UserError(f"{job_folder}: another process is recording this job; wait for it or end it")
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        write_whole(folder / OWNER_FILE, json.dumps(owner) + "\n")
        record = Record(job_folder, root)
        try:
            yield record
        finally:
            for run in record.open_runs():
                record.append(Ended(run, now_ms(), "KILLED"))


@dataclass
class RunState:
    """The state of a run after the events so far. `status` is None while the run is open.

    `reaped` is the text of the tag since the run last began; `noted` and `newest` are the last values of the
    tags that were added and of its metrics.
    """

    started: Started
    status: Status | None = None
    reaped: str | None = None
    last_epoch: int = -1
    num_reports: int = 0
    noted: dict[str, str] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)


class Record:
    """All runs of one job. Its methods may be called from several threads."""

    def __init__(self, job_folder: Path, root: Path = Path()) -> None:
        """Raises UserError for a damaged record."""
        self.job_folder, self.root = job_folder, root
        self._path = job_folder / FOLDER / EVENTS_FILE
        self._lock = threading.Lock()
        self._runs: dict[str, RunState] = {}
        for event, offset in read_events(self._path):
            if event.run not in self._runs and not isinstance(event, Started):
                raise UserError(
                    f"{self._path}: run {event.run} goes on before byte {offset}, but was not begun"
                )
            self._take(event)

    @property
    def main(self) -> str | None:
        """The job's own run, which was begun first."""
        return next(iter(self._runs), None)

    def open_runs(self) -> list[str]:
        """List the runs that have not ended, in the order in which they began."""
        return [run for run, state in self._runs.items() if state.status is None]

    def find(self, run: str) -> RunState | None:
        return self._runs.get(run)

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
        """Begin a run, or go on with the run of that name; `params` are a flattened configuration.

        The files in `artifacts`, a folder below the job's, are stored when the run is closed.
        """
        known = self._runs.get(run)
        texts = {path: _param_text(value) for path, value in params.items()}
        key = known.started.key if known else uuid.uuid4().hex
        if known and known.reaped:
            self.append(Tagged(run, {REAPED_TAG: f"{known.reaped}; it went on at {_clock()}"}))
        if known:  # what a promotion has written above it stays
            tags = {tag: text for tag, text in tags.items() if tag != NOTE_TAG}
        self.append(Started(run, now_ms(), key, texts, _clean(tags), parent, dataset))
        return RunRecord(self, run, artifacts)

    def append(self, event: Event) -> None:
        """Write an event to disk before returning. Raises TrainingError if that fails, as on a full disk."""
        with self._lock:
            append_line(self._path, to_values(event))
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Started):
            state = self._runs.setdefault(event.run, RunState(event))
            state.status = state.reaped = None
            return
        state = self._runs[event.run]
        if isinstance(event, Ended):
            state.status = event.status
        elif isinstance(event, Tagged):
            state.reaped = event.tags.get(REAPED_TAG, state.reaped)
            state.noted |= event.tags
        elif isinstance(event, Logged):
            for point in event.points:
                state.newest |= point.values
                if "epoch" in point.values:
                    state.last_epoch = int(point.values["epoch"])
                    state.num_reports += 1


class RunRecord:
    """A `Recorder` of one run. The first report of an epoch counts; a repeated one is ignored."""

    def __init__(self, record: Record, run: str, artifacts: Path | None) -> None:
        self.run = run
        self._record, self._artifacts = record, artifacts
        state = record.find(run)
        assert state, f"run {run} was not started"
        self._state = state
        self._is_closed = False

    @property
    def last_epoch(self) -> int:
        """The last epoch that was logged, -1 before the first."""
        return self._state.last_epoch

    def log(self, report: Report) -> None:
        if report.epoch > self._state.last_epoch:
            self._append(report)

    def summarize(self, report: Report) -> None:
        """Log the report that represents a whole sweep, unless it was logged before.

        MLflow shows the value of the highest step, so the step counts the summaries: the winner of an
        extended sweep may have fewer epochs than the winner before.
        """
        newest = self._state.newest
        if any(
            newest.get(metric_name(name)) != round_figure(value) for name, value in report.metrics.items()
        ):
            # The best is what is summarized: a mean over seeds may fall when a sweep is extended.
            best = {f"best/{name}": value for name, value in report.metrics.items() if _is_scored(name)}
            self._append(replace(report, step=self._state.num_reports, points=()), best)

    def note(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""
        self._record.append(Tagged(self.run, _clean(tags)))

    def file(self, path: Path, target: str = "") -> None:
        """Store a file, or all files of a folder, below the job's folder as an artifact."""
        self._record.append(Filed(self.run, str(path.relative_to(self._record.job_folder)), target))

    def close(self, status: Status) -> None:
        """End the run; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._artifacts and self._artifacts.is_dir():
            self.file(self._artifacts)
        self._record.append(Ended(self.run, now_ms(), status))

    def _append(self, report: Report, best: Mapping[str, float] | None = None) -> None:
        values = dict(report.metrics) | {f"IoU/{name}": iou for name, iou in report.class_iou.items()}
        # Logged every time, since the UI ranks by a metric's last value.
        best = self._best(report.metrics) if best is None else best
        values |= {**best, "seconds": report.seconds, "epoch": report.epoch}
        # They come first in the event: MLflow's comparison opens with the metric that a run has had longest.
        points = (Point(report.step, now_ms(), values), *report.points)
        self._record.append(Logged(self.run, tuple(_clean_point(point) for point in points)))

    def _best(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the highest value so far of each score; none while all are NaN, as after diverging."""
        best: dict[str, float] = {}
        for name in metrics:
            if _is_scored(name):
                known = self._state.newest.get(metric_name(f"best/{name}"), math.nan)
                seen = [value for value in (known, metrics[name]) if not math.isnan(value)]
                best |= {f"best/{name}": max(seen)} if seen else {}
        return best


def now_ms() -> int:
    return int(time.time() * 1000)


def _is_scored(metric: str) -> bool:
    return metric.startswith(("mIoU", "pixAcc")) or is_part(metric)


def _clock() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _clean_point(point: Point) -> Point:
    return replace(
        point, values={metric_name(name): round_figure(value) for name, value in point.values.items()}
    )


def _param_text(value: Any) -> str:
    """Write a value as a recipe would: null, true, 0.01; text stays. `config.yaml` has all digits."""
    text = value if isinstance(value, str) else json.dumps(round_figure(value))
    return without_secrets(text)[:MAX_PARAM_LENGTH]


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    return {tag: without_secrets(text)[:MAX_TAG_LENGTH] for tag, text in tags.items()}
