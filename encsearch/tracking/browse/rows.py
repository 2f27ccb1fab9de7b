"""Runs as rows: queries in MLflow's words, and what tables show of the answers. Pure functions."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encsearch.errors import UserError
from encsearch.parts import is_part

if TYPE_CHECKING:
    from pandas import DataFrame

PARENT_TAG, KIND_TAG = "mlflow.parentRunId", "encsearch.kind"
# The same on all seeds of a finalist or a baseline, and on the run that has their means.
CONFIGURATION_TAG = "encsearch.configuration"
ATTRIBUTES = ("run_id", "run_name", "status", "start_time", "end_time")
COLUMNS = ("run_id", "name", "kind", "status", "start_time", "end_time", "seconds", "parent_run_id")
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
SHOWN_AS = {"run": "run_id", "name": "run_name", "kind": KIND_TAG}  # what tables call them
NEWEST_FIRST = "attributes.start_time DESC"
MAX_NAMED = 5  # runs that an error lists
SHORT_ID = 8  # characters of a run id that people are shown
LINEAGE = ("data.", "code.", "version.", "git.", "mlflow.source.")


@dataclass(frozen=True)
class RunRow:
    """One run as the store has it; times are milliseconds since 1970, `metrics` the newest values."""

    run_id: str
    name: str
    status: str
    start_ms: int
    end_ms: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def kind(self) -> str | None:
        return self.tags.get(KIND_TAG)

    @property
    def parent_run_id(self) -> str | None:
        return self.tags.get(PARENT_TAG)

    @property
    def seconds(self) -> float | None:
        """How long the run took; None while it runs."""
        return None if self.end_ms is None else (self.end_ms - self.start_ms) / 1000


@dataclass(frozen=True)
class Query:
    """Which runs, in which order; `limit` None is all.

    `filter` is in MLflow's filter language. Without `parent` and `kind` the query finds jobs, and not their
    children; `kind` "all" finds every run.
    """

    filter: str = ""
    kind: str | None = None
    parent: str | None = None
    status: str | None = None
    sort: str | None = None
    limit: int | None = None


def filter_text(query: Query) -> str:
    """Return the query's conditions in MLflow's filter language, which knows no operator but AND."""
    conditions = [query.filter] if query.filter else []
    if query.parent:
        conditions.append(f"tags.`{PARENT_TAG}` = '{query.parent}'")
    elif query.kind is None:
        conditions.append(f"tags.`{PARENT_TAG}` IS NULL")
    if query.kind not in (None, "all"):
        conditions.append(f"tags.`{KIND_TAG}` = {quote_value(str(query.kind))}")
    if query.status:
        if query.status not in STATUSES:
            raise UserError(f"status {query.status} is none of {', '.join(STATUSES)}")
        conditions.append(f"attributes.status = '{query.status}'")
    return " AND ".join(conditions)


def order_by(sort: str | None) -> list[str] | None:
    """Return MLflow's order for a name such as `best/mIoU`: the greatest first, with `:asc` the least first.

    A run that lacks the figure comes last. `params.X`, `metrics.X` and `tags.X` name the kind of figure.
    Returns None where `sort_rows` must sort, since MLflow takes params for texts and knows no duration.
    """
    if sort is None:
        return [NEWEST_FIRST]
    name, is_ascending = _sort_name(sort)
    key = _key(name)
    if name == "seconds" or key.startswith("params."):
        return None
    return [f"{key} {'ASC' if is_ascending else 'DESC'}", NEWEST_FIRST]


def sort_rows(rows: Sequence[RunRow], sort: str) -> list[RunRow]:
    """Sort numbers by their size, before texts; runs that lack the value come last."""
    name, is_ascending = _sort_name(sort)
    found = [(column(row, name), row) for row in rows]
    numbers = [(float(value), row) for value, row in found if _is_number(value)]
    texts = [(str(value), row) for value, row in found if value is not None and not _is_number(value)]
    ordered: list[RunRow] = []
    for known in (numbers, texts):
        ordered += [row for _, row in sorted(known, key=lambda one: one[0], reverse=not is_ascending)]
    return ordered + [row for value, row in found if value is None]


def quote_value(text: str) -> str:
    """Quote a value for a filter. Raises UserError for text that MLflow's language cannot hold."""
    if "'" in text and '"' in text:
        raise UserError(f"{text}: holds both kinds of quotation marks, which MLflow cannot search for")
    return f'"{text}"' if "'" in text else f"'{text}'"


def pick(text: str, candidates: Sequence[RunRow]) -> RunRow:
    """Return the one run that `text` means. Raises UserError for no run or several."""
    exact = [row for row in candidates if row.run_id == text]
    found = exact or list(candidates)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"no run {text}: neither an id, the start of one, a name nor the folder of a job; "
            "`encsearch runs list` shows the jobs, with `--kind all` every run"
        )
    named = ", ".join(row.run_id for row in found[:MAX_NAMED])
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    raise UserError(f"{text} is {len(found)} runs; give the id of one: {named}{more}")


