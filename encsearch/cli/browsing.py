"""`encsearch ui`, `encsearch runs list|show|compare`, and `encsearch sync`."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from encsearch.cli.console import emit, json_option, say, table
from encsearch.text import (
    NOTHING,
    format_bytes,
    format_count,
    format_duration,
    format_metric,
    format_param,
    format_time,
)
from encsearch.tracking.browse.rows import STATUSES

if TYPE_CHECKING:
    from encsearch.tracking.browse.rows import RunRow
    from encsearch.tracking.browse.runs import Detail
    from encsearch.workflow.sync import Synced

LIMIT = 50
MAX_FILES = 5  # of a folder that `runs show` lists one by one
MACHINE_TAGS = ("mlflow.", "encsearch.record")  # for MLflow and for `sync`; --json has them
MAX_TEXT = 90  # characters of a value in a table for people
LISTED = ("run", "name", "kind", "status", "start_time", "seconds")
# Of a configuration, beside its mean.
OVER_SEEDS = ("over_seeds/lower_bound", "over_seeds/sd", "num_seeds")
WAIT_S = 60.0  # how long `sync` goes on with a store that fails


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--print", "only_print", is_flag=True, help="Print the command and the links; start nothing.")
@json_option
def ui(folder: Path | None, port: int, host: str, only_print: bool, as_json: bool) -> None:
    """Open MLflow on the records, with a page of links to the run or sweep in FOLDER.

    Serves a local store until Ctrl-C, and the page of links at the port after it. If MLFLOW_TRACKING_URI is a
    server it starts nothing and prints the links. --json only prints, as --print does.
    """
    if only_print or as_json:
        from encsearch.workflow.browse import find_links

        links = find_links(folder, host, port)
        emit(links, as_json, _format_links(links))
        return
    from encsearch.workflow.browse import show

    show(folder, host, port, say, lambda pages: emit(pages, False, _format_links(pages)))


@click.group()
def runs() -> None:
    """List, show and compare the runs in MLflow.

    RUN is a run's id, the start of one, its name, or the folder of a job.
    """


@runs.command("list")
@click.argument("filter_", metavar="[FILTER]", default="")
@click.option("--kind", help="training, sweep, trial, finalist, ... or all; default: the jobs.")
@click.option("--sweep", metavar="RUN", help="A sweep's trials and what was confirmed, the best first.")
@click.option("--status", type=click.Choice(STATUSES, case_sensitive=False))
@click.option("--sort", metavar="NAME[:asc]", help="Metric, param or attribute, the greatest first.")
@click.option("--columns", help="Names of metrics, params, tags or attributes, comma-separated.")
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True)
@json_option
def list_(
    filter_: str,
    kind: str | None,
    sweep: str | None,
    status: str | None,
    sort: str | None,
    columns: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the jobs of the experiment, the newest first.

    FILTER is in MLflow's language: "metrics.`best/mIoU` > 0.5 AND params.`optim.lr` = '0.02'".
    """
    from encsearch.tracking.browse.rows import Query, find_searched_paths, main_metric
    from encsearch.workflow.runs import list_runs

    listed = list_runs(Query(filter_, kind, None, status, sort, limit), sweep)
    if listed.is_cut:
        say(f"the first {format_count(limit, 'run')}; --limit shows more")
    parent, tables = listed.parent, listed.tables or ((),)
    searched = find_searched_paths(parent.params) if parent else ()

    def names(rows: Sequence["RunRow"]) -> list[str]:
        if columns:
            return columns.split(",")
        own = [f"best/{main_metric([parent] if parent else rows)}", "epoch"]
        if rows and rows[0].kind == "configuration":
            own = [own[0], *OVER_SEEDS]
        return [*LISTED, *own, *searched]

    text = "\n\n".join(_table(rows, names(rows)) for rows in tables)
    emit([_values(row) for rows in tables for row in rows], as_json, text)


