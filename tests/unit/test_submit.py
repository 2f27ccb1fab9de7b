"""What a job gets, what is refused before anything is sent, and how a job's end becomes an exit status."""

import os
import subprocess
import zipfile
from pathlib import Path

import click
import pytest

from encsearch.cli import jobs
from encsearch.errors import PreflightError, TrainingError, UserError
from encsearch.submit import client, package

ROOT = Path(__file__).parents[2]


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def job(status: str, exit_code: int | None = None) -> client.ClusterJob:
    return client.ClusterJob("id", status, "true", None, None, "", exit_code)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (job("SUCCEEDED", 0), 0),
        (job("FAILED", 4), 4),
        (job("FAILED"), 1),
        (job("FAILED", 0), 1),
        (job("FAILED", -9), 137),
        (job("STOPPED"), 130),
    ],
)
def test_exit_status(ended: client.ClusterJob, expected: int) -> None:
    assert client.exit_status(ended) == expected


def test_only_ended_jobs_are_over() -> None:
    states = ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
    assert [state for state in states if job(state).is_over] == states[2:]


def test_package_outside_git_leaves_out_data_runs_and_environments(tmp_path: Path) -> None:
    write(tmp_path, "jobs/train.py", "encsearch/data/store.py", "tests/data/a.json")
    write(tmp_path, "data/a.parquet", "runs/a", "mlflow.db", "mlflow.db-wal", "demo-out/a", "mlruns/0/a")
    write(
        tmp_path, ".git/HEAD", ".venv/bin/python", "jobs/__pycache__/a.pyc", ".mypy_cache/a", "a.egg-info/a"
    )
    files = package.package_files(tmp_path)
    assert sorted(files) == ["encsearch/data/store.py", "jobs/train.py", "tests/data/a.json"]
    assert files["jobs/train.py"] == len("jobs/train.py")


def test_package_of_a_checkout_is_what_git_does_not_ignore(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("/weights/\n")
    write(tmp_path, "jobs/tracked.py", "jobs/new.py", "jobs/deleted.py", "weights/resnet50.pth", "runs/a")
    git(tmp_path, "add", "jobs/tracked.py", "jobs/deleted.py")
    (tmp_path / "jobs" / "deleted.py").unlink()
    assert sorted(package.package_files(tmp_path)) == [".gitignore", "jobs/new.py", "jobs/tracked.py"]


def test_secrets_never_travel(tmp_path: Path) -> None:
    write(tmp_path, "a.py", ".env", "jobs/.env.local", "ray_token", "x/ray.token", "tls/ca.pem", "tls/a.key")
    assert sorted(package.package_files(tmp_path)) == ["a.py"]


@pytest.mark.parametrize("in_git", [True, False])
def test_a_name_that_no_zip_can_hold_is_refused(tmp_path: Path, in_git: bool) -> None:
    if in_git:
        git(tmp_path, "init")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(UserError, match=r"'caf\\udce9\.txt' is no UTF-8 name"):
        package.package_files(tmp_path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        package.package_files(tmp_path / "nowhere")


def test_package_over_the_limit_names_the_largest_folders() -> None:
    mib = 2**20
    files = {
        "jobs/train.py": 100,
        "weights/a.pth": 90 * mib,
        "weights/b.pth": 20 * mib,
        "notes/scan/a.pdf": 30 * mib,
    }
    with pytest.raises(UserError) as refused:
        package.check_package(files, Path("project"))
    message = str(refused.value)
    assert "140 MiB" in message
    assert "100 MiB is the limit" in message
    assert "largest: weights/a.pth 90 MiB, notes/scan 30 MiB" in message
    assert "\n" not in message


def test_package_at_the_limit_is_sent_and_an_empty_one_is_not() -> None:
    package.check_package({"a": package.MAX_PACKAGE_BYTES}, Path())
    with pytest.raises(UserError, match="nothing to send"):
        package.check_package({}, Path())


def test_equal_content_makes_an_equal_package(tmp_path: Path) -> None:
    write(tmp_path, "b/run.sh", "a.py")
    (tmp_path / "b/run.sh").chmod(0o755)
    files = package.package_files(tmp_path)
    first = package.pack(files, tmp_path, tmp_path / "1.zip").read_bytes()
    os.utime(tmp_path / "a.py", (0, 0))
    second = package.pack(dict(reversed(files.items())), tmp_path, tmp_path / "2.zip").read_bytes()
    assert first == second
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.read("a.py") == b"a.py"
        assert archive.getinfo("b/run.sh").external_attr >> 16 == 0o755


@pytest.mark.parametrize(
    "command", [["python", "jobs/train.py"], ["python", "./jobs/train.py"], ["python", "/x/a.py"]]
)
def test_script_that_is_sent_or_absolute_is_accepted(command: list[str]) -> None:
    package.check_script(command, {"jobs/train.py": 1})


def test_script_that_is_not_sent_is_refused() -> None:
    with pytest.raises(UserError, match=r"jobs/sweep\.py is not among the 1 files"):
        package.check_script(["python", "jobs/sweep.py"], {"jobs/train.py": 1})


def test_mlflow_variables_reach_the_job_and_others_do_not() -> None:
    environ = {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_EXPERIMENT_NAME": "camvid",
        "ENCSEARCH_NOTIFY_URL": "json://team:secret@host/hook",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "MLFLOW_TRACKING_TOKEN": "",
        "RAY_AUTH_TOKEN": "secret",
        "HOME": "/home/me",
    }
    env_vars = client.job_environment(environ, {"MLFLOW_EXPERIMENT_NAME": "other", "NCCL_DEBUG": "INFO"})
    assert env_vars == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_EXPERIMENT_NAME": "other",
        "ENCSEARCH_NOTIFY_URL": "json://team:secret@host/hook",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "NCCL_DEBUG": "INFO",
    }


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///./mlflow.db", "sqlite:mlflow.db"])
def test_relative_tracking_uri_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="relative path"):
        client.job_environment({"MLFLOW_TRACKING_URI": uri}, {})


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////data/mlflow.db",
        "https://mlflow",
        "postgresql://db/x",
    ],
)
def test_tracking_uri_that_outlives_the_job_is_accepted(uri: str) -> None:
    assert client.job_environment({"MLFLOW_TRACKING_URI": uri}, {}) == {"MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns", "databricks"])
