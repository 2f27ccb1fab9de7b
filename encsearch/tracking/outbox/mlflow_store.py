"""MLflow as the `EventStore` of forward.py: calls can be repeated, failures mean "not now" or "never"."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from encsearch.redaction import without_user
from encsearch.reports import Point
from encsearch.tracking.mlflow import STORE_FAILURES, Tracking, check_answer, innermost
from encsearch.tracking.outbox.events import Ended, Started
from encsearch.tracking.outbox.forward import (
    EventRefusedError,
    GoneError,
    Missing,
    UnavailableError,
    without_figures,
)
from encsearch.tracking.uris import sqlite_path

KEY_TAG = "encsearch.record"
TOO_LARGE = 413
PARAMS_A_REQUEST = 100  # the server's limit
MAX_DIGEST_LENGTH = 36
# MLflow's error codes for values that it never takes. Other failures are temporary: no answer, 5xx, 401, a
# locked database, and BAD_REQUEST, which MLflow 3.17 also gives for a crowded connection pool.
NEVER = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


class MlflowStore:
    """Runs of one experiment."""

    def __init__(self, tracking: Tracking) -> None:
        self._client, self._uri = tracking.client, tracking.uri
        self.shown_uri = without_user(tracking.uri)
        self.experiment_id = tracking.experiment_id

    def begin(self, event: Started, parent_id: str | None, known_id: str | None) -> str:
        with self._classify_failures(known_id):
            run_id = known_id or self._find(event.key) or self._create(event, parent_id)
            if self._get(run_id).info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
        return run_id

    def describe(self, run_id: str, event: Started) -> None:
        with self._classify_failures(run_id):
            stored = self._get(run_id)
            self.tag(run_id, event.tags)
            if event.dataset:
                digest = event.dataset.fingerprint[:MAX_DIGEST_LENGTH]
                if digest not in {known.dataset.digest for known in stored.inputs.dataset_inputs}:
                    self._client.log_inputs(run_id, [_dataset_input(event)])
            missing = [
                Param(path, text) for path, text in event.params.items() if path not in stored.data.params
            ]
            for start in range(0, len(missing), PARAMS_A_REQUEST):
                self._client.log_batch(run_id, params=missing[start : start + PARAMS_A_REQUEST])

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        metrics = [
            Metric(name, value, point.time_ms, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        with self._classify_failures(run_id):
            self._client.log_batch(run_id, metrics=metrics)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        with self._classify_failures(run_id):
            self._client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    def store_files(self, run_id: str, path: Path, target: str) -> None:
        for file in (path, *path.rglob("*")):
            if not os.access(file, os.R_OK):
                raise EventRefusedError(f"{file} does not exist or cannot be read")
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with self._classify_failures(run_id), _any_upload_failure_is_for_now():
            send(run_id, str(path), target or None)

    def find_missing(self, run_id: str, params: Set[str], tags: Set[str], points: Sequence[Point]) -> Missing:
        with self._classify_failures(run_id):
            stored = self._get(run_id).data
            known = {
                (name, figure.step, figure.timestamp)
                for name in {name for point in points for name in point.values} & stored.metrics.keys()
                for figure in self._client.get_metric_history(run_id, name)
            }
        of_head = not (params <= stored.params.keys() and tags <= stored.tags.keys())
        return Missing(of_head, tuple(without_figures(points, known)))

    def end(self, run_id: str, event: Ended) -> None:
        with self._classify_failures(run_id):
            self._client.set_terminated(run_id, event.status, event.time_ms)
            if sqlite_path(self._uri) is None:  # the search reads the keys of all runs
                self._drop_twins(run_id)
            check_answer(self._get(run_id).info.status == event.status)

    def _get(self, run_id: str) -> Run:
        run = self._client.get_run(run_id)
        check_answer(run.info.run_id == run_id)
        return run

    def _find(self, key: str) -> str | None:
        """Find the run that was begun before a crash; a deleted one only if there is no other."""
        found = self._client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", ViewType.ALL)
        alive_first = sorted(found, key=lambda run: bool(run.info.lifecycle_stage != "active"))
        return str(alive_first[0].info.run_id) if found else None

    def _create(self, event: Started, parent_id: str | None) -> str:
        parent = {MLFLOW_PARENT_RUN_ID: parent_id} if parent_id else {}
        run: Run = self._client.create_run(
            self.experiment_id,
            start_time=event.time_ms,
            tags={**event.tags, **parent, KEY_TAG: event.key},
            run_name=event.run,
        )
        check_answer(bool(run.info.run_id))
        return str(run.info.run_id)

    def _drop_twins(self, run_id: str) -> None:
        """Delete other runs of the same key: a hung server creates one from a request that was sent again."""
        key = self._get(run_id).data.tags.get(KEY_TAG)
        for run in self._client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
            if run.info.run_id != run_id:
                self._client.delete_run(run.info.run_id)

    @contextmanager
    def _classify_failures(self, run_id: str | None) -> Iterator[None]:
        """Turn a failure into "not now" or "never"; `run_id` is the run, if it is known."""
        try:
            yield
        except MlflowException as error:
            if error.error_code not in NEVER:
                raise UnavailableError(innermost(error)) from None
            self._check_experiment()
            if run_id and self._is_gone(run_id):
                raise GoneError(f"run {run_id} was deleted in MLflow") from None
            raise EventRefusedError(innermost(error)) from None
        except STORE_FAILURES as error:
            # A proxy in front of the store may have a limit of its own on the size of a request.
            if getattr(getattr(error, "response", None), "status_code", None) == TOO_LARGE:
                raise EventRefusedError(innermost(error)) from None
            raise UnavailableError(innermost(error)) from None

    def _check_experiment(self) -> None:
        """Raises UnavailableError for a deleted experiment: it takes nothing, but it can be restored."""
        with _now_or_later():
            experiment = self._client.get_experiment(self.experiment_id)
        if experiment.lifecycle_stage != "active":
            raise UnavailableError(f"experiment {experiment.name} is deleted; restore it")

    def _is_gone(self, run_id: str) -> bool:
        try:
            with _now_or_later(but={"RESOURCE_DOES_NOT_EXIST"}):
                return bool(self._client.get_run(run_id).info.lifecycle_stage != "active")
        except MlflowException:
            return True


@contextmanager
def _now_or_later(but: Set[str] = frozenset()) -> Iterator[None]:
    """No failure in the block is final, except those with an error code in `but`."""
    try:
        yield
    except STORE_FAILURES as error:
        if isinstance(error, MlflowException) and error.error_code in but:
            raise
        raise UnavailableError(innermost(error)) from None


@contextmanager
def _any_upload_failure_is_for_now() -> Iterator[None]:
    """Artifacts outside the server have storage clients with errors of their own; none of them is final."""
    try:
        yield
    except STORE_FAILURES:
        raise
    except Exception as error:
        raise UnavailableError(innermost(error)) from None


def _dataset_input(event: Started) -> DatasetInput:
    data = event.dataset
    assert data
    shown = Dataset(
        name=data.name,
        digest=data.fingerprint[:MAX_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": data.source}),
        profile=json.dumps(data.profile),
    )
    return DatasetInput(shown, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
