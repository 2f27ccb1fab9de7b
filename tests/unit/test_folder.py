"""A job's folder: never shared, and finished only when its summary is there."""

from pathlib import Path

import pytest

import encsearch
from encsearch.errors import UserError
from encsearch.reports import RunSummary, read_summary
from encsearch.workflow.job import new_folder, write_summary

SUMMARY = RunSummary(
    kind="training",
    name="x",
    metric="mIoU",
    value=0.5,
    fingerprint="abc",
    store="store",
    split="val",
    tracking_uri="sqlite:///mlflow.db",
    experiment_id="1",
    run="toy-1",
    run_id="r",
    bundle="artifacts/bundle",
)


def test_every_job_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {new_folder(tmp_path, "x") for _ in range(5)}

    assert len(folders) == 5
    assert all(folder.is_dir() for folder in folders)


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_summary(tmp_path, SUMMARY)

    assert read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize("content", [None, "{", '{"kind": "training"}', "[]"])
def test_a_folder_without_a_sound_summary_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)

    with pytest.raises(UserError) as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match="cannot make a run folder"):
        new_folder(tmp_path / "file", "x")


def test_the_working_directory_is_asked_for_at_the_start_of_a_command_alone() -> None:
    """Later it may be gone. The sender and the process with torch look whether it is; jobs copy own parts."""
    package = Path(encsearch.__file__).parent
    texts = {
        str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")
    }
    assert {path for path, text in texts.items() if "Path.cwd()" in text or "getcwd()" in text} == {
        "cli/jobs.py",
        "parts.py",
        "runner/torch_process.py",
        "tracking/outbox/sender.py",
    }