@runs.command("show")
@click.argument("run")
@json_option
def show_(run: str, as_json: bool) -> None:
    """Show one run: what its recipe sets, its metrics, lineage, files and children."""
    from encsearch.tracking.browse.rows import find_changed_params, lineage_tags
    from encsearch.tracking.browse.runs import detail
    from encsearch.workflow.runs import find_run, open_tracking

    tracking = open_tracking(run)
    found = detail(tracking, find_run(tracking, run))
    chosen = find_changed_params(found.row.params, _defaults())
    values = {
        **_values(found.row),
        "set_params": chosen,
        "lineage": lineage_tags(found.row.tags),
        "datasets": dict(found.datasets),
        "artifacts": dict(found.artifacts),
        "children": [_values(child) for child in found.children],
    }
    emit(values, as_json, _format_run(found, chosen))


@runs.command("compare")
@click.argument("run", nargs=-1, required=True)
@json_option
def compare(run: tuple[str, ...], as_json: bool) -> None:
    """Show runs side by side: the params in which they differ, and all metrics, the best marked by *."""
    from encsearch.errors import UserError
    from encsearch.tracking.browse.rows import SHORT_ID, best_columns, find_varying_params, metric_names
    from encsearch.workflow.runs import find_run, open_tracking

    if len(run) < 2:
        raise UserError(f"`runs compare` takes two runs or more, but got {len(run)}; see `runs show`")
    tracking = open_tracking(*run)
    rows = [find_run(tracking, text) for text in run]
    params, metrics = find_varying_params(rows), metric_names(rows)
    values = {
        "runs": [{"run_id": row.run_id, "name": row.name, "status": row.status} for row in rows],
        "params": {name: [row.params.get(name) for row in rows] for name in params},
        "metrics": {name: [row.metrics.get(name) for row in rows] for name in metrics},
        "best": {name: [rows[i].run_id for i in best_columns(rows, name)] for name in metrics},
    }
    lines = [("run", *(row.run_id[:SHORT_ID] for row in rows))]
    lines += [(name, *(row.params.get(name, NOTHING) for row in rows)) for name in params]
    for name in metrics:
        best = best_columns(rows, name)
        figures = (format_metric(name, row.metrics.get(name)) for row in rows)
        lines.append((name, *(f"{figure}*" if i in best else figure for i, figure in enumerate(figures))))
    emit(
        values,
        as_json,
        table(["", *(row.name for row in rows)], lines),
    )


@click.command()
@click.argument(
    "folders",
    metavar="FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=WAIT_S,
    show_default=True,
    help="How long to go on with a store that fails.",
)
@click.option(
    "--to",
    metavar="tensorboard DIR",
    type=(click.Choice(["tensorboard"]), click.Path(path_type=Path, file_okay=False)),
    help="Write the whole record to DIR for TensorBoard instead; nothing is sent.",
)
@json_option
def sync(folders: tuple[Path, ...], wait_s: float, to: tuple[str, Path] | None, as_json: bool) -> None:
    """Send to MLflow what a killed job or an outage has left unsent.

    FOLDER is a job's folder, or a folder of jobs such as runs/. Runs whose process is dead are closed as
    KILLED. A running job is left alone. Exit code 1 if something could not be sent, 3 if MLflow cannot be
    used.

    With --to tensorboard DIR each training of a job, running or not, becomes a run below DIR/JOB, in place of
    what was written there before. MLflow is not asked.
    """
    if to:
        if click.get_current_context().get_parameter_source("wait_s") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--to sends nothing, so there is no store to wait for; leave out --wait")
        _write_tensorboard(folders, to[1], as_json)
        return
    from encsearch.workflow.sync import sync as run

    done = run(folders, wait_s, say)
    header = ["job", "sent", "refused", "closed", "unsent", ""]
    emit([asdict(job) for job in done], as_json, table(header, map(_row, done)))
    if any(job.reason and not job.is_alive for job in done):
        sys.exit(1)


