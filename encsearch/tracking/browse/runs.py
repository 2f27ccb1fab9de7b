"""Read runs back from MLflow: search them, find one by what people call it, read it in full."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from encsearch.errors import UserError
from encsearch.redaction import without_secrets
from encsearch.tracking.browse.rows import Query, RunRow, filter_text, order_by, pick, quote_value, sort_rows
from encsearch.tracking.browse.views import View, plan_tags
from encsearch.tracking.mlflow import Tracking, check_answer, innermost, translate_failures

RUNS_A_PAGE = 1000
MAX_NAMED = 10  # experiments that an error lists


@dataclass(frozen=True)
class Detail:
    """All that the store knows of a run; `datasets` by name with digest, `artifacts` path -> bytes."""

    row: RunRow
    datasets: Mapping[str, str]
    artifacts: Mapping[str, int]
    children: tuple[RunRow, ...]


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str


def open_experiment(uri: str, experiment_id: str | None = None) -> Tracking:
    """Open an experiment without creating it: by default MLFLOW_EXPERIMENT_NAME, else "encsearch".

    Raises UserError, which lists those that exist, for an unknown one, and PreflightError.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "encsearch"
    with translate_failures(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if experiment_id:
            return Tracking(client, uri, experiment_id)
        found = client.get_experiment_by_name(name)
        check_answer(found is None or bool(found.experiment_id))
        known = [one.name for one in client.search_experiments(max_results=MAX_NAMED)] if not found else []
    if found is None:
        raise UserError(
            f"MLflow at {without_secrets(uri)} has no experiment {name};"
            f" set MLFLOW_EXPERIMENT_NAME to one that it has: {', '.join(known)}"
        )
    return Tracking(client, uri, found.experiment_id)


def search(tracking: Tracking, query: Query) -> list[RunRow]:
    """Read the runs of the experiment that match the query. Raises UserError for a bad filter."""
    order = order_by(query.sort)
    if order is None:
        assert query.sort, "MLflow orders by time"
        everything = search(tracking, replace(query, sort=None, limit=None))
        return sort_rows(everything, query.sort)[: query.limit]
    found: list[RunRow] = []
    token, text = None, filter_text(query)
    while query.limit is None or len(found) < query.limit:
        size = RUNS_A_PAGE if query.limit is None else min(RUNS_A_PAGE, query.limit - len(found))
        page = _page(tracking, text, order, size, token)
        found += [_row(run) for run in page]
        token = page.token
        if not token:
            break
    return found


def find(tracking: Tracking, text: str) -> RunRow:
    """Find a run by its id, the start of its id, or its name. Raises UserError for no run or several."""
    name = search(tracking, Query(f"attributes.run_name = {quote_value(text)}", kind="all"))
    is_id = text.isalnum() and text == text.lower()
    ids = search(tracking, Query(f"attributes.run_id LIKE '{text}%'", kind="all")) if is_id else []
    return pick(text, list({row.run_id: row for row in [*ids, *name]}.values()))


def get(tracking: Tracking, run_id: str) -> RunRow:
    """Read a run by its id. Raises UserError for a run that the experiment lacks."""
    return pick(run_id, search(tracking, Query(f"attributes.run_id = {quote_value(run_id)}", kind="all")))


def detail(tracking: Tracking, row: RunRow) -> Detail:
    with translate_failures(tracking.uri):
        inputs = tracking.client.get_run(row.run_id).inputs.dataset_inputs
        artifacts = _artifacts(tracking, row.run_id)
    datasets = {one.dataset.name: one.dataset.digest for one in inputs}
    return Detail(row, datasets, artifacts, tuple(search(tracking, Query(parent=row.run_id))))


def find_registered(tracking: Tracking, run_id: str) -> Registered | None:
    """Find the newest model version that was registered from a run."""
    with translate_failures(tracking.uri):
        found = tracking.client.search_model_versions(f"run_id = '{run_id}'")
    newest = max(found, key=lambda version: version.creation_timestamp, default=None)
    return Registered(newest.name, str(newest.version)) if newest else None


def has_model(tracking: Tracking, name: str) -> bool:
    with translate_failures(tracking.uri):
        return bool(tracking.client.search_registered_models(f"name = {quote_value(name)}", max_results=1))


def save_view(tracking: Tracking, view: View, now_ms: int) -> bool:
    """Store a view in the experiment unless it is there; return False for a person who may only read."""
    client, experiment = tracking.client, tracking.experiment_id
    with translate_failures(tracking.uri):
        tags = plan_tags(view, client.get_experiment(experiment).tags, now_ms)
        try:
            for tag, value in tags.items():
                client.set_experiment_tag(experiment, tag, value)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise
            return False
    return True


def _page(tracking: Tracking, text: str, order: list[str], size: int, token: str | None) -> Any:
    with translate_failures(tracking.uri):
        try:
            return tracking.client.search_runs(
                [tracking.experiment_id], text, max_results=size, order_by=order, page_token=token
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(
                f"MLflow does not take this filter or order: {innermost(error)};"
                " an example is: metrics.`best/mIoU` > 0.5 AND params.`optim.lr` = '0.02'"
            ) from None


def _artifacts(tracking: Tracking, run_id: str, folder: str | None = None) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in tracking.client.list_artifacts(run_id, folder):
        found |= _artifacts(tracking, run_id, file.path) if file.is_dir else {file.path: file.file_size}
    return found


def _row(run: Run) -> RunRow:
    info, data = run.info, run.data
    return RunRow(
        info.run_id,
        info.run_name or info.run_id,
        info.status,
        info.start_time,
        info.end_time,
        dict(data.params),
        dict(data.metrics),
        dict(data.tags),
    )