def column(row: RunRow, name: str) -> Any:
    """Return what a table shows for `name`: an attribute, a metric, a param or a tag; None if absent.

    `metrics.seconds` is the time of an epoch, `seconds` the time of the run.
    """
    own = {
        "run": row.run_id[:SHORT_ID],
        "run_id": row.run_id,
        "name": row.name,
        "kind": row.kind,
        "status": row.status,
        "start_time": row.start_ms,
        "end_time": row.end_ms,
        "seconds": row.seconds,
        "parent_run_id": row.parent_run_id,
    }
    section, _, rest = name.partition(".")
    sections: dict[str, Mapping[str, Any]] = {"params": row.params, "metrics": row.metrics, "tags": row.tags}
    if section in sections and rest in sections[section]:
        return sections[section][rest]
    if name in own:
        return own[name]
    for values in (row.metrics, row.params, row.tags):
        if values.get(name) is not None:
            return values[name]
    return None


def to_frame(rows: Sequence[RunRow]) -> "DataFrame":
    """A table with a row for each run; a param is a number where it is one in every run that has it."""
    import pandas as pd

    cells = [
        {name: column(row, name) for name in COLUMNS}
        | {f"metrics.{name}": value for name, value in row.metrics.items()}
        | {f"params.{name}": value for name, value in row.params.items()}
        | {f"tags.{name}": value for name, value in row.tags.items()}
        for row in rows
    ]
    names = [
        *COLUMNS,
        *(f"metrics.{name}" for name in metric_names(rows)),
        *dict.fromkeys(f"params.{name}" for row in rows for name in row.params),
        *dict.fromkeys(f"tags.{name}" for row in rows for name in row.tags),
    ]
    frame = pd.DataFrame(cells, columns=names)
    for name in ("start_time", "end_time"):
        frame[name] = pd.to_datetime(frame[name], unit="ms", utc=True)
    for name in names:
        if name.startswith("params."):
            with suppress(ValueError):
                frame[name] = pd.to_numeric(frame[name])
    return frame


def find_varying_params(rows: Sequence[RunRow]) -> list[str]:
    """List the params in which the runs differ, in the order of the first run; missing counts as a value."""
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    return [name for name in names if len({row.params.get(name) for row in rows}) > 1]


def find_searched_paths(params: Mapping[str, str]) -> list[str]:
    """List the paths that a sweep searched, by the params of its own run; none for any other job.

    The list is also empty if the space was longer than a param may be, and was cut.
    """
    try:
        return list(json.loads(params.get("search.space", "null")) or ())
    except ValueError:
        return []


def rank_by(rows: Sequence[RunRow], metric: str) -> list[RunRow]:
    """Return the runs that have the metric, the greatest value first."""
    known = [row for row in rows if not math.isnan(row.metrics.get(metric, math.nan))]
    return sorted(known, key=lambda row: row.metrics[metric], reverse=True)


def main_metric(rows: Sequence[RunRow]) -> str:
    """Return the metric that the runs were trained for: the first one that a recipe among them names."""
    return next((row.params["metric"] for row in rows if "metric" in row.params), "mIoU")


def find_changed_params(params: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the params that differ from their default, or have no default."""
    return {name: value for name, value in params.items() if defaults.get(name) != value}


def lineage_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that say where a run comes from: data, code and versions."""
    return {name: value for name, value in tags.items() if name.startswith(LINEAGE)}


def best_columns(rows: Sequence[RunRow], metric: str) -> list[int]:
    """Return the indices of the runs with the best value; none if the order is unknown or all are equal."""
    sign = _direction(metric)
    values = [row.metrics.get(metric, math.nan) for row in rows]
    known = [sign * value for value in values if not math.isnan(value)]
    if not sign or len(set(known)) < 2:
        return []
    return [i for i, value in enumerate(values) if sign * value == max(known)]


def metric_names(rows: Sequence[RunRow]) -> list[str]:
    """List every metric of the runs: those under best/ first, then by name."""
    names = {name for row in rows for name in row.metrics}
    return sorted(names, key=lambda name: (not name.startswith("best/"), name))


def _direction(metric: str) -> int:
    """Return 1 if more is better, -1 if less is better, 0 if unknown."""
    if is_part(metric) or re.match(
        r"best/|mIoU|pixAcc|IoU/|boundary|presence/", metric
    ):  # first: a class may be called floss
        return 1
    return -1 if re.search(r"loss|latency", metric) else 0


def _sort_name(sort: str) -> tuple[str, bool]:
    """Return the name, and whether the least comes first."""
    # The name of an own metric has a colon: best/module:Object:desc.
    name, _, direction = sort.rpartition(":") if sort.endswith((":asc", ":desc")) else sort.partition(":")
    if direction not in ("", "asc", "desc") or not name or "`" in name:
        raise UserError(f"--sort {sort}: not NAME, NAME:asc or NAME:desc, as in best/mIoU or optim.lr:asc")
    return name, direction == "asc"


def _is_number(value: Any) -> bool:
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def _key(name: str) -> str:
    section, _, rest = name.partition(".")
    if section in ("params", "metrics", "tags", "attributes") and rest:
        return f"{section}.`{rest}`"
    name = SHOWN_AS.get(name, name)
    if name == KIND_TAG:
        return f"tags.`{name}`"
    if name in ATTRIBUTES:
        return f"attributes.{name}"
    return f"params.`{name}`" if "." in name and "/" not in name else f"metrics.`{name}`"
