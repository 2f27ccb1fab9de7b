"""The pages of MLflow that show a job: what it consists of, its winner, its model, its promotions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from encsearch.config import DECISIONS_SUFFIX
from encsearch.tracking.links import (
    CHARTS,
    children_of,
    compare_link,
    model_link,
    registry_link,
    run_link,
    table_link,
    versions_link,
    view_link,
)
from encsearch.tracking.mlflow import Tracking
from encsearch.tracking.rows import (
    KIND_TAG,
    Query,
    Row,
    filter_text,
    main_metric,
    ranked_by,
    searched,
    varying,
)
from encsearch.tracking.runs import get, has_model, registered, save_view, search
from encsearch.tracking.views import View
from encsearch.workflow.links import Job

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
    rows: tuple[Row, ...]


def pages_of(tracking: Tracking, base: str, job: Job | None) -> Pages:
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
    params = searched(run.params) or varying(children)
    for group in groups(run, children):
        found |= _pages_of_group(tracking, base, run, group, params[:MAX_PARAMS])
    return found


def groups(run: Row, children: Sequence[Row]) -> list[Group]:
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


def _pages_of_group(tracking: Tracking, base: str, run: Row, group: Group, params: Sequence[str]) -> Pages:
    """The table, its charts, and the best ones compared."""
    metric = main_metric([run])
    title = f"{group.name} of {run.name}"
    view = View(f"{run.run_id}-{group.name}", title, group.condition, metric, tuple(params), group.tags)
    table = _table(tracking, base, view)
    best = [row.run_id for row in ranked_by(group.rows, f"best/{metric}")[:COMPARED]]
    compared = {f"{group.name}, the best compared": compare_link(base, tracking.experiment_id, best)}
    return {group.name: table, f"{group.name}, charts": table + CHARTS, **(compared if len(best) > 1 else {})}


def _table(tracking: Tracking, base: str, view: View) -> str:
    """The view, stored; for a person who may not store one the plain table."""
    if save_view(tracking, view, int(time.time() * 1000)):
        return view_link(base, tracking.experiment_id, view.key)
    return table_link(base, tracking.experiment_id, view.filter, view.metric)


def _pages_of_model(tracking: Tracking, base: str, run_id: str) -> Pages:
    version = registered(tracking, run_id)
    if version is None:
        return {}
    found = {"model": model_link(base, version.name, version.version)}
    decisions = version.name + DECISIONS_SUFFIX
    return found | ({"promotions": versions_link(base, decisions)} if has_model(tracking, decisions) else {})
