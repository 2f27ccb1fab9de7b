"""Which runs are asked for, and what is shown of them."""

import math
from typing import Any

import pytest

from encsearch.cli.browsing import _cell
from encsearch.errors import UserError
from encsearch.tracking.browse.rows import (
    Query,
    RunRow,
    best_columns,
    column,
    filter_text,
    find_changed_params,
    find_searched_paths,
    find_varying_params,
    lineage_tags,
    main_metric,
    order_by,
    pick,
    sort_rows,
)


def row(run_id: str = "a" * 32, name: str = "trial0", **values: Any) -> RunRow:
    fields = {"status": "FINISHED", "start_ms": 1_000, "end_ms": 3_500}
    return RunRow(run_id, name, **{**fields, "params": {}, "metrics": {}, "tags": {}, **values})


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (Query(), "tags.`mlflow.parentRunId` IS NULL"),
        (Query(kind="all"), ""),
        (Query("metrics.x > 1", kind="trial"), "metrics.x > 1 AND tags.`encsearch.kind` = 'trial'"),
        (
            Query(parent="p", status="KILLED"),
            "tags.`mlflow.parentRunId` = 'p' AND attributes.status = 'KILLED'",
        ),
        (Query(kind="it's"), 'tags.`encsearch.kind` = "it\'s"'),
    ],
)
def test_a_query_in_mlflows_language(query: Query, text: str) -> None:
    assert filter_text(query) == text


def test_a_status_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="status DONE is none of RUNNING, FINISHED, FAILED, KILLED"):
        filter_text(Query(status="DONE"))


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        (None, "attributes.start_time DESC"),
        ("best/mIoU", "metrics.`best/mIoU` DESC"),
        ("best/my_parts:score:desc", "metrics.`best/my_parts:score` DESC"),
        ("my_parts:score:asc", "metrics.`my_parts:score` ASC"),
        ("name:asc", "attributes.run_name ASC"),
        ("kind", "tags.`encsearch.kind` DESC"),
        ("end_time", "attributes.end_time DESC"),
        ("tags.encsearch.trial", "tags.`encsearch.trial` DESC"),
    ],
)
def test_an_order_in_mlflows_language(sort: str | None, first: str) -> None:
    assert (order_by(sort) or [])[0] == first


def test_params_are_ordered_as_numbers_which_mlflow_cannot() -> None:
    rows = [row(params={"optim.lr": text}) for text in ("5e-06", "0.05", "null", "0.5")] + [row()]
    rows.append(row(params={"optim.lr": "10"}, end_ms=None))
    found = {
        sort: [one.params.get("optim.lr") for one in sort_rows(rows, sort)]
        for sort in ("optim.lr", "params.optim.lr:asc")
    }
    assert order_by("optim.lr") is order_by("seconds") is None
    assert found["optim.lr"] == ["10", "0.5", "0.05", "5e-06", "null", None]
    assert found["params.optim.lr:asc"] == ["5e-06", "0.05", "0.5", "10", "null", None]
    assert sort_rows(rows, "seconds")[-1].params["optim.lr"] == "10"


@pytest.mark.parametrize("sort", ["best/mIoU:up", ":asc", "a`b"])
def test_an_order_that_is_none_is_refused(sort: str) -> None:
    with pytest.raises(UserError, match="--sort"):
        order_by(sort)


def test_a_whole_id_beats_a_name_that_looks_like_it() -> None:
    first, second = row("ab" * 16), row("cd" * 16, name="ab" * 16)
    assert pick("ab" * 16, [first, second]) == first


def test_unknown_and_ambiguous_runs_are_one_line() -> None:
    with pytest.raises(UserError, match="no run nine: "):
        pick("nine", [])
    many = [row(f"{i:032x}") for i in range(7)]
    with pytest.raises(
        UserError, match=r"trial0 is 7 runs; give the id of one: 0+, .* and 2 more"
    ) as refused:
        pick("trial0", many)
    assert "\n" not in str(refused.value)


