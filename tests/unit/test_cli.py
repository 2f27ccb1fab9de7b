"""The command line: instant help, one line for an error, the exit codes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import encsearch
from encsearch.cli.browsing import _fold
from encsearch.cli.console import emit, say, table
from encsearch.cli.examples import EXAMPLES
from encsearch.cli.main import COMMANDS, cli, main
from encsearch.config import Config, to_yaml
from encsearch.errors import UserError
from encsearch.tracking.outbox.forward import warn

HEAVY = ("torch", "ray", "mlflow", "optuna", "pyarrow", "pydantic")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_help_loads_nothing_heavy_and_names_every_command() -> None:
    probe = (
        "import sys; from encsearch.cli.main import main\n"
        "try: main(['--help'])\n"
        f"finally: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, without a tracking store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_an_example_that_it_takes(folder: Path) -> None:
    def check(command: click.Command, path: str) -> set[str]:
        if isinstance(command, click.Group):
            below = command.commands.items()
            return {found for name, each in below for found in check(each, f"{path} {name}")}
        _, *words = shlex.split(EXAMPLES[path].partition(" > ")[0])
        assert words[: len(path.split())] == path.split()
        command.make_context(path, words[len(path.split()) :])
        assert f"Example: {EXAMPLES[path]}" in str(command.epilog)
        return {path}

    (folder / "runs").mkdir()
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    assert {path for name, each in commands.items() if each for path in check(each, name)} == set(EXAMPLES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "camvid"], "no command trian; did you mean train?"),
        (["xyz"], "no command xyz; `encsearch --help` lists them"),
        (
            ["train", "mine.yml"],
            "mine.yml: cannot read the recipe (No such file or directory); did you mean mine.yaml?",
        ),
        (
            ["train", "camvit"],
            "camvit: cannot read the recipe (No such file or directory); did you mean camvid?",
        ),
        (["resume", "nope"], "nope: no such folder; the newest jobs are runs/toy-2 and runs/toy-1"),
        (["promote", "runs"], "(run.json is missing); the newest jobs are runs/toy-2 and runs/toy-1"),
        (["eval", "nope"], "nope: no such folder; the newest jobs are runs/toy-2 and runs/toy-1"),
        (["runs", "list"], "nothing is recorded in this folder yet, there is no mlflow.db"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_may_have_been_meant(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text("extends: camvid\n")
    for number in (1, 2):
        job = folder / "runs" / f"toy-{number}"
        job.mkdir(parents=True)
        (job / "training.json").write_text("{}\n")
        os.utime(job, (number, number))
    code, _, err = run(arguments, capsys)
    assert code in (2, 3)
    assert message in err
    assert err.count("\n") == 1


def test_the_demos_records_are_named_where_there_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "demo-out").mkdir()
    (folder / "demo-out" / "mlflow.db").touch()
    _, _, err = run(["runs", "list"], capsys)
    assert "to read demo-out's: export MLFLOW_TRACKING_URI=sqlite:///demo-out/mlflow.db" in err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, out, _ = run([name, "--help"], capsys)
        assert code == 0
        assert out.startswith("Usage: encsearch " + name)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "no command trian; did you mean train?"),
        (["train"], 2, "Missing argument 'RECIPE'"),
        (["train", "none.yaml"], 2, "none.yaml: cannot read the recipe"),
        (["check", "{recipe}", "optim.lrr=1"], 2, "did you mean optim.lr?"),
        (["check", "{recipe}", "optim.lr=-1"], 2, "optim.lr=-1: must be greater than 0"),
        (["check", "{recipe}", "scaling.num_workers=3"], 2, "8 is not divisible by num_workers=3"),
        (["check", "{recipe}", "data.store=nowhere"], 3, "nowhere: no such store"),
        (["check", "{recipe}", "data.val_split=test"], 3, "train"),
        (["check", "{recipe}", "metric=mIoU/none"], 3, "mIoU/objects"),
        (["check", "{recipe}", "model.weights=none.pth"], 3, "none.pth: no such file"),
        (["sweep", "{recipe}"], 2, "has no search: block"),
        (["report", "{folder}"], 2, "not the folder of a finished sweep"),
        (["promote", "{folder}"], 2, "not the folder of a finished training, sweep or ablation"),
        (["data", "check", "{folder}/none"], 2, "no such store"),
        (["eval", "{folder}"], 2, "not a trained model's folder"),
        (["eval", "models:/x@y"], 3, "nothing is recorded in this folder yet, there is no mlflow.db"),
        (["report", "{recipe}"], 2, "is a file"),
        (["promote", "{recipe}"], 2, "not the folder of a finished training, sweep or ablation"),
        (
            ["predict", "{folder}", "{folder}/a.png", "--out", "{folder}/out"],
            2,
            "not a trained model's folder",
        ),
        (["predict", "{folder}", "{folder}/none.png", "--out", "{folder}/out"], 2, "none.png: no such image"),
        (["predict", "{folder}", "{folder}", "--out", "{folder}"], 2, "would overwrite {folder}/a.png"),
        (["predict", "{folder}", "{folder}/a.png", "{folder}/b/a.jpg", "--out", "o"], 2, "overwrite o/a.png"),
        (["data", "import", "folder", "x", "y", "--classes", "a,,b"], 2, "'a,,b' has an empty class name"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    toy_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(toy_config))
    for image in ("a.png", "b/a.jpg"):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).touch()
    before = sorted(tmp_path.rglob("*"))

    ended, _, err = run([a.format(recipe=recipe, folder=tmp_path) for a in arguments], capsys)

    assert ended == code
    assert message.format(folder=tmp_path) in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


SEARCHING = "search.space={{optim.lr: {{choice: [0.01]}}}}"  # to be formatted


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (["sweep", "{recipe}"], {}, 2, "has no search: block"),
        (["sweep", "{recipe}"], {"RAY_ADDRESS": "127.0.0.1:1"}, 2, "has no search: block"),
        (["sweep", "{recipe}", SEARCHING, "--warm-start-from", "none"], {}, 2, "not the folder of a sweep"),
        (["sweep", "{recipe}", SEARCHING, "--out", "{recipe}"], {}, 2, "cannot make a run folder"),
        (["sweep", "{recipe}", SEARCHING], {"MLFLOW_TRACKING_URI": "x"}, 3, "not one that MLflow can use"),
        (["sweep", "{recipe}", SEARCHING], {"ENCSEARCH_STORAGE": "x"}, 3, "is not a database URL"),
        (["ablate", "{recipe}", "--out", "{recipe}"], {}, 2, "cannot make a run folder"),
        (["ablate", "{recipe}"], {"MLFLOW_TRACKING_URI": "x"}, 3, "not one that MLflow can use"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(
    arguments: list[str],
    variables: dict[str, str],
    code: int,
    message: str,
    toy_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "ENCSEARCH_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(toy_config))
    command = [argument.format(recipe=recipe) for argument in arguments]

    rehearsed = run([*command, "--dry-run"], capsys)

    assert rehearsed == run(command, capsys)
    ended, out, err = rehearsed
    assert (ended, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize("arguments", [[], ["data"], ["data", "import"], ["jobs"]])
def test_a_group_alone_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(arguments, capsys)

    assert (out + err).startswith(f"Usage: {' '.join(['encsearch', *arguments])} [OPTIONS] COMMAND")
    assert len((out + err).splitlines()) > 5


def test_predict_writes_a_label_map_and_an_overlay_of_each_image(
    toy_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from encsearch.data.manifest import read_manifest
    from encsearch.inference.bundle import Bundle, write_bundle
    from encsearch.model.encnet import EncNet

    info = read_manifest(toy_config.data.store).info
    model = EncNet.from_config(toy_config.model, len(info.classes))
    write_bundle(Bundle(model, toy_config, info, "abc", metrics={}), tmp_path / "bundle")
    long = "n" * 236
    for name in ("a.png", "b.jpg", f"{long}.png"):
        Image.new("RGB", (20, 16)).save(tmp_path / name)
    (tmp_path / "file").touch()
    command = ["predict", str(tmp_path / "bundle"), str(tmp_path), "--out"]

    code, _, _ = run([*command, str(tmp_path / "out")], capsys)
    refused, _, err = run([*command, str(tmp_path / "file")], capsys)

    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}{end}" for name in ("a", "b", long) for end in (".png", ".overlay.png")}
    assert refused == 2
    assert "file: cannot make this folder" in err


def test_json_goes_to_stdout_alone(
    toy_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(toy_config))

    code, out, err = run(["check", str(recipe), "--json"], capsys)

    assert (code, err) == (0, "")
    assert json.loads(out)["num_train"] == 24


def test_a_table_aligns_numbers_right() -> None:
    assert table(["name", "mIoU"], [["road", 9.5], ["a", None]]).splitlines() == [
        "name  mIoU",
        "----  ----",
        "road   9.5",
        "a        -",
    ]


def test_with_json_stdout_has_the_document_alone(tmp_path: Path) -> None:
    """Whatever Ray or a child process prints meanwhile, by Python or past it."""
    program = """
