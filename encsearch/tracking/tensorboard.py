"""A job's record as TensorBoard's event files, by torch's writer: one TensorBoard run for each training.

The record is only read, and no server is asked. All files of a job are written anew each time, since
TensorBoard takes a second file in a run's folder for more of the same run.

DIR/JOB         the event file of a training
DIR/JOB/RUN     that of each trial, finalist and baseline of a sweep, and of each training of an ablation;
                RUN is the name in MLflow
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from encsearch.errors import TrainingError, UserError
from encsearch.files import instead_of
from encsearch.reports import Point
from encsearch.tracking.browse.rows import KIND_TAG, find_searched_paths
from encsearch.tracking.outbox.events import Ended, Filed, Logged, Started, Tagged, read_events
from encsearch.tracking.outbox.forward import EventRefusedError, inside
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER, NOTE_TAG, find_jobs

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

# Runs that sum up others.
NO_TRAININGS = ("sweep", "ablation", "configuration")
FILE_MARK = "tfevents"  # in the name of each event file
# Not columns of the HParams tab: curves within an epoch, and the machine.
NO_RESULTS = ("step/", "system/")
FIRST_RESULTS = ("train/loss", "epoch", "seconds")  # behind the metric
# Names of a picture for MLflow, and the step and time in it; see run_files.py.
SHEET = re.compile(r"(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+(?P<time_ms>\d+)\+.+")


@dataclass(frozen=True)
class Written:
    """What was written of one job: trainings, figures and pictures; `reason` says why nothing was."""

    folder: str
    target: str
    trainings: int = 0
    figures: int = 0
    pictures: int = 0
    reason: str = ""


@dataclass
class _Run:
    """A run of the record; `places` are the offsets of its figures and files, which stay on disk."""

    name: str
    started: Started
    params: dict[str, str]
    tags: dict[str, str]
    ended: Ended | None = None
    places: list[int] = field(default_factory=list)
    metrics: dict[str, None] = field(default_factory=dict)


def write_tensorboard(folders: Sequence[Path], target: Path) -> list[Written]:
    """Write the records of jobs, or of folders of jobs, to `target`; each job's folder there is replaced.

    A job that cannot be read does not hold up the others. Raises UserError for a folder without a record,
    a target that cannot be written, and without the extra `tensorboard`.
    """
    jobs = list(dict.fromkeys(job.absolute() for folder in folders for job in find_jobs(folder)))
    if find_spec("tensorboard") is None:
        raise UserError(
            "--to tensorboard needs the package tensorboard; pip install 'encsearch[tensorboard]'"
        )
    names = [job.name for job in jobs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{twice[0]}: {names.count(twice[0])} jobs have this name; sync each to a folder of its own"
        )
    for job in jobs:
        _check_replaceable(target / job.name)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _quiet_threads():
            return [_write_readable(job, target / job.name) for job in jobs]
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); name another folder") from None


def _check_replaceable(folder: Path) -> None:
    """Raises UserError for a folder with files that are not TensorBoard's, such as the job's own."""
    others = (path for path in folder.rglob("*") if path.is_file() and FILE_MARK not in path.name)
    if other := next(others, None):
        raise UserError(
            f"{folder} would be replaced, but {other.name} in it is no event file; name another folder"
        )


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no traceback of a thread: that of the writer raises on a full disk, and `flush` does so here."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        yield
    finally:
        threading.excepthook = hook


def _write_readable(job: Path, target: Path) -> Written:
    try:
        return _write(job, target)
    except (UserError, TrainingError, EventRefusedError) as error:
        return Written(str(job), str(target), reason=str(error))


def _write(job: Path, target: Path) -> Written:
    from torch.utils.tensorboard import SummaryWriter

    runs = _read_runs(job)
    trainings = [run for run in runs if run.tags.get(KIND_TAG) not in NO_TRAININGS]
    if not trainings:
        return Written(str(job), str(target))
    figures = pictures = 0
    with instead_of(target) as scratch:
        scratch.mkdir()
        for run in trainings:
            place = scratch if run is runs[0] else scratch / run.name.replace("/", "_").lstrip(".")
            with SummaryWriter(str(place)) as writer:
                if run is trainings[0] and len(trainings) > 1:
                    _add(writer, _comparison(runs[0], trainings), run.started.time_ms)
                done = _write_run(writer, job, run)
                writer.flush()  # raises what has failed in the writer's thread; its end does not
            figures, pictures = figures + done[0], pictures + done[1]
    return Written(str(job), str(target), len(trainings), figures, pictures)


def _read_runs(job: Path) -> list[_Run]:
    """List the runs in the order in which they began, the job's own first."""
    runs: dict[str, _Run] = {}
    offset = 0
    for event, end in read_events(job / FOLDER / EVENTS_FILE):
        if isinstance(event, Started):
            run = runs.setdefault(event.run, _Run(event.run, event, {}, {}))
            run.params = {**event.params, **run.params}
            run.tags |= event.tags
            run.ended = None
        elif event.run in runs:
            run = runs[event.run]
            if isinstance(event, Ended):
                run.ended = event
            elif isinstance(event, Tagged):
                run.tags |= event.tags
            else:
                run.places.append(offset)
                if isinstance(event, Logged):
                    run.metrics |= dict.fromkeys(name for point in event.points for name in point.values)
        offset = end
    return list(runs.values())


