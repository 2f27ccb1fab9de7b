"""What a job gets, what is refused before anything is sent, and how a job's end becomes an exit status."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from encsearch.cli import jobs
from encsearch.cli.main import main
from encsearch.errors import PreflightError, TrainingError, UserError
from encsearch.submit import client, package, server

ROOT = Path(__file__).parents[2]


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def job(status: str, exit_code: int | None = None) -> client.ClusterJob:
    return client.ClusterJob("id", status, "true", None, None, "", exit_code, {})


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


def test_a_package_at_the_limit_is_sent() -> None:
    package.check_package({"a": package.MAX_PACKAGE_BYTES}, Path())


def test_outside_git_no_hidden_file_travels_and_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "mine.yaml", ".ray/auth_token", ".ssh/id_rsa", ".netrc", "keys/id_rsa", "my_token")
    assert sorted(package.package_files(tmp_path)) == ["mine.yaml"]

    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="all of a home would travel"):
        package.package_files(tmp_path)


def test_submodules_travel(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
        git(folder, "init")
    write(part, "parts.py", "notes/.env")
    git(part, "add", ".")
    git(part, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a")
    write(whole, "mine.yaml")
    git(whole, "-c", "protocol.file.allow=always", "submodule", "add", str(part), "parts")

    assert sorted(package.package_files(whole)) == [".gitmodules", "mine.yaml", "parts/parts.py"]


@pytest.mark.parametrize("in_git", [True, False])
def test_a_linked_folder_is_refused_by_name(tmp_path: Path, in_git: bool) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    write(elsewhere, "a.py")
    if in_git:
        git(folder, "init")
    (folder / "parts").symlink_to(elsewhere)

    with pytest.raises(UserError, match="parts: a link to a folder, whose files would not travel"):
        package.package_files(folder)
    (folder / "parts").rename(folder / "data")  # which never travels
    assert package.package_files(folder) == {}


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
    env_vars = client.job_environment({"MLFLOW_EXPERIMENT_NAME": "other", "NCCL_DEBUG": "INFO"}, environ)
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
        client.job_environment({}, {"MLFLOW_TRACKING_URI": uri})


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////data/mlflow.db",
        "https://mlflow",
        "postgresql://db/x",
    ],
)
def test_tracking_uri_that_outlives_the_job_is_accepted(uri: str) -> None:
    assert client.job_environment({}, {"MLFLOW_TRACKING_URI": uri}) == {"MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns", "databricks"])
def test_tracking_uri_that_the_job_would_refuse_is_refused_before(uri: str) -> None:
    with pytest.raises(PreflightError, match="not one that MLflow can use"):
        client.job_environment({}, {"MLFLOW_TRACKING_URI": uri})


def test_the_token_is_where_ray_looks_for_it(tmp_path: Path) -> None:
    mode = {"RAY_AUTH_MODE": "token"}
    with pytest.raises(PreflightError, match="holds no token"):
        server.read_token(mode, tmp_path)
    with pytest.raises(PreflightError, match="nowhere holds no token"):
        server.read_token(mode | {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, tmp_path)
    write(tmp_path, ".ray/auth_token", "token")
    assert server.read_token(mode, tmp_path) == ".ray/auth_token", "what `write` has written"
    elsewhere = mode | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert server.read_token(elsewhere, Path("/nowhere")) == "token"
    assert server.read_token(mode | {"RAY_AUTH_TOKEN": "secret"}, Path("/nowhere")) == "secret"
    assert server.read_token({"RAY_AUTH_MODE": "disabled"}, Path("/nowhere")) is None
    for token in ("first\nsecond", "euro \N{EURO SIGN}"):
        with pytest.raises(PreflightError, match="RAY_AUTH_TOKEN: a token is one line") as refused:
            server.read_token(mode | {"RAY_AUTH_TOKEN": token}, tmp_path)
        assert "second" not in str(refused.value)


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
    ("status", "message", "kind", "words"),
    [
        (401, "", PreflightError, "asks for a token"),
        (403, "", PreflightError, "refused the token"),
        (404, "Job a does not exist.", UserError, "no job a"),
        (500, "Job with submission_id a already exists. Please", UserError, "a is taken"),
        (500, "Traceback\n  File x", TrainingError, "Traceback File x"),
    ],
)
def test_refusals_of_the_job_server_are_one_line(
    status: int, message: str, kind: type[Exception], words: str
) -> None:
    error = server._refusal(status, message, "a")
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)


def test_every_script_for_ray_job_submit_is_a_command_that_can_be_submitted() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} <= set(jobs.COMMANDS)


ABSOLUTE = ("data.store=/shared/camvid", "--out", "/shared/runs")


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("train camvid", "data.store data/camvid is relative, and the job runs in a copy of this folder"),
        ("train camvid data.store=/shared/camvid", "--out runs is relative"),
        ("sweep camvid data.store=s3://a/camvid --out runs", "--out runs is relative"),
        ("train camvid model.weights=w.pth data.store=/a --out /b", "model.weights w.pth is relative"),
        (
            'sweep camvid search.space={"train.init_from":{"choice":["/m/a","m/b"]}} search.enqueue=[] '
            "data.store=/a --out /b",
            "train.init_from m/b is relative, and the job runs in a copy of this folder that lacks it and is "
            "deleted; give an absolute path that every node sees",
        ),
        ("train camvid optim.learning=1 data.store=/a --out /b", "unknown config path optim.learning"),
        ("train camvidd data.store=/a --out /b", "camvidd"),
        ("sweep camvid --dryrun data.store=/a --out /b", "No such option"),
        ("resume runs/a", "FOLDER runs/a is relative"),
        ("promote runs/a", "SOURCE runs/a is relative"),
        ("eval runs/a", "MODEL runs/a is relative"),
        ("predict models:/a@champion street.png --out /b", "IMAGES street.png is relative"),
        ("export models:/a@champion --out exported", "--out exported is relative"),
        ("data import camvid CamVid /shared/camvid", "SOURCE CamVid is relative"),
        ("train mine.yaml data.store=/a --out /b", "RECIPE mine.yaml is relative"),
        ("nonsense", "Invalid value for"),
        ("data", "data: its command is missing"),
        ("data import", "data: its command is missing"),
        ("--name a/b eval models:/a@b --store /a", "is not of letters, digits"),
    ],
)
def test_what_only_this_machine_has_is_refused_before_anything_travels(
    line: str,
    refusal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    git(tmp_path, "init")
    write(tmp_path, "runs/a/run.json")
    (tmp_path / "mine.yaml").write_text("extends: camvid\n")
    (tmp_path / ".gitignore").write_text("mine.yaml\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "submit", lambda *_, **__: pytest.fail("it would travel"))

    with pytest.raises(SystemExit) as ended:
        main(["submit", *line.split()])

    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert refusal in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("train camvid", ["train", "--name", "first", "camvid"]),
        ("sweep camvid", ["sweep", "--name", "first", "camvid"]),
        ("ablate ablation", ["ablate", "--name", "first", "ablation"]),
        ("ablate --name other ablation", ["ablate", "--name", "other", "ablation"]),
    ],
)
def test_a_named_job_goes_on_in_the_folder_of_its_name(
    line: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str]] = []

    def submit(entrypoint: list[str], **_: object) -> tuple[str, bool]:
        sent.append(entrypoint)
        return "first", True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "submit", submit)
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--no-wait", "--name", "first", *line.split(), *ABSOLUTE])
    assert ended.value.code == 0
    assert sent == [["python", "-m", "encsearch", *command, *ABSOLUTE]]


class Answering:
    """A job server that has these jobs, and takes more."""

    def __init__(self, *jobs: dict[str, object]) -> None:
        self.taken: list[tuple[str, str | None, dict[str, str]]] = []
        self._jobs = list(jobs)

    def jobs(self) -> list[dict[str, object]]:
        return self._jobs

    def upload(self, package: Path) -> str:
        return "gcs://a.zip"

    def submit(self, entrypoint: str, job_id: str | None, env: object, metadata: dict[str, str]) -> str:
        self.taken.append((entrypoint, job_id, metadata))
        return str(job_id)


def ended(job_id: str, status: str, name: str = "", entrypoint: str = "exec a b") -> dict[str, object]:
    metadata = {client.NAME: name} if name else {}
    return {"submission_id": job_id, "status": status, "entrypoint": entrypoint, "metadata": metadata}


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([], ("first", True)),
        ([ended("first", "FAILED")], ("first-2", True)),
        ([ended("first", "FAILED"), ended("first-2", "RUNNING", "first")], ("first-2", False)),
        ([ended("first", "STOPPED"), ended("first-2", "RUNNING", "first-2")], ("first-3", True)),
        ([ended("first", "PENDING")], ("first", False)),
    ],
)
def test_a_name_is_followed_where_it_runs_and_free_where_it_has_ended(
    jobs: list[dict[str, object]],
    expected: tuple[str, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering = Answering(*jobs)
    monkeypatch.setattr(client, "JobServer", lambda address: answering)

    assert client.submit(["a", "b"], working_dir=tmp_path, files={}, name="first") == expected
    # By `exec`, since Ray stops a job by a signal to its shell and to the children that the shell then has.
    assert [command for command, *_ in answering.taken] == ["exec a b"] * expected[1]


def test_a_name_that_runs_another_command_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "JobServer", lambda address: Answering(ended("first", "RUNNING")))
    with pytest.raises(UserError, match="first runs already, another command: exec a b; give another --name"):
        client.submit(["a", "c"], working_dir=tmp_path, files={}, name="first")


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (f"train camvid {' '.join(ABSOLUTE)}", None),
        (f"sweep mine.yaml {' '.join(ABSOLUTE)}", None),
        (
            f"--name first sweep camvid {' '.join(ABSOLUTE)}",
            f"sweep --name first camvid {' '.join(ABSOLUTE)}",
        ),
        ("promote 0123456789abcdef0123456789abcdef", None),
        ("promote models:/a@champion --store s3://bucket/camvid", None),
        ("predict models:/a@champion pictures eval.flip=true --out /shared/masks", None),
        ("data import folder /shared/pictures /shared/mine --classes a,b", None),
    ],
)
def test_what_the_cluster_can_find_is_sent(
    line: str, sent: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "pictures/a.png")
    (tmp_path / "mine.yaml").write_text("extends: camvid\n")
    monkeypatch.chdir(tmp_path)
    taken: list[list[str]] = []
    monkeypatch.setattr(client, "submit", lambda entrypoint, **_: taken.append(entrypoint) or ("a", True))

    with pytest.raises(SystemExit) as ended:
        main(["submit", "--no-wait", *line.split()])

    assert ended.value.code == 0
    assert taken == [["python", "-m", "encsearch", *(sent or line).split()]]


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
