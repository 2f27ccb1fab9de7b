"""What a job wrote down against what the tracking store holds, row for row; and senders that are killed."""

import math
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from encsearch.tracking.mlflow import Tracking
from encsearch.tracking.outbox.events import Ended, Filed, Logged, Started, read_events
from encsearch.tracking.outbox.forward import sending_alone
from encsearch.tracking.outbox.mlflow_store import KEY_TAG, MlflowStore
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER
from tests.forward import send_all

PATIENCE = 1.05
# Name, step, time (ms), value as text: a NaN is equal to no other.
Row = tuple[str, int, int, str]


@dataclass(frozen=True)
class Held:
    """A run as a job wrote it down, or as the store holds it; `rows` are sorted, doubled ones kept."""

    parent: str | None
    status: str
    start_ms: int
    end_ms: int | None
    params: Mapping[str, str]
    datasets: int
    files: frozenset[str]
    rows: tuple[Row, ...]


def written(job_folder: Path) -> dict[str, Held]:
    """By the run's name. Of a run that was reopened the first start and the last end count."""
    begun: dict[str, Started] = {}
    ended: dict[str, Ended] = {}
    rows: dict[str, set[Row]] = {}
    files: dict[str, set[str]] = {}
    for event, _ in read_events(job_folder / FOLDER / EVENTS_FILE):
        if isinstance(event, Started):
            begun.setdefault(event.run, event)
            ended.pop(event.run, None)
        elif isinstance(event, Ended):
            ended[event.run] = event
        elif isinstance(event, Filed):
            files.setdefault(event.run, set()).add(str(Path(event.target, Path(event.path).name)))
        elif isinstance(event, Logged):
            rows.setdefault(event.run, set()).update(
                (name, point.step, point.time_ms, _text(value))
                for point in event.points
                for name, value in point.values.items()
            )
    return {
        run: Held(
            parent=start.parent,
            status=ended[run].status if run in ended else "RUNNING",
            start_ms=start.time_ms,
            end_ms=ended[run].time_ms if run in ended else None,
            params=start.params,
            datasets=1 if start.dataset else 0,
            files=frozenset(files.get(run, ())),
            rows=tuple(sorted(rows.get(run, ()))),
        )
        for run, start in begun.items()
    }


def stored(tracking: Tracking, job_folder: Path) -> dict[str, Held]:
    """The runs of the store that have a key of this job's, by name; a key with two runs is an error."""
    keys = [
        event.key for event, _ in read_events(job_folder / FOLDER / EVENTS_FILE) if isinstance(event, Started)
    ]
    names: dict[str, str] = {}
    held: dict[str, Held] = {}
    for key in dict.fromkeys(keys):
        found = tracking.client.search_runs([tracking.experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
        assert len(found) == 1, f"{len(found)} runs have the key {key}"
        run = found[0]
        run_id, name = run.info.run_id, run.info.run_name
        names[run_id] = name
        held[name] = Held(
            parent=names.get(run.data.tags.get("mlflow.parentRunId", "")),
            status=run.info.status,
            start_ms=run.info.start_time,
            end_ms=run.info.end_time,
            params=run.data.params,
            datasets=len(run.inputs.dataset_inputs),
            files=frozenset(file.path for file in tracking.client.list_artifacts(run_id)),
            rows=tuple(sorted(_history(tracking.client, run_id, list(run.data.metrics)))),
        )
    return held


def send_under_kills(
    job_folder: Path, tracking_uri: str, experiment_id: str, longest_s: float, seed: int
) -> int:
    """Send a record by processes each of which is killed after up to `longest_s`; how many were killed.

    They are forked, so that mlflow is imported once; each opens the store itself, since a connection to a
    database must not cross a fork.
    """
    rng = random.Random(seed)
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            _send_and_exit(job_folder, tracking_uri, experiment_id)
        time.sleep(rng.uniform(0, longest_s))
        os.kill(child, signal.SIGKILL)
        _, code = os.waitpid(child, 0)
        if os.WIFEXITED(code):
            assert os.WEXITSTATUS(code) == 0, f"the sender ended with code {os.WEXITSTATUS(code)}"
            return killed
        killed += 1
        # On a machine that got busier in the meantime none would come to its end.
        longest_s *= PATIENCE


def send_once(job_folder: Path, tracking_uri: str, experiment_id: str) -> float:
    """Send a record by a process that nothing disturbs; the seconds that it took."""
    started_s = time.monotonic()
    child = os.fork()
    if child == 0:
        _send_and_exit(job_folder, tracking_uri, experiment_id)
    _, code = os.waitpid(child, 0)
    assert code == 0, f"the sender ended with code {code}"
    return time.monotonic() - started_s


def _send_and_exit(job_folder: Path, tracking_uri: str, experiment_id: str) -> None:
    code = 1
    try:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        with sending_alone(job_folder) as is_alone:
            assert is_alone, f"{job_folder}: another process is sending"
            send_all(job_folder, MlflowStore(Tracking(client, tracking_uri, experiment_id)))
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        # Nothing of the parent's is to run twice: its tests, its open files.
        os._exit(code)


def _history(client: MlflowClient, run_id: str, names: list[str]) -> list[Row]:
    return [
        (name, point.step, point.timestamp, _text(point.value))
        for name in names
        for point in client.get_metric_history(run_id, name)
    ]


def _text(value: float) -> str:
    """SQL stores take no infinity: MLflow keeps the greatest float for it."""
    return repr(math.copysign(sys.float_info.max, value) if math.isinf(value) else float(value))