def _write_run(writer: "SummaryWriter", job: Path, run: _Run) -> tuple[int, int]:
    """Write figures by step, params, tags and pictures; return the numbers of figures and pictures."""
    events = [next(read_events(job / FOLDER / EVENTS_FILE, place))[0] for place in run.places]
    points = [point for event in events if isinstance(event, Logged) for point in event.points]
    # TensorBoard drops what it has of a curve from a step on when that step comes again.
    points.sort(key=lambda point: (point.step, point.time_ms))
    _add(writer, _session(f"{run.name} of {job.name}", run), run.started.time_ms)
    for point in points:
        for name, value in point.values.items():
            writer.add_scalar(name, value, point.step, point.time_ms / 1000)
    status = run.ended.status if run.ended else "RUNNING"
    tags = {name: text for name, text in run.tags.items() if name != NOTE_TAG}
    texts = {"description": run.tags.get(NOTE_TAG, ""), "params": _table(run.params)}
    texts["tags"] = _table({"status": status, **tags})
    for name, text in texts.items():
        writer.add_text(name, text, 0, run.started.time_ms / 1000)
    last = points[-1] if points else Point(0, run.started.time_ms, {})
    pictures = _pictures(job, [event for event in events if isinstance(event, Filed)], last)
    for (name, step), (path, time_ms) in pictures.items():
        writer.add_image(name, _pixels(path), step, time_ms / 1000, dataformats="HWC")
    return sum(len(point.values) for point in points), len(pictures)


def _pictures(job: Path, files: Sequence[Filed], last: Point) -> dict[tuple[str, int], tuple[Path, int]]:
    """Find the PNG files by name and step; those that name neither step nor time are of the run's end."""
    found: dict[tuple[str, int], tuple[Path, int]] = {}
    for event in files:
        root = inside(job, event.path)
        for path in sorted(root.rglob("*.png")) if root.is_dir() else [root] * (root.suffix == ".png"):
            name = (
                Path(event.target) / (path.relative_to(root) if root.is_dir() else path.name)
            ).with_suffix("")
            step, time_ms = last.step, last.time_ms
            if sheet := SHEET.fullmatch(name.name):
                name, step = name.with_name(sheet["key"]), int(sheet["step"])
                time_ms = int(sheet["time_ms"]) or time_ms
            if path.is_file():
                found[str(name), step] = path, time_ms
    return found


def _pixels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); restore the file") from None


def _session(name: str, run: _Run) -> "list[Summary]":
    """The entry of a training in the HParams tab; torch's own would write true and false as numbers."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=run.started.time_ms / 1000)
    for path, text in run.params.items():
        value = _value(text)
        if isinstance(value, bool):
            start.hparams[path].bool_value = value
        elif isinstance(value, str):
            start.hparams[path].string_value = value
        elif value is not None:
            start.hparams[path].number_value = value
    summaries = [_hparams_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start)]
    if run.ended:
        status = api_pb2.STATUS_SUCCESS if run.ended.status == "FINISHED" else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=run.ended.time_ms / 1000)
        summaries.append(_hparams_summary(metadata.SESSION_END_INFO_TAG, session_end_info=end))
    return summaries


def _comparison(main: _Run, trainings: Sequence[_Run]) -> "list[Summary]":
    """The columns of the HParams tab: what was searched, what else differs, and the metric of the job first.

    TensorBoard shows five of each until more are ticked, and would begin with the classes.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata

    searched = find_searched_paths(main.params)
    columns = []
    for path in dict.fromkeys(path for run in trainings for path in run.params):
        texts = {run.params.get(path) for run in trainings}
        if path not in searched and len(texts) == 1:
            continue
        # In TensorBoard those that "differ" come first.
        column = api_pb2.HParamInfo(name=path, differs=path in searched or not searched)
        kinds = {type(_value(text)) for text in texts if text is not None} - {type(None)}
        if kinds == {bool}:
            column.type = api_pb2.DATA_TYPE_BOOL
            column.domain_discrete.extend([False, True])
        elif kinds <= {int, float}:
            column.type = api_pb2.DATA_TYPE_FLOAT64
        else:
            column.type = api_pb2.DATA_TYPE_STRING
        columns.append(column)
    metric = main.params.get("metric", "mIoU")
    names = dict.fromkeys([f"best/{metric}", metric, *FIRST_RESULTS])
    known = {name: None for run in trainings for name in run.metrics if not name.startswith(NO_RESULTS)}
    names = {name: None for name in names if name in known} | known
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in names]
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
    return [_hparams_summary(metadata.EXPERIMENT_TAG, experiment=experiment)]


def _hparams_summary(tag: str, **content: Any) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])


def _add(writer: "SummaryWriter", summaries: "Sequence[Summary]", time_ms: int) -> None:
    file_writer: Any = writer.file_writer
    for summary in summaries:
        file_writer.add_summary(summary, 0, time_ms / 1000)


def _value(text: str) -> bool | float | str | None:
    """The value that a param was written from."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _table(values: Mapping[str, str]) -> str:
    rows = [(name, text.replace("|", "\\|").replace("\n", " ")) for name, text in values.items()]
    return "\n".join(f"| {name} | {text} |" for name, text in [("name", "value"), ("---", "---"), *rows])
