"""Views of MLflow's table of runs: columns, order and charts, stored once and opened by a link.

A view is a tag of the experiment, as the UI's own "Save view" writes it, and stands in the menu "Views". The
format is internal to MLflow: it was read off the front end of 3.17, and its fields keep their names there. A
front end that does not know the format shows its default table.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAG = "mlflow.sharedViewState."
MARK = "deflate;"
AUTHOR = "encsearch"  # in a field of ours, which the UI ignores
# The UI saves at most 40 named views in an experiment; half of them are left to people.
MAX_NAMED = 20
# Sections that MLflow adds for metrics without a chart: they are there, but folded.
FOLDED = (
    *("IoU", "best", "best/mIoU", "mIoU", "train", "step", "time", "memory", "throughput"),
    *("Model metrics", "System metrics"),
)
SHOWN_RUNS = 20


@dataclass(frozen=True)
class View:
    """The runs of `filter`, in MLflow's language, and how MLflow shows them.

    They are ordered by their best `metric`, or the newest first where scores do not compare. `key` stays the
    same when the view is stored anew; `params` are the paths that vary, `tags` are columns too. Runs with the
    same value of the tag `grouped_by` are one row that opens, with their means.
    """

    key: str
    name: str
    filter: str
    metric: str
    params: tuple[str, ...]
    tags: tuple[str, ...] = ()
    newest_first: bool = False
    grouped_by: str | None = None


def plan_tags(view: View, tags: Mapping[str, str], now_ms: int) -> dict[str, str]:
    """Return the tags that store `view`: its own unless it is unchanged, and older ones without names.

    A view without a name opens by its link, and the UI does not count it.
    """
    stored = pack_state(build_state(view))
    tag = TAG + view.key
    named = {
        key: json.loads(value) for key, value in tags.items() if key.startswith(TAG) and value.startswith("{")
    }
    if tag in named and named[tag]["state"] == stored:
        return {}
    others = {key: one for key, one in named.items() if one.get("by") == AUTHOR and key != tag}
    oldest_first = sorted(others, key=lambda key: others[key]["createdAt"])
    too_many = oldest_first[: max(0, len(others) + 1 - MAX_NAMED)]
    envelope = {"name": view.name, "createdAt": now_ms, "updatedAt": now_ms, "state": stored, "by": AUTHOR}
    return {key: others[key]["state"] for key in too_many} | {tag: json.dumps(envelope)}


def pack_state(values: Mapping[str, Any]) -> str:
    return MARK + base64.b64encode(zlib.compress(json.dumps(values).encode(), level=9)).decode()


def build_state(view: View) -> dict[str, Any]:
    """Return what the page restores: the search, the columns of the table and the charts."""
    best = f"best/{view.metric}"
    columns = {
        _column("metrics", best): 120,
        **{_column("tags", tag): 130 for tag in view.tags},
        **{_column("params", path): 50 + 7 * len(path) for path in view.params},
        _column("metrics", "epoch"): 80,
        _column("attributes", "Duration"): 90,
    }
    parallel, curves = "encsearch-parallel", "encsearch-curves"
    folded = [_section(f"encsearch-{name}", name, display=False) for name in FOLDED]
    return {
        "searchFilter": view.filter,
        "orderByKey": "attributes.start_time" if view.newest_first else _column("metrics", best),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunSections": [
            _section(parallel, "Parameters and result", columns=1, cardHeight=340),
            _section(curves, "Curves", columns=2, cardHeight=360),
            *folded,
        ],
        "compareRunCharts": [
            *([_parallel(parallel, view.params, best)] if view.params else []),
            _curve(curves, view.metric),
            _curve(curves, "train/loss"),
            _chart(curves, "BAR", best, metricKey=best, displayName=best),
        ],
        # Otherwise MLflow sorts the sections by name and folds none.
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "groupBy": view.grouped_by and _grouping(view.grouped_by),
    }


def _grouping(tag: str) -> dict[str, Any]:
    return {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag}]}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _section(uuid: str, name: str, *, display: bool = True, **layout: int) -> dict[str, Any]:
    fixed = {"isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, "display": display, **fixed, **layout}


def _parallel(section: str, params: Sequence[str], best: str) -> dict[str, Any]:
    axes = {"selectedParams": list(params), "selectedMetrics": [best]}
    return _chart(section, "PARALLEL", "parallel", **axes, showAllRuns=True)


def _curve(section: str, metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": []}
    look = {"lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "ignoreOutliers": False}
    return _chart(section, "LINE", metric, metricKey=metric, displayName=metric, **axes, **look, **shared)


def _chart(section: str, kind: str, name: str, **settings: Any) -> dict[str, Any]:
    fixed = {"deleted": False, "isGenerated": False, "runsCountToCompare": SHOWN_RUNS}
    return {
        "uuid": f"encsearch-{kind}-{name}",
        "type": kind,
        "metricSectionId": section,
        **fixed,
        **settings,
    }
