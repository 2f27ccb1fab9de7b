"""The connection to MLflow, and its failures as errors of one line."""

import os
import random
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from encsearch.errors import MAX_LENGTH, PreflightError, UserError, one_line
from encsearch.redaction import without_secrets
from encsearch.tracking.uris import SQLITE, resolve_uri, sqlite_path

PATIENCE_S = 60.0
# What SQLite's planner is told of MLflow's indexes: rows in all, then rows that have the same first column,
# the same first two, ... Without it, a run's values of a metric are looked for among all runs' values of it.
# Written and not measured by ANALYZE, since what is measured while there are few runs would stay.
_STATISTICS = (
    ("metrics", "sqlite_autoindex_metrics_1", "1000000 10000 10 10 1 1 1"),
    ("metrics", "index_metrics_run_uuid_key_step", "1000000 1000 10 1"),
    ("metrics", "index_metrics_run_uuid", "1000000 1000"),
    ("latest_metrics", "sqlite_autoindex_latest_metrics_1", "100000 1000 1"),
    ("latest_metrics", "index_latest_metrics_run_uuid", "100000 100"),
)
MAX_PAUSE_S = 1.0
# MLflow's names for a locked database, a dead connection, a server that restarts, too many requests.
TEMPORARY = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
STORE_FAILURES = (MlflowException, SQLAlchemyError, OSError)  # requests' errors are OSErrors

T = TypeVar("T")


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
    with translate_failures(uri):
        _set_up(uri)
        _add_statistics(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(name) or _create_experiment(client, uri, name)
        check_answer(bool(found.experiment_id))
    if found.lifecycle_stage != "active":
        raise PreflightError(
            f"experiment {name} in MLflow at {without_secrets(uri)} is deleted; restore it or name another"
        )
    return Tracking(client, uri, found.experiment_id)


def check_run(tracking: Tracking, run_id: str) -> None:
    """Raises UserError when the store does not have the run."""
    with translate_failures(tracking.uri):
        try:
            tracking.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"MLflow at {without_secrets(tracking.uri)} has no run {run_id}; "
                "set MLFLOW_TRACKING_URI to the store that it was recorded in"
            ) from None


def check_answer(is_whole: bool) -> None:
    """Raise MlflowException for an answer that lacks what MLflow's always has, as a proxy's `{}` does."""
    if not is_whole:
        raise MlflowException("it answers, but not as MLflow does; something between may answer in its place")


@contextmanager
def translate_failures(uri: str) -> Iterator[None]:
    """Turn a failure of the store into a PreflightError of one line, without secrets."""
    try:
        yield
    except (*STORE_FAILURES, ImportError) as error:
        way_out = "MLFLOW_TRACKING_URI and that the server runs"
        if "error code 401" in str(error):
            way_out = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise PreflightError(
            f"MLflow at {without_secrets(uri)} cannot be used: {innermost(error)}; check {way_out}"
        ) from None


def call_with_retries(uri: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; repeat it for a minute if it fails for a while only.

    Raises PreflightError after that minute, and at once for any other failure. Under contention SQLite
    reports a locked database, and MLflow gives up on a new version after trying three numbers.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    pause_s = 0.02
    with translate_failures(uri):
        while True:
            try:
                return call()
            except (MlflowException, OperationalError, OSError) as error:
                if not _is_temporary(error) or time.monotonic() > give_up_s:
                    raise
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


def innermost(error: Exception) -> str:
    """Return the error's innermost message, which gives the cause, short and without secrets."""
    text = one_line(error, None)
    # Of a database, what SQLAlchemy has between the kind of error and the statement.
    cause = re.search(
        r"\[Errno[^\]]*\] [^'\")]*|timed? ?out|database is locked|(?<=Error\) )[^\[]+(?= \[SQL)", text
    )
    return cause.group().strip(" :") if cause else text[:MAX_LENGTH]


def _is_temporary(error: Exception) -> bool:
    """Whether a repeated call may succeed.

    An IntegrityError is a race for one row that another process has won: the next try sees that row.
    """
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY or "IntegrityError" in str(error)
    return True


def _set_up(uri: str) -> None:
    """Create a new SQLite store under another name and then link it, so that it is whole or absent.

    MLflow 3.17 never again opens a database whose set-up was killed half-way.
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


def _add_statistics(uri: str) -> None:
    """Give the planner of an SQLite store statistics, unless it has some of metrics.

    A store that is locked or that cannot be written stays as it is.
    """
    database = sqlite_path(uri)
    if database is None:
        return
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=1)) as connection,
        connection,
    ):
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchall():
            connection.execute("ANALYZE alembic_version")  # makes the table
        if not connection.execute("SELECT 1 FROM sqlite_stat1 WHERE tbl = 'metrics'").fetchall():
            connection.executemany("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", _STATISTICS)


def _create_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    database = sqlite_path(uri)
    artifacts = (database.parent / "mlruns" / name).as_uri() if database else None
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name)  # another process was first
