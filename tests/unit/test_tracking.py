"""What tracking does without MLflow: which store, which links, which files and tags."""

import csv
import shlex
from pathlib import Path

import pytest

from encsearch.errors import PreflightError
from encsearch.records import Report
from encsearch.redaction import without_secrets
from encsearch.tracking.artifacts import write_artifacts
from encsearch.tracking.lineage import lineage
from encsearch.tracking.links import children_link, compare_link, ui_base, ui_command
from encsearch.tracking.uris import existing_store, resolve_uri


def test_the_store_is_the_given_one_else_the_environments_else_a_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert resolve_uri(None) == "http://tracker:5000"
    assert resolve_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"


@pytest.mark.parametrize(
    "uri", ["file:///runs", "runs", "sqlite://a.db", "sqlite:///", "sqlite:////dev/null"]
)
def test_a_store_that_mlflow_cannot_open_is_refused_at_once(uri: str) -> None:
    with pytest.raises(PreflightError):
        resolve_uri(uri)


def test_a_reader_wants_a_database_that_exists(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(PreflightError, match=r"mlflow\.db: no such tracking database"):
        existing_store(uri)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mlflow.db").touch()
    assert existing_store(uri) == uri
    assert existing_store("http://tracker:5000") == "http://tracker:5000"


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are not the tables you are looking for")
    with pytest.raises(PreflightError, match=r"notes\.txt: not an SQLite database"):
        resolve_uri(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:p@ss@tracker:5000/x", "http://tracker:5000/x"),
        ("postgresql+psycopg://me:pw@db/mlflow failed", "postgresql+psycopg://db/mlflow failed"),
        ("GET https://tracker/a@b failed", "GET https://tracker/a@b failed"),
        ("mysql://db/x?password=pw&ssl=1 failed", "mysql://db/x?password=***&ssl=1 failed"),
        ("http://tracker?a=b&access_TOKEN=pw", "http://tracker?a=b&access_TOKEN=***"),
        ("is it up? no", "is it up? no"),
    ],
)
def test_secrets_are_cut_out_of_uris(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_links_are_quoted_and_show_no_secrets() -> None:
    base = ui_base("https://me:pw@tracker/")
    assert base == "https://tracker"
    assert compare_link(base, "7", ["a", "b"]) == (
        "https://tracker/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%227%22%5D&workflowType=machine_learning"
    )
    assert "orderByKey=metrics.%60best%2FmIoU%60" in children_link(base, "7", "p", "mIoU")


def test_a_local_store_comes_with_the_command_that_opens_it() -> None:
    uri = "sqlite:////my runs/mlflow.db"
    command = ui_command(uri, port=5001)
    assert command is not None
    words = shlex.split(command)
    assert words[words.index("--backend-store-uri") + 1] == uri
    assert ui_base(uri, port=5001) == "http://127.0.0.1:5001"
    assert ui_command("http://tracker:5000") is None


@pytest.mark.parametrize("uri", ["postgresql://me:pw123@db/mlflow", "postgresql://db/mlflow?password=pw123"])
def test_the_command_leaves_a_password_to_the_environment(uri: str) -> None:
    command = ui_command(uri)
    assert command is not None
    assert "pw123" not in command
    assert '--backend-store-uri "$MLFLOW_TRACKING_URI"' in command


def test_outside_a_checkout_the_lineage_names_no_commit(tmp_path: Path) -> None:
    tags = lineage("abc", tmp_path)
    assert tags["data.fingerprint"] == "abc"
    assert {"version.torch", "version.ray", "version.mlflow", "version.python"} <= set(tags)
    assert not any("git" in name for name in tags)


def test_the_tables_of_a_run_keep_absent_classes_and_the_order_of_labels(tmp_path: Path) -> None:
    report = Report(1, 10, 0.5, {"mIoU": 0.5}, {"b": 0.25, "a": 0.75}, ((3, 1, 0), (0, 2, 0), (0, 0, 0)))
    write_artifacts(tmp_path / "artifacts", report, ["a", "b", "none"], "name: toy\n")
    with open(tmp_path / "artifacts" / "class_iou.csv", newline="") as file:
        assert list(csv.reader(file)) == [["class", "iou"], ["a", "0.75"], ["b", "0.25"], ["none", ""]]
    with open(tmp_path / "artifacts" / "confusion.csv", newline="") as file:
        _, *rows = csv.reader(file)
    assert rows == [["a", "3", "1", "0"], ["b", "0", "2", "0"], ["none", "0", "0", "0"]]
    assert (tmp_path / "artifacts" / "confusion.png").read_bytes().startswith(b"\x89PNG")
