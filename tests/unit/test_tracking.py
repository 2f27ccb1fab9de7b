"""What tracking does without MLflow: which store, which links, which files and tags."""

import csv
import json
from pathlib import Path

import pytest

from encsearch.errors import PreflightError
from encsearch.redaction import without_secrets
from encsearch.reports import Report
from encsearch.tracking.run_files import TABLE_TAG, write_artifacts, write_texts
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


def test_the_tables_of_a_run_keep_absent_classes_and_the_order_of_labels(tmp_path: Path) -> None:
    report = Report(1, 10, 0.5, {"mIoU": 0.5}, {"b": 0.25, "a": 0.75}, ((3, 1, 0), (0, 2, 0), (0, 0, 0)))
    write_artifacts(tmp_path, report, ["a", "b", "none"], "name: toy\n")
    with open(tmp_path / "tables" / "class_iou.csv", newline="") as file:
        assert list(csv.reader(file)) == [["class", "iou"], ["a", "0.75"], ["b", "0.25"], ["none", ""]]
    # The form of MLflow's tables: pandas writes and reads it as orient="split".
    table = json.loads((tmp_path / "tables" / "class_iou.json").read_text())
    assert table == {"columns": ["class", "iou"], "data": [["a", 0.75], ["b", 0.25], ["none", None]]}
    assert (tmp_path / json.loads(TABLE_TAG["mlflow.loggedArtifacts"])[0]["path"]).exists()
    with open(tmp_path / "tables" / "confusion.csv", newline="") as file:
        _, *rows = csv.reader(file)
    assert rows == [["a", "3", "1", "0"], ["b", "0", "2", "0"], ["none", "0", "0", "0"]]
    assert (tmp_path / "pictures" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_of_a_report_lie_below_the_runs(tmp_path: Path) -> None:
    write_texts(tmp_path, Report(1, 10, 0.5, {}, texts={"lineage/machine_epoch_1.txt": "host: a\n"}))

    assert (tmp_path / "lineage" / "machine_epoch_1.txt").read_text() == "host: a\n"
