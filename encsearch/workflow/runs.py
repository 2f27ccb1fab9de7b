"""`encsearch runs`: which store has them, what a person calls a run, and the runs of a sweep in one table."""

from dataclasses import dataclass
from pathlib import Path

from encsearch.errors import UserError
from encsearch.redaction import without_user
from encsearch.tracking.browse.rows import CONFIGURATION_TAG, Query, RunRow, main_metric
from encsearch.tracking.browse.runs import find, get, open_experiment, search
from encsearch.tracking.mlflow import Tracking
from encsearch.tracking.uris import existing_store
from encsearch.workflow.browse import find_job, find_store

# What a sweep confirmed: means over seeds, and the trainings that have none beside them.
CONFIRMED = ("configuration", "finalist", "baseline")


@dataclass(frozen=True)
class Listed:
    """Runs in tables, none of them empty; `parent` is the sweep, `is_cut` says that a limit left some out."""

    tables: tuple[tuple[RunRow, ...], ...]
    parent: RunRow | None
    is_cut: bool


def list_runs(query: Query, sweep: str | None = None) -> Listed:
    """List the jobs of the experiment, the newest first, or the trials of a sweep and what it confirmed.

    `sweep` is a run, see `find_run`, and takes the place of `query.parent`; its best runs come first. Raises
    UserError for an unknown run or a bad filter, PreflightError for a store that cannot be used.
    """
    tracking = open_tracking(*([sweep] if sweep else []))
    parent = find_run(tracking, sweep) if sweep else None
    kinds: tuple[str | None, ...] = (query.kind,)
    sort = query.sort
    if parent:
        if not query.kind:
            kinds = (*CONFIRMED, "trial") if parent.kind == "sweep" else ("all",)
        sort = sort or f"best/{main_metric([parent])}"
    limit = query.limit and query.limit + 1
    parent_id = parent.run_id if parent else None
    found = [
        search(tracking, Query(query.filter, kind, parent_id, query.status, sort, limit)) for kind in kinds
    ]
    is_cut = query.limit is not None and max(map(len, found)) > query.limit
    # With a sweep, a seed stands for itself only where no run has the means of its configuration.
    meant = {row.tags.get(CONFIGURATION_TAG) for row in found[0]} if len(kinds) > 1 else set()
    found[1:] = [
        [row for row in rows if row.tags.get(CONFIGURATION_TAG, "") not in meant] for rows in found[1:]
    ]
    return Listed(tuple(tuple(rows[: query.limit]) for rows in found if rows), parent, is_cut)


def open_tracking(*named: str) -> Tracking:
    """Open the environment's store, or the store of the first job's folder among the named."""
    job = next((find_job(Path(text)) for text in named if Path(text).is_dir()), None)
    return open_experiment(existing_store(find_store(job)), job.experiment_id if job else None)


def find_run(tracking: Tracking, text: str) -> RunRow:
    """Find a run by its id, the start of one, its name, or the folder of a job. Raises UserError."""
    if not Path(text).is_dir():
        return find(tracking, text)
    job = find_job(Path(text))
    if (uri := find_store(job)) != tracking.uri:
        raise UserError(
            f"{text}: recorded in {without_user(uri)}, the first one in {without_user(tracking.uri)}; one "
            "command reads one store"
        )
    return get(tracking, job.run_id)
