"""`encsearch ui`: MLflow's server over a local store, and the pages that show a job.

The pages are those of what the job consists of, its winner, its model and its promotions.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.config import DECISIONS_SUFFIX
from encsearch.errors import UserError
from encsearch.reports import SUMMARY_FILE, read_summary
from encsearch.tracking.browse.links import (
    CHARTS,
    LOOPBACK,
    PORT,
    children_link,
    children_of,
    compare_link,
    is_loopback,
    is_server,
    model_link,
    registry_link,
    run_link,
    table_link,
    ui_base,
    ui_command,
    versions_link,
    view_link,
)
from encsearch.tracking.browse.rows import (
    KIND_TAG,
    Query,
    RunRow,
    filter_text,
    find_searched_paths,
    find_varying_params,
    main_metric,
    rank_by,
)
from encsearch.tracking.browse.runs import find_registered, get, has_model, open_experiment, save_view, search
from encsearch.tracking.browse.ui_server import run_server
from encsearch.tracking.browse.views import View
from encsearch.tracking.mlflow import Tracking
from encsearch.tracking.outbox.forward import read_sent
from encsearch.tracking.uris import existing_store, resolve_uri


@dataclass(frozen=True)
class RecordedJob:
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


def store_of(job: RecordedJob | None) -> str:
    """The tracking URI that holds: the environment's, else the one that the job was recorded in."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or (job.uri if job else None))


def job_of(folder: Path) -> RecordedJob:
    """The job in a folder, finished or not.

    Raises UserError where there is none, or MLflow has nothing of it yet.
    """
    sent = read_sent(folder)
    ids = sent.runs
    if not (folder / SUMMARY_FILE).is_file() and ids:
        # A job's own run is the first that it begins, and JSON keeps the order.
        return RecordedJob(sent.uri, sent.experiment_id, next(iter(ids.values())), None, len(ids) > 1, None)
    summary = read_summary(folder)
    best = summary.run_id or ids.get(summary.run)
    own = (summary.parent_run_id or ids.get(summary.parent_run)) if summary.parent_run else best
    if not own:
        raise UserError(f"{folder}: MLflow has nothing of this job yet; `encsearch sync {folder}` sends it")
    has_children = summary.parent_run is not None
    return RecordedJob(summary.tracking_uri, summary.experiment_id, own, best, has_children, summary.metric)


COMPARED = 10  # of the best of a group
MAX_PARAMS = 8  # columns of a view
JOB_PARAMS = ("data.store", "model.backbone", "model.num_codewords", "optim.lr")

Pages = dict[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of a job that make one table: its name, and how MLflow finds them."""

    name: str
    condition: str
    tags: tuple[str, ...]
    rows: tuple[RunRow, ...]


def pages_of(tracking: Tracking, base: str, job: RecordedJob | None) -> Pages:
    """The addresses by name; stores the views of a job that consists of runs.

    Without a job they are those to start from.
    """
    if job is None:
        return {"jobs": _jobs_page(tracking, base), "models": registry_link(base)}
    experiment = tracking.experiment_id
    run = get(tracking, job.run_id)
    found: Pages = {run.kind or "run": run_link(base, experiment, run.run_id)}
    if job.best_run_id and job.best_run_id != run.run_id:
        found["winner"] = run_link(base, experiment, job.best_run_id)
    found |= _pages_of_model(tracking, base, job.best_run_id or run.run_id)
    children = search(tracking, Query(parent=run.run_id))
    params = find_searched_paths(run.params) or find_varying_params(children)
    for group in groups(run, children):
        found |= _pages_of_group(tracking, base, run, group, params[:MAX_PARAMS])
    return found


def groups(run: RunRow, children: Sequence[RunRow]) -> list[Group]:
    """What a job consists of, as tables: of a sweep the trials and those that confirm them. None is empty."""
    own = children_of(run.run_id)
    if run.kind != "sweep":
        found = [Group("trainings", own, (KIND_TAG,), tuple(children))]
    else:
        trials = tuple(child for child in children if child.kind == "trial")
        others = tuple(child for child in children if child.kind != "trial")
        found = [
            Group("trials", f"{own} AND tags.`{KIND_TAG}` = 'trial'", ("encsearch.state",), trials),
            Group("finalists", f"{own} AND tags.`{KIND_TAG}` != 'trial'", (KIND_TAG,), others),
        ]
    return [group for group in found if group.rows]


def _jobs_page(tracking: Tracking, base: str) -> str:
    """The experiment's jobs, without what they consist of."""
    jobs = Query(limit=1)
    metric = main_metric(search(tracking, jobs))
    view = View(
        "encsearch-jobs", "jobs", filter_text(jobs), metric, JOB_PARAMS, (KIND_TAG,), newest_first=True
    )
    return _table(tracking, base, view)


def _pages_of_group(tracking: Tracking, base: str, run: RunRow, group: Group, params: Sequence[str]) -> Pages:
    """The table, its charts, and the best ones compared."""
    metric = main_metric([run])
    title = f"{group.name} of {run.name}"
    view = View(f"{run.run_id}-{group.name}", title, group.condition, metric, tuple(params), group.tags)
    table = _table(tracking, base, view)
    best = [row.run_id for row in rank_by(group.rows, f"best/{metric}")[:COMPARED]]
    compared = {f"{group.name}, the best compared": compare_link(base, tracking.experiment_id, best)}
    return {group.name: table, f"{group.name}, charts": table + CHARTS, **(compared if len(best) > 1 else {})}


def _table(tracking: Tracking, base: str, view: View) -> str:
    """The view, stored; for a person who may not store one the plain table."""
    if save_view(tracking, view, int(time.time() * 1000)):
        return view_link(base, tracking.experiment_id, view.key)
    return table_link(base, tracking.experiment_id, view.filter, view.metric)


def _pages_of_model(tracking: Tracking, base: str, run_id: str) -> Pages:
    version = find_registered(tracking, run_id)
    if version is None:
        return {}
    found = {"model": model_link(base, version.name, version.version)}
    decisions = version.name + DECISIONS_SUFFIX
    return found | ({"promotions": versions_link(base, decisions)} if has_model(tracking, decisions) else {})


def show(
    folder: Path | None, host: str, port: int, say: Callable[[str], None], tell: Callable[[Pages], None]
) -> None:
    """Serve the store until a signal ends it, and `tell` the pages once it answers; of a server tell them.

    Raises UserError for a folder without a job, PreflightError for a store or a port that cannot be used.
    """
    job = job_of(folder) if folder else None
    uri, experiment = existing_store(store_of(job)), job.experiment_id if job else None
    if is_server(uri):
        tell(pages_of(open_experiment(uri, experiment), ui_base(uri), job))
        return
    if not is_loopback(host):
        say(
            f"warning: --host {host}: who reaches this machine can read and change the records: this server "
            "has no authentication, the one that cluster/mlflow defines has"
        )
    with run_server(uri, host, port) as server:
        say(f"starting MLflow at {server.base}")
        tracking = open_experiment(uri, experiment)  # beside the server's start, which takes as long
        server.wait_until_up()
        tell(pages_of(tracking, server.base, job))
        say("serving until Ctrl-C")
        server.wait_until_over()
