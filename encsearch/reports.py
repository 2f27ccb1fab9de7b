"""Reports of a training: one `Report` per epoch, kept as JSON lines beside the run, read by a `Recorder`.

The process near the training appends to the lines (the spool); the driver tails the file and forwards it to a
`Recorder`, so that a training never waits for a tracking server.

At the end: what a training leaves (`TrainingResult`), and what a finished job says of itself (`RunSummary`).
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from encsearch.errors import NoticeError, TrainingError, UserError
from encsearch.files import append_line, lines_after, read_object, to_object
from encsearch.text import format_list

Status = Literal["FINISHED", "FAILED", "KILLED"]

# The reports, in a training's folder.
REPORTS_FILE = "reports.jsonl"
# Among the texts of a training's first report: what it took of `train.init_from`.
INIT_FILE = "lineage/init_from.txt"
# The RunSummary, in the folder of a finished job.
SUMMARY_FILE = "run.json"
SHOWN_JOBS = 3
# In the folder of a job from its start on; only jobs of one kind have it.
BEGUN_FILE, STUDY_FILE, RESULTS_FILE = "training.json", "study.json", "trainings.jsonl"

OnStep = Callable[[int], None]
"""Hears how many optimizer steps a training has done, also several times of the same number."""


def ignore_step(step: int) -> None:
    """For a training that nobody follows step by step."""


JobKind = Literal["training", "sweep", "ablation"]
MARKS: Mapping[str, JobKind] = MappingProxyType(
    {BEGUN_FILE: "training", STUDY_FILE: "sweep", RESULTS_FILE: "ablation"}
)


@dataclass(frozen=True)
class Point:
    """Figures at one moment: after an optimizer step, or at a time (milliseconds since 1970) in between."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The state of a training at the end of one epoch; every figure is global over all ranks.

    `metrics` are scalars by name ("mIoU", "pixAcc", "train/loss", "lr", ...); `class_iou` is the
    intersection over union by class name, without the absent classes; `confusion` is the
    (num_classes, num_classes) matrix of validation pixels, rows the truth, columns the prediction.
    `points` are the figures within the epoch. `label_maps` are predictions of fixed validation
    images, PNG files as base64 by sample id; `texts` are files to keep, by name, such as a profile. `ends`
    says why no report follows before the last epoch; "" if one does.
    """

    epoch: int
    step: int
    seconds: float
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    points: tuple[Point, ...] = ()
    label_maps: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    ends: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; `from_dict` is its inverse."""
        return asdict(self) | {"metrics": dict(self.metrics), "class_iou": dict(self.class_iou)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        confusion = tuple(tuple(row) for row in values["confusion"])
        points = tuple(Point(**point) for point in values["points"])
        return cls(**{**values, "confusion": confusion, "points": points})


class Recorder(Protocol):
    """Receives the reports of one training in order, and is closed once with the training's status."""

    def log(self, report: Report) -> None: ...

    def close(self, status: Status) -> None: ...


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Close the recorder with the status that follows from how the block ended."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, NoticeError):
        with suppress(OSError, TrainingError):  # what ended the block is what people are told
            recorder.close("KILLED")
        raise
    except BaseException:
        with suppress(OSError, TrainingError):  # as of a disk that is still full
            recorder.close("FAILED")
        raise
    recorder.close("FINISHED")


class MemoryRecorder:
    """Keeps the reports in a list, for tests and notebooks."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.status: Status | None = None

    def log(self, report: Report) -> None:
        self.reports.append(report)

    def close(self, status: Status) -> None:
        self.status = status


def append(path: Path, report: Report) -> None:
    """Add one report; it is on disk when this returns, so that every checkpoint has its report."""
    append_line(path, report.to_dict())


def distinct_reports(path: Path) -> list[Report]:
    """All reports in order; for an epoch that was repeated after a crash the first, which was forwarded."""
    reports: dict[int, Report] = {}
    for report in SpoolReader(path).new_reports():
        reports.setdefault(report.epoch, report)
    return list(reports.values())


class SpoolReader:
    """Reads every report of a spool once and in order; it remembers how far it has read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_reports(self) -> list[Report]:
        """The reports completed since the last call; none while the spool does not exist.

        Raises PreflightError or UserError for a damaged line.
        """
        lines = list(lines_after(self._path, self._offset))
        reports = [to_object(Report, values, self._path) for values, _ in lines]
        if lines:
            self._offset = lines[-1][1]
        return reports


@contextmanager
def forwarding(path: Path, recorder: Recorder, poll_s: float = 1.0) -> Iterator[None]:
    """Forward the spool's reports to `recorder` from a thread, each once and in order.

    The remaining reports are forwarded on exit, even if the body raised. The recorder is not closed; an error
    in its `log` is raised on exit.
    """
    reader = SpoolReader(path)
    stop = threading.Event()

    def forward() -> None:
        while True:
            is_last_round = stop.wait(poll_s)
            for report in reader.new_reports():
                recorder.log(report)
            if is_last_round:
                return

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool") as pool:
        forwarder = pool.submit(forward)
        try:
            yield
        finally:
            stop.set()
            forwarder.result()


@dataclass(frozen=True)
class TrainingResult:
    """All reports in order, and the checkpoint written at the step that `best` reports."""

    reports: tuple[Report, ...]
    best: Report
    best_checkpoint: Path
    seconds: float


def best_report(reports: tuple[Report, ...], metric: str) -> Report:
    """The report with the highest `metric`; the earliest if several are equal."""
    return max(reports, key=lambda report: (report.metrics[metric], -report.step))


@dataclass(frozen=True)
class RunSummary:
    """The facts of a finished job; `run_id` is the MLflow run that holds the model `bundle`.

    `parent_run_id` is a sweep's own run. Both are None while the store has not answered: `record/sent.json`
    has them by the names `run` and `parent_run` once `encsearch sync` has sent the record. `bundle` is
    relative to the job's folder.
    """

    kind: str
    name: str
    metric: str
    value: float
    fingerprint: str
    store: str
    split: str
    tracking_uri: str
    experiment_id: str
    run: str
    run_id: str | None
    bundle: str
    parent_run: str | None = None
    parent_run_id: str | None = None


def job_kind(folder: Path) -> JobKind | None:
    """The kind of the job in a folder, finished or not; None if there is none."""
    return next((kind for file, kind in MARKS.items() if (folder / file).is_file()), None)


def read_summary(folder: Path) -> RunSummary:
    """The summary in `folder`. Raises UserError when `folder` does not belong to a finished job."""
    path = folder / SUMMARY_FILE
    try:
        return read_object(path, RunSummary)
    except (FileNotFoundError, NotADirectoryError):
        what = f"the folder of a finished training, sweep or ablation ({SUMMARY_FILE} is missing)"
        raise no_job_error(folder, what) from None


def no_job_error(folder: Path, what: str) -> UserError:
    """The error for a folder that is not `what`, with the newest jobs in it, beside it and in runs/."""
    jobs: dict[Path, tuple[float, Path]] = {}
    for place in (Path("runs"), folder, folder.parent):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir() and (job_kind(path) or (path / SUMMARY_FILE).is_file()):
                    jobs.setdefault(path.resolve(), (entry.stat().st_mtime, path))
    jobs.pop(folder.resolve(), None)
    newest = [str(path) for _, path in sorted(jobs.values(), reverse=True)[:SHOWN_JOBS]]
    problem = f"not {what}" if folder.exists() else "no such folder"
    if newest:
        hint = f"the newest jobs are {format_list(newest)}"
    else:
        hint = "there is no job in it, beside it or in runs/"
    return UserError(f"{folder}: {problem}; {hint}")
