"""`encsearch ui`: MLflow's server over a local store, and the pages that show a job.

The pages show the job's runs, its winner, its model and its promotions.
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
    CONFIGURATION_TAG,
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
from encsearch.tracking.browse.ui_server import run_index, run_server
from encsearch.tracking.browse.views import View
from encsearch.tracking.mlflow import Tracking
from encsearch.tracking.outbox.forward import read_sent
from encsearch.tracking.uris import existing_store, resolve_uri

COMPARED = 10  # best runs of a group that one page compares
MAX_PARAMS = 8  # columns of a view
JOB_PARAMS = ("data.store", "model.backbone", "model.num_codewords", "optim.lr")

Pages = dict[str, str]


@dataclass(frozen=True)
class RecordedJob:
    """A job's runs in MLflow: its own run, and the one with its best model, None if there is none yet."""

    uri: str
    experiment_id: str
    run_id: str
    best_run_id: str | None
    has_children: bool
    metric: str | None


def find_links(folder: Path | None, host: str = LOOPBACK, port: int = PORT) -> dict[str, str]:
    """Find links by name: the command for a local store, and pages known without asking MLflow."""
    job = find_job(folder) if folder else None
    uri = find_store(job)
    command, base = ui_command(uri, port, host), ui_base(uri, port, host)
    links = {"open MLflow": command or base}
    if job is None:
        return links | {"models": registry_link(base)}
    if job.has_children and job.metric:
        links["trials"] = children_link(base, job.experiment_id, job.run_id, job.metric)
    best = job.best_run_id or job.run_id
    return links | {"best run" if job.best_run_id else "run": run_link(base, job.experiment_id, best)}


