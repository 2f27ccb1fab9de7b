"""Where a job's records can be looked at."""

import os
from dataclasses import dataclass
from pathlib import Path

from encsearch.errors import UserError
from encsearch.tracking.links import (
    LOOPBACK,
    PORT,
    children_link,
    registry_link,
    run_link,
    ui_base,
    ui_command,
)
from encsearch.tracking.sending import read_sent
from encsearch.tracking.uris import resolve_uri
from encsearch.workflow.folder import SUMMARY_FILE, read_summary


@dataclass(frozen=True)
class Job:
    """A job's runs in MLflow: its own, and the one with its best model, None while there is none."""

    uri: str
    experiment_id: str
    run_id: str
    best_run_id: str | None
    has_children: bool
    metric: str | None


def links_of(folder: Path | None, host: str = LOOPBACK, port: int = PORT) -> dict[str, str]:
    """By name: the command that opens a local store, and pages that can be named without asking MLflow."""
    job = job_of(folder) if folder else None
    uri = store_of(job)
    command, base = ui_command(uri, port, host), ui_base(uri, port, host)
    links = {"open MLflow": command or base}
    if job is None:
        return links | {"models": registry_link(base)}
    if job.has_children and job.metric:
        links["trials"] = children_link(base, job.experiment_id, job.run_id, job.metric)
    best = job.best_run_id or job.run_id
    return links | {"best run" if job.best_run_id else "run": run_link(base, job.experiment_id, best)}


def store_of(job: Job | None) -> str:
    """The tracking URI that holds: the environment's, else the one that the job was recorded in."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or (job.uri if job else None))


def job_of(folder: Path) -> Job:
    """The job in a folder, finished or not.

    Raises UserError where there is none, or MLflow has nothing of it yet.
    """
    sent = read_sent(folder)
    ids = sent.runs
    if not (folder / SUMMARY_FILE).is_file() and ids:
        # A job's own run is the first that it begins, and JSON keeps the order.
        return Job(sent.uri, sent.experiment_id, next(iter(ids.values())), None, len(ids) > 1, None)
    summary = read_summary(folder)
    best = summary.run_id or ids.get(summary.run)
    own = (summary.parent_run_id or ids.get(summary.parent_run)) if summary.parent_run else best
    if not own:
        raise UserError(f"{folder}: MLflow has nothing of this job yet; `encsearch sync {folder}` sends it")
    has_children = summary.parent_run is not None
    return Job(summary.tracking_uri, summary.experiment_id, own, best, has_children, summary.metric)