def test_a_column_is_an_attribute_a_metric_a_param_or_a_tag() -> None:
    found = row(
        metrics={"seconds": 0.5, "mIoU": 0.7}, params={"optim.lr": "0.1"}, tags={"encsearch.kind": "trial"}
    )
    assert [column(found, name) for name in ("seconds", "metrics.seconds", "mIoU", "optim.lr", "kind")] == [
        2.5,
        0.5,
        0.7,
        "0.1",
        "trial",
    ]
    assert column(found, "elsewhere") is None
    still_running = row(end_ms=None, metrics={"seconds": 0.5})
    assert column(still_running, "seconds") is None, "those of an epoch are something else"


def test_only_params_that_differ_are_compared() -> None:
    rows = [row(params={"a": "1", "b": "2"}), row(params={"a": "1", "b": "3", "c": "null"})]
    assert find_varying_params(rows) == ["b", "c"]


def test_what_the_recipe_sets_is_what_is_not_the_default() -> None:
    assert find_changed_params({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9"}) == {"b": "2", "c": "3"}


def test_the_best_figure_is_marked_where_an_order_is_known() -> None:
    rows = [row(metrics={"best/mIoU": 0.3, "train/loss": 2.0, "epoch": 1.0, "pixAcc": 0.5})]
    rows += [row(metrics={"best/mIoU": 0.4, "train/loss": 1.0, "epoch": 9.0, "pixAcc": 0.5})]
    rows += [row(metrics={"best/mIoU": math.nan, "train/loss": 1.0})]
    assert best_columns(rows, "best/mIoU") == [1]
    assert best_columns(rows, "train/loss") == [1, 2]
    assert best_columns(rows, "epoch") == []
    assert best_columns(rows, "pixAcc") == []
    assert best_columns(rows, "absent") == []


def test_a_class_may_be_called_like_what_should_be_small() -> None:
    rows = [row(metrics={"IoU/floss": value, "IoU/fleece": value}) for value in (0.1, 0.2)]
    assert best_columns(rows, "IoU/floss") == best_columns(rows, "IoU/fleece") == [1]


def test_of_an_own_metric_the_more_is_the_better_and_of_an_own_loss_nothing_is_said() -> None:
    rows = [row(metrics={"losses:score": value, "train/m:edge": value}) for value in (0.1, 0.2)]
    assert best_columns(rows, "losses:score") == [1]
    assert best_columns(rows, "train/m:edge") == []


def test_what_was_searched_is_read_of_the_sweeps_own_run() -> None:
    assert find_searched_paths({"search.space": '{"optim.lr": {"loguniform": [0.001, 0.1]}}'}) == ["optim.lr"]
    assert find_searched_paths({"search.space": "null"}) == find_searched_paths({}) == []
    assert find_searched_paths({"search.space": '{"optim.lr": {"cut off'}) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *(("12345678", "12345678"), ("12345e67", "12345e67"), ("2.10", "2.10"), ("100000", "100000")),
        *(("0.0123456", "0.01235"), ("1.23456e-05", "1.235e-05"), (0.123456, "0.1235"), (None, None)),
    ],
)
def test_only_long_decimals_are_rounded(value: Any, shown: str | None) -> None:
    assert _cell("run", value) == shown


def test_scores_are_in_percent_and_other_metrics_are_not() -> None:
    names = ("best/mIoU", "metrics.IoU/car", "train/loss", "seconds")
    assert [_cell(name, 0.5) for name in names] == ["50.00 %", "50.00 %", "0.5", "0.5"]


def test_the_metric_is_the_recipes() -> None:
    assert main_metric([row(), row(params={"metric": "pixAcc"})]) == "pixAcc"
    assert main_metric([]) == "mIoU"


def test_lineage_is_data_code_and_versions() -> None:
    tags = {
        "data.fingerprint": "f",
        "code.sha256": "a",
        "version.torch": "2",
        "mlflow.source.git.commit": "c",
        "encsearch.kind": "trial",
    }
    assert list(lineage_tags(tags)) == [
        "data.fingerprint",
        "code.sha256",
        "version.torch",
        "mlflow.source.git.commit",
    ]