def find_store(job: RecordedJob | None) -> str:
    """Find the tracking URI in force: the environment's, or else the one that the job was recorded in."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or (job.uri if job else None))


def find_job(folder: Path) -> RecordedJob:
    """Find the job in a folder, finished or not.

    Raises UserError if there is none, or if MLflow has no run of it yet.
    """
    sent = read_sent(folder)
    ids = sent.runs
    if not (folder / SUMMARY_FILE).is_file() and ids:
        # A job starts its own run first, and JSON keeps the order.
        return RecordedJob(sent.uri, sent.experiment_id, next(iter(ids.values())), None, len(ids) > 1, None)
    summary = read_summary(folder)
    best = summary.run_id or ids.get(summary.run)
    own = (summary.parent_run_id or ids.get(summary.parent_run)) if summary.parent_run else best
    if not own:
        raise UserError(f"{folder}: this job is not in MLflow yet; send it with `encsearch sync {folder}`")
    has_children = summary.parent_run is not None
    return RecordedJob(summary.tracking_uri, summary.experiment_id, own, best, has_children, summary.metric)


@dataclass(frozen=True)
class Group:
    """Runs of a job that form one table: its name, and the condition by which MLflow finds them."""

    name: str
    condition: str
    tags: tuple[str, ...]
    rows: tuple[RunRow, ...]
    grouped_by: str | None = None


def find_pages(tracking: Tracking, base: str, job: RecordedJob | None) -> Pages:
    """Find the addresses by name, and store the views of a job's groups of runs.

    Without a job, find the pages to start from.
    """
    if job is None:
        return {"jobs": _jobs_page(tracking, base), "models": registry_link(base)}
    experiment = tracking.experiment_id
    run = get(tracking, job.run_id)
    found: Pages = {run.kind or "run": run_link(base, experiment, run.run_id)}
    if job.best_run_id and job.best_run_id != run.run_id:
        found["winner"] = run_link(base, experiment, job.best_run_id)
    found |= _find_model_pages(tracking, base, job.best_run_id or run.run_id)
    children = search(tracking, Query(parent=run.run_id))
    params = find_searched_paths(run.params) or find_varying_params(children)
    for group in make_groups(run, children):
        found |= _find_group_pages(tracking, base, run, group, params[:MAX_PARAMS])
    return found


def make_groups(run: RunRow, children: Sequence[RunRow]) -> list[Group]:
    """Group a job's runs into tables without empty ones.

    A sweep has its trials, its finalists by seed, and if they have several the configurations' means.
    """
    own = children_of(run.run_id)
    if run.kind != "sweep":
        found = [Group("trainings", own, (KIND_TAG,), tuple(children))]
    else:
        trials = tuple(child for child in children if child.kind == "trial")
        means = tuple(child for child in children if child.kind == "configuration")
        others = tuple(child for child in children if child.kind not in ("trial", "configuration"))
        is_seed = f"tags.`{KIND_TAG}` != 'trial' AND tags.`{KIND_TAG}` != 'configuration'"
        is_mean = f"tags.`{KIND_TAG}` = 'configuration'"
        found = [
            Group("trials", f"{own} AND tags.`{KIND_TAG}` = 'trial'", ("encsearch.state",), trials),
            Group(
                "finalists",
                f"{own} AND {is_seed}",
                (KIND_TAG,),
                others,
                grouped_by=CONFIGURATION_TAG if means else None,
            ),
            Group("configurations", f"{own} AND {is_mean}", ("encsearch.seeds",), means),
        ]
    return [group for group in found if group.rows]


def show(
    folder: Path | None, host: str, port: int, say: Callable[[str], None], show_pages: Callable[[Pages], None]
) -> None:
    """Serve a local store until a signal, and a page of links once it answers; with a server, show the links.

    Raises UserError for a folder without a job, PreflightError for a store or a port that cannot be used.
    """
    job = find_job(folder) if folder else None
    uri, experiment = existing_store(find_store(job)), job.experiment_id if job else None
    if is_server(uri):
        show_pages(find_pages(open_experiment(uri, experiment), ui_base(uri), job))
        return
    if not is_loopback(host):
        say(
            f"warning: --host {host}: anyone who reaches this machine can read and change the records: this "
            "server has no authentication, the one in cluster/mlflow has"
        )
    with run_server(uri, host, port) as server:
        say(f"starting MLflow at {server.base}")
        # In parallel with the server's start, which takes as long.
        tracking = open_experiment(uri, experiment)
        server.wait_until_up()
        title = folder.absolute().name if folder else "encsearch"
        with run_index(title, find_pages(tracking, server.base, job), host, port + 1) as address:
            show_pages({"pages": address})
            say("serving until Ctrl-C")
            server.wait_until_over()


def _jobs_page(tracking: Tracking, base: str) -> str:
    """The page of the experiment's jobs, without their child runs."""
    jobs = Query(limit=1)
    metric = main_metric(search(tracking, jobs))
    view = View(
        "encsearch-jobs", "jobs", filter_text(jobs), metric, JOB_PARAMS, (KIND_TAG,), newest_first=True
    )
    return _table(tracking, base, view)


def _find_group_pages(
    tracking: Tracking, base: str, run: RunRow, group: Group, params: Sequence[str]
) -> Pages:
    """Find the pages of a group: its table, its charts, and its best runs compared."""
    metric = main_metric([run])
    title = f"{group.name} of {run.name}"
    view = View(
        f"{run.run_id}-{group.name}",
        title,
        group.condition,
        metric,
        tuple(params),
        group.tags,
        grouped_by=group.grouped_by,
    )
    table = _table(tracking, base, view)
    best = [row.run_id for row in rank_by(group.rows, f"best/{metric}")[:COMPARED]]
    compared = {f"{group.name}, the best compared": compare_link(base, tracking.experiment_id, best)}
    return {group.name: table, f"{group.name}, charts": table + CHARTS, **(compared if len(best) > 1 else {})}


def _table(tracking: Tracking, base: str, view: View) -> str:
    """Store the view and return its link, or the plain table's for a user who may not store one."""
    if save_view(tracking, view, int(time.time() * 1000)):
        return view_link(base, tracking.experiment_id, view.key)
    return table_link(base, tracking.experiment_id, view.filter, view.metric)


def _find_model_pages(tracking: Tracking, base: str, run_id: str) -> Pages:
    version = find_registered(tracking, run_id)
    if version is None:
        return {}
    found = {"model": model_link(base, version.name, version.version)}
    decisions = version.name + DECISIONS_SUFFIX
    return found | ({"promotions": versions_link(base, decisions)} if has_model(tracking, decisions) else {})