def _write_tensorboard(folders: Sequence[Path], target: Path, as_json: bool) -> None:
    from encsearch.tracking.tensorboard import write_tensorboard

    done = write_tensorboard(folders, target)
    rows = [(job.folder, job.trainings, job.figures, job.pictures, job.reason or job.target) for job in done]
    emit(
        [asdict(job) for job in done],
        as_json,
        table(["job", "trainings", "figures", "pictures", ""], rows),
    )
    if any(job.reason for job in done):
        sys.exit(1)


def _defaults() -> dict[str, str]:
    """Return the params that MLflow holds of a recipe that sets nothing but its data."""
    from encsearch.config import Config, DataConfig, Dimension, SearchConfig, flatten

    search = SearchConfig(space={"optim.lr": Dimension(loguniform=(0.001, 0.1))})
    leaves = flatten(Config(data=DataConfig(store=""), search=search))
    leaves |= dict.fromkeys(("data.store", "search.space"))
    return {path: value if isinstance(value, str) else json.dumps(value) for path, value in leaves.items()}


def _values(row: "RunRow") -> dict[str, Any]:
    return asdict(row) | {"kind": row.kind, "parent_run_id": row.parent_run_id, "seconds": row.seconds}


def _table(rows: Sequence["RunRow"], names: Sequence[str]) -> str:
    from encsearch.tracking.browse.rows import column

    return table(names, [[_cell(name, column(row, name)) for name in names] for row in rows])


def _format_run(found: "Detail", chosen: dict[str, str]) -> str:
    from encsearch.tracking.browse.rows import lineage_tags, main_metric, metric_names

    row = found.row
    head: dict[str, Any] = {"name": row.name, "run": row.run_id, "kind": row.kind, "status": row.status}
    took = None if row.seconds is None else format_duration(row.seconds)
    head |= {"started": format_time(row.start_ms / 1000), "took": took, "part of": row.parent_run_id}
    lineage = lineage_tags(row.tags)
    rest = {
        name: shorten(value, MAX_TEXT)
        for name, value in row.tags.items()
        if name not in lineage and not name.startswith(MACHINE_TAGS)
    }
    best = f"best/{main_metric([row])}"
    parts = [
        table(["run", ""], head.items()),
        table(["param that is not the default", ""], [(k, shorten(v, MAX_TEXT)) for k, v in chosen.items()]),
        table(["metric", ""], [(n, format_metric(n, row.metrics[n])) for n in metric_names([row])]),
        table(["lineage", ""], [*found.datasets.items(), *lineage.items()]),
        table(["tag", ""], rest.items()),
        table(["artifact", "size"], _fold(found.artifacts)),
    ]
    if found.children:
        parts.append(_table(found.children, ["run", "name", "kind", "status", best]))
    return "\n\n".join(parts)


def _fold(artifacts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Path and size of each file; those of a folder with many are one row."""
    folders: dict[str, list[int]] = {}
    for path, size in artifacts.items():
        folders.setdefault(path.rpartition("/")[0], []).append(size)
    many = {folder: sizes for folder, sizes in folders.items() if folder and len(sizes) > MAX_FILES}
    rows = [
        (path, format_bytes(size)) for path, size in artifacts.items() if path.rpartition("/")[0] not in many
    ]
    rows += [
        (f"{folder}/ ({format_count(len(sizes), 'file')})", format_bytes(sum(sizes)))
        for folder, sizes in many.items()
    ]
    return sorted(rows)


def _cell(name: str, value: Any) -> Any:
    """Round long decimals; ids, names, counts and versions stay, whatever digits they have."""
    if name in ("start_time", "end_time") and value is not None:
        return format_time(value / 1000)
    if isinstance(value, float):
        return format_metric(name.removeprefix("metrics."), value)
    is_decimal = isinstance(value, str) and re.fullmatch(r"-?\d+\.\d{4,}(e[-+]\d+)?", value)
    return format_param(float(value)) if is_decimal else value


def _format_links(links: dict[str, str]) -> str:
    return "\n".join(f"{name}: {link}" for name, link in links.items())


def _row(job: "Synced") -> list[object]:
    return [job.folder, job.sent, job.refused, len(job.reaped), job.unsent, job.reason]