def test_tracking_uri_that_the_job_would_refuse_is_refused_before(uri: str) -> None:
    with pytest.raises(PreflightError, match="not one that MLflow can use"):
        client.job_environment({"MLFLOW_TRACKING_URI": uri}, {})


def test_token_mode_needs_a_token_somewhere(tmp_path: Path) -> None:
    mode = {"RAY_AUTH_MODE": "token"}
    with pytest.raises(PreflightError, match="holds no token"):
        client.check_token(mode, tmp_path)
    with pytest.raises(PreflightError, match="nowhere holds no token"):
        client.check_token(mode | {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, tmp_path)
    write(tmp_path, ".ray/auth_token", "token")
    client.check_token(mode, tmp_path)
    client.check_token(mode | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, Path("/nowhere"))
    client.check_token(mode | {"RAY_AUTH_TOKEN": "secret"}, Path("/nowhere"))
    client.check_token({"RAY_AUTH_MODE": "disabled"}, Path("/nowhere"))


def test_version_mismatch_in_the_output_becomes_a_hint() -> None:
    output = (
        "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.4\n"
        "This process on Ray Client was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"
    )
    hint = client.version_hint(output)
    assert hint is not None
    assert "Python 3.11.4" in hint
    assert "on 3.11.9" in hint
    assert client.version_hint("mIoU 0.6\n") is None


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("Request failed with status code 404: Job a does not exist.", UserError, "no job a"),
        ("status code 500: Job with submission_id a already exists. Please", UserError, "a is taken"),
        ("WebSocket connection closed unexpectedly", client.ConnectionLostError, "lost the connection"),
        ("Request failed with status code 500: Traceback\n  File x", TrainingError, "Traceback File x"),
    ],
)
def test_refusals_of_the_job_server_are_one_line(message: str, kind: type[Exception], words: str) -> None:
    error = client.job_error(message, "a")
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)


def test_two_nodes_script_tells_its_usage() -> None:
    script = ROOT / "cluster" / "local" / "two_nodes.sh"
    result = subprocess.run([script, "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "start|status|stop" in result.stderr


def test_every_command_that_can_be_submitted_has_an_entry_point() -> None:
    (command,) = (p for p in jobs.submit.params if p.name == "command")
    assert isinstance(command.type, click.Choice)
    assert sorted(command.type.choices) == sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


def test_a_jobs_output_is_shown_in_whole_lines_without_secrets_and_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2-Zx")
    written = "\x1b[36m(worker)\x1b[0m it has hunter2-Zx\r\n\x1b]0;own\x07token=abcdefg\n50 %\r100 %\nthe end"
    pieces = [written[start : start + 7] for start in range(0, len(written), 7)]
    in_lines = list(client._in_lines(iter(pieces)))
    assert "".join(in_lines) == written
    assert "".join(client._show_output(text) for text in in_lines) == (
        "\x1b[36m(worker)\x1b[0m it has ***\n\\x1b]0;own\\x07token=***\n50 %\n100 %\nthe end"
    )