import os, subprocess, sys
import click
from encsearch.cli.console import emit, json_option

@click.command()
@json_option
def noisy(as_json):
    print("(raylet) A worker died", flush=True)
    os.write(1, b"written past Python\\n")
    subprocess.run(["echo", "of a child"], check=True)
    emit({"value": 1}, as_json, "value 1")

noisy()
"""
    run = [sys.executable, "-c", program]
    found = subprocess.run([*run, "--json"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(found.stdout) == {"value": 1}
    assert found.stderr.split("\n")[:3] == ["(raylet) A worker died", "written past Python", "of a child"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.endswith("value 1\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_one_line(
    options: list[str], toy_config: Config, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(toy_config))
    program = "from encsearch.cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", program, "config", str(recipe), *options]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "error: stdout: the result cannot be written (No space left on device)\n"


NAME = "e\x1b]0;own\x07x\nerror: fake hunter2-Zx"


def test_no_outlet_shows_a_secret_or_commands_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2-Zx")
    say(NAME)
    warn(NAME)
    emit({"name": [NAME]}, True, "")
    emit({}, False, NAME)
    out, err = capsys.readouterr()
    _, _, refused = run(["train", str(tmp_path / NAME)], capsys)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging; from encsearch.errors import guard_terminal; guard_terminal()\n"
            f"logging.getLogger('x').warning({NAME!r})\nraise ValueError({NAME!r})",
        ],
        capture_output=True,
        text=True,
    )
    for text in (out, err, refused, done.stderr):
        assert "hunter2" not in text
        assert "\x1b" not in text
    assert "Traceback" in done.stderr
    assert json.loads(out[: out.index("}") + 1]) == {"name": [NAME.replace("hunter2-Zx", "***")]}


def test_only_the_console_writes_to_a_terminal() -> None:
    """Whatever prints by itself is named here, with why it may."""
    package = Path(encsearch.__file__).parent
    writers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bprint\(|std(?:out|err)\.write\(", path.read_text(encoding="utf-8"))
    }
    assert writers == {
        "cli/console.py",
        "cli/jobs.py",  # the id of a job; logs, which submit/client.py has cleaned
        "cli/progress.py",  # by rich, cleaned
        "errors.py",  # tracebacks, cleaned
        "submit/client.py",  # a job's output, cleaned
        "tracking/outbox/forward.py",  # warnings of the sender, cleaned
        "tracking/outbox/sender.py",  # answers to its job, on a pipe
    }


@pytest.mark.parametrize(
    "arguments", [["resume"], ["report"], ["runs", "show"], ["predict", "--out", "out"], ["eval"], ["config"]]
)
@pytest.mark.parametrize("length", [240, 300])
def test_a_long_name_is_one_line(
    arguments: list[str], length: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run([*arguments, str(tmp_path / ("n" * length))], capsys)
    assert code in (1, 2, 3)
    assert (out, err.count("\n")) == ("", 1)


def test_a_folder_of_many_files_is_one_row_of_a_run() -> None:
    many = {f"images/{number}.webp": 1024 for number in range(6)}
    few = {"config.yaml": 10, "pictures/a.png": 1, "pictures/b.png": 1}

    assert [path for path, _ in _fold({**many, **few})] == [
        *("config.yaml", "images/ (6 files)", "pictures/a.png", "pictures/b.png")
    ]


def test_runs_of_two_stores_are_not_taken_for_runs_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encsearch.workflow.runs import find_run  # mlflow

    monkeypatch.setattr("encsearch.workflow.runs.find_job", lambda folder: SimpleNamespace(run_id="1"))
    monkeypatch.setattr("encsearch.workflow.runs.find_store", lambda job: "sqlite:////b/mlflow.db")
    with pytest.raises(UserError, match=r"recorded in sqlite:////b/mlflow.db, the first one in sqlite:////a"):
        find_run(SimpleNamespace(uri="sqlite:////a/mlflow.db"), str(tmp_path))  # type: ignore[arg-type]
