"""MLflow as the record of runs. An outage of the server costs the training neither data nor time.

Only this module, registry.py beside it and serving_model.py, which MLflow itself runs, import mlflow.
"""

import json
import math
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from encsearch.errors import PreflightError, UserError
from encsearch.records import Report, Status
from encsearch.redaction import without_secrets
from encsearch.spool import append
from encsearch.tracking.uris import SQLITE, resolve_uri, sqlite_path

UNSENT_FILE = "unsent.jsonl"
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
PARAMS_A_REQUEST = 100  # the server's limit
METRICS_A_REQUEST = 500
RUNS_A_PAGE = 1000
REPORTS_A_LOG = 20  # of a backlog: keeps the epoch after an outage short
STORE_FAILURES = (MlflowException, SQLAlchemyError, OSError)  # requests' errors are OSErrors


@dataclass(frozen=True)
class Tracking:
    """An open tracking store and the experiment in it that runs go to."""

    client: MlflowClient
    uri: str
    experiment_id: str


def connect(uri: str | None = None, experiment: str | None = None) -> Tracking:
    """Open the store and find or create the experiment; an empty SQLite file takes 20 s to set up.

    `uri` defaults to MLFLOW_TRACKING_URI, else ./mlflow.db with the artifacts in ./mlruns beside it;
    `experiment` to MLFLOW_EXPERIMENT_NAME, else "encsearch". Raises PreflightError, for a server that does
    not answer after 10 s.
    """
    uri = resolve_uri(uri)
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "encsearch"
    with answering(uri):
        _set_up(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(name) or _create_experiment(client, uri, name)
    if found.lifecycle_stage != "active":
        raise PreflightError(
            f"experiment {name} in MLflow at {without_secrets(uri)} is deleted; restore it or name another"
        )
    return Tracking(client, uri, found.experiment_id)


def start_run(
    tracking: Tracking,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    artifact_dir: Path | None = None,
    parent_run_id: str | None = None,
) -> "MlflowRecorder":
    """Create a run with its params (a flattened config) and tags, as a child of `parent_run_id` if given.

    What lies in `artifact_dir` when the recorder is closed is uploaded. Raises PreflightError.
    """
    parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    with answering(tracking.uri):
        run = tracking.client.create_run(tracking.experiment_id, run_name=name, tags={**tags, **parent})
        try:
            _log_params(tracking.client, run.info.run_id, params)
        except STORE_FAILURES:
            tracking.client.set_terminated(run.info.run_id, "FAILED")
            raise
    return MlflowRecorder(tracking, run.info.run_id, artifact_dir)


def continue_run(
    tracking: Tracking, run_id: str, params: Mapping[str, Any], artifact_dir: Path
) -> "MlflowRecorder":
    """Go on with a run whose process was killed, maybe before the run had all its `params`.

    Raises UserError when the store does not have the run, and PreflightError.
    """
    check_run(tracking, run_id)
    with answering(tracking.uri):
        stored = tracking.client.get_run(run_id).data
        missing = {path: value for path, value in params.items() if path not in stored.params}
        _log_params(tracking.client, run_id, missing)
        tracking.client.update_run(run_id, status="RUNNING")
        num_reports = len(tracking.client.get_metric_history(run_id, "epoch"))
    return MlflowRecorder(tracking, run_id, artifact_dir, stored.metrics, num_reports)


def continue_training(
    tracking: Tracking, run_id: str, params: Mapping[str, Any], artifact_dir: Path
) -> "MlflowRecorder":
    """As `continue_run` of a training, which tells its epochs again: what arrived is not sent twice."""
    recorder = continue_run(tracking, run_id, params, artifact_dir)
    recorder.skip_stored()
    return recorder


def reap_children(tracking: Tracking, run_id: str, keep: Collection[str] = ()) -> None:
    """End the run's children that look as if they still ran, but those of `keep`, as KILLED."""
    with answering(tracking.uri):
        for child in _children(tracking, run_id, "attributes.status = 'RUNNING'"):
            if child.info.run_id not in keep:
                tracking.client.set_tag(child.info.run_id, "encsearch.reaped", "its process was killed")
                tracking.client.set_terminated(child.info.run_id, "KILLED")


@dataclass(frozen=True)
class FoundRun:
    run_id: str
    status: str


def find_run(tracking: Tracking, tag: str, value: str) -> FoundRun | None:
    """The newest run of the experiment whose `tag` is `value`."""
    with answering(tracking.uri):
        found = tracking.client.search_runs(
            [tracking.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1
        )
    return FoundRun(found[0].info.run_id, found[0].info.status) if found else None


def children_by_name(tracking: Tracking, run_id: str) -> dict[str, FoundRun]:
    """The run's children; of two with one name the newer."""
    with answering(tracking.uri):
        children = _children(tracking, run_id)
    newest_last = sorted(children, key=lambda child: child.info.start_time)
    return {child.info.run_name: FoundRun(child.info.run_id, child.info.status) for child in newest_last}


def check_run(tracking: Tracking, run_id: str) -> None:
    """Raises UserError when the store does not have the run."""
    with answering(tracking.uri):
        try:
            tracking.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"MLflow at {without_secrets(tracking.uri)} has no run {run_id}; "
                "set MLFLOW_TRACKING_URI to the store that it was recorded in"
            ) from None


class MlflowRecorder:
    """A `Recorder` that writes to one MLflow run.

    A store that does not answer neither raises nor holds the training up: reports wait in memory with their
    time stamps and go out with a later one, and after a failed try none is made for ten times as long as it
    took. Sending a report twice changes nothing, since MLflow identifies a metric by key, time, step and
    value. The first report of an epoch stands; one that comes again is ignored.
    """

    def __init__(
        self,
        tracking: Tracking,
        run_id: str,
        artifact_dir: Path | None,
        stored: Mapping[str, float] | None = None,
        num_reports: int = 0,
    ) -> None:
        """`stored` are the newest metrics of a run that goes on, `num_reports` how many it has."""
        self.run_id = run_id
        self._stored, self._num_reports = stored or {}, num_reports
        self._client = tracking.client
        self._shown_uri = without_secrets(tracking.uri)
        self._artifact_dir = artifact_dir
        self._last_epoch = -1
        self._best: dict[str, float] = {}
        self._tags: dict[str, str] = {}
        self._unsent: deque[tuple[Report, list[Metric]]] = deque()
        self._next_try_s = 0.0
        self._has_warned = False
        self._is_closed = False

    def skip_stored(self) -> None:
        """Take no report again up to the one whose metrics are stored."""
        self._last_epoch = int(self._stored.get("epoch", -1))
        best = {name: value for name, value in self._stored.items() if name.startswith("best/")}
        self._best = {name.removeprefix("best/"): value for name, value in best.items()}

    def log(self, report: Report) -> None:
        """Send the report, or keep it for later; never raises for a store that fails."""
        if report.epoch <= self._last_epoch:
            return
        self._last_epoch = report.epoch
        self._unsent.append((report, self._metrics(report)))
        started_s = time.monotonic()
        if started_s < self._next_try_s:
            return
        try:
            self._send(REPORTS_A_LOG)
        except STORE_FAILURES as error:
            now_s = time.monotonic()
            self._next_try_s = now_s + max(1.0, 10 * (now_s - started_s))
            self._warn_once(error)

    def summarize(self, report: Report) -> None:
        """Log what stands for a whole sweep, unless it was logged before.

        MLflow shows the value of the highest step, so the step counts the summaries: an extended sweep's
        winner may have fewer epochs than the one before.
        """
        if any(self._stored.get(_metric_name(name)) != value for name, value in report.metrics.items()):
            self.log(replace(report, step=self._num_reports))

    def note(self, tag: str, text: str) -> None:
        """Set a tag when the recorder is closed."""
        self._tags[tag] = text[:MAX_TAG_LENGTH]

    def close(self, status: Status) -> None:
        """Send what is left, upload the artifacts, set tags and status. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            try:
                self._send(len(self._unsent))
                for tag, text in self._tags.items():
                    self._client.set_tag(self.run_id, tag, text)
                if self._artifact_dir and self._artifact_dir.is_dir():
                    self._client.log_artifacts(self.run_id, str(self._artifact_dir))
            finally:
                self._client.set_terminated(self.run_id, status)
        except STORE_FAILURES as error:
            _warn(f"{self._failure(error)}; {self._keep_unsent()}")

    def _send(self, max_reports: int) -> None:
        for _ in range(min(max_reports, len(self._unsent))):
            _, metrics = self._unsent[0]
            for start in range(0, len(metrics), METRICS_A_REQUEST):
                self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_A_REQUEST])
            self._unsent.popleft()

    def _metrics(self, report: Report) -> list[Metric]:
        """Every figure of the report; "epoch" comes last, so that a run that has it has them all."""
        values = dict(report.metrics)
        values |= {f"IoU/{_metric_name(name)}": iou for name, iou in report.class_iou.items()}
        for name, value in report.metrics.items():
            # A score of a diverged epoch is NaN, which is greater than nothing.
            if name.startswith(("mIoU", "pixAcc")) and value > self._best.get(name, -math.inf):
                self._best[name] = value
        # Logged every time, since the UI ranks by a metric's last value.
        values |= {f"best/{name}": value for name, value in self._best.items()}
        values |= {"seconds": report.seconds, "epoch": report.epoch}
        now_ms = int(time.time() * 1000)
        return [Metric(_metric_name(name), value, now_ms, report.step) for name, value in values.items()]

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            _warn(f"{self._failure(error)}; the training goes on and its reports are sent later")
        self._has_warned = True

    def _failure(self, error: Exception) -> str:
        return f"MLflow at {self._shown_uri} fails for run {self.run_id} ({one_line(error)})"

    def _keep_unsent(self) -> str:
        """Write the waiting reports as a spool beside the artifacts; says where they are."""
        if not self._unsent:
            return "its metrics are stored, its artifacts or its status may not be"
        if self._artifact_dir is None:
            return f"{len(self._unsent)} reports were not sent"
        self._artifact_dir.mkdir(parents=True, exist_ok=True)
        path = self._artifact_dir / UNSENT_FILE
        for report, _ in self._unsent:
            append(path, report)
        return f"{len(self._unsent)} reports were not sent and lie in {path}"


def _children(tracking: Tracking, run_id: str, condition: str = "") -> list[Run]:
    query = f"tags.`mlflow.parentRunId` = '{run_id}'" + (f" AND {condition}" if condition else "")
    found: list[Run] = []
    token = None
    while True:
        page = tracking.client.search_runs(
            [tracking.experiment_id], query, max_results=RUNS_A_PAGE, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn a failure of the store into a PreflightError of one line, without secrets."""
    try:
        yield
    except (*STORE_FAILURES, ImportError) as error:
        raise PreflightError(
            f"MLflow at {without_secrets(uri)} cannot be used: {one_line(error)};"
            " check MLFLOW_TRACKING_URI and that the server runs"
        ) from None


def one_line(error: Exception) -> str:
    """The error's innermost message, which is the one that says why, short and without secrets."""
    text = without_secrets(" ".join(str(error).split()))
    cause = re.search(r"\[Errno[^\]]*\] [^'\")]*|timed? ?out", text)
    return cause.group().strip(" :") if cause else text[:200]


def _set_up(uri: str) -> None:
    """Make a new SQLite store beside its place, so that it is whole or absent.

    MLflow 3.17 never opens a database again whose set-up a kill has cut off.
    """
    database = sqlite_path(uri)
    if database is None or database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as scratch:
        whole = Path(scratch, database.name)
        MlflowClient(tracking_uri=f"{SQLITE}{whole}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was first
            os.link(whole, database)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    entries = [Param(path, _param_text(value)) for path, value in params.items()]
    for start in range(0, len(entries), PARAMS_A_REQUEST):
        client.log_batch(run_id, params=entries[start : start + PARAMS_A_REQUEST])


def _create_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    database = sqlite_path(uri)
    artifacts = (database.parent / "mlruns" / name).as_uri() if database else None
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name)  # another process was first


def _param_text(value: Any) -> str:
    """As the recipe would write it: null, true, 0.01; text as it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:MAX_PARAM_LENGTH]


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits and _-. :/ in a metric's name."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
