"""Job submission against a real cluster that asks for a token, from a checkout as the working directory."""

import json
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.e2e.head import Head
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, one_line, read_until

pytestmark = pytest.mark.own_ray

ROOT = Path(__file__).parents[2]
EXPERIMENT = "jobs"
NEVER_ENDING = "train.epochs=100000"


@pytest.fixture(scope="module")
def submitter(shell: Shell, cluster: Head) -> Shell:
    """At the root of the checkout, with the cluster's address and token, and a store that jobs record in."""
    return Shell(
        ROOT,
        {
            **cluster.variables,
            "RAY_ADDRESS": cluster.dashboard,
            "MLFLOW_TRACKING_URI": f"sqlite:///{shell.folder / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        },
    )


@pytest.fixture(scope="module")
def recipe(shell: Shell) -> list[str]:
    """The recipe and its output by absolute paths: a job runs in a copy of the working directory."""
    out = ["--out", str(shell.folder / "runs")]
    return [str(shell.folder / "toy.yaml"), f"data.store={shell.folder / 'scenes'}", *out]


def test_a_submitted_training_is_followed_recorded_and_listed(
    submitter: Shell, recipe: list[str], cluster: Head
) -> None:
    done = submitter.run("submit", "--id", "training", "train", *recipe, "--in-process")

    assert done.stderr.splitlines() == ["submitted training"]
    for line in ("toy epoch 1/2:", "toy epoch 2/2:", "best epoch"):
        assert line in done.stdout
    (run,) = _runs(submitter, "training")
    assert run.info.status == "FINISHED"
    job = json.loads(submitter.run("jobs", "status", "training", "--json").stdout)
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    assert job["entrypoint"].startswith("python jobs/train.py ")
    assert "training" in [job["id"] for job in json.loads(submitter.run("jobs", "list", "--json").stdout)]
    assert submitter.run("jobs", "logs", "training").stdout == done.stdout

    (copy,) = cluster.temp.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (copy / "jobs" / "train.py").is_file()
    assert {".git", ".venv", "data", "runs", "mlflow.db"}.isdisjoint(path.name for path in copy.iterdir())


def test_a_failing_job_exits_as_its_command_does(submitter: Shell) -> None:
    done = submitter.run("submit", "--id", "mistaken", "train", "no-such.yaml", code=2)

    assert "error: no-such.yaml: cannot read the recipe" in done.stdout
    submitted, failed = done.stderr.splitlines()
    assert (submitted, failed.startswith("mistaken failed: ")) == ("submitted mistaken", True)


def test_a_stopped_job_is_no_success_and_its_run_is_killed(submitter: Shell, recipe: list[str]) -> None:
    arguments = ("--no-wait", "--id", "endless", "train", *recipe, NEVER_ENDING, "--in-process")
    assert submitter.run("submit", *arguments).stdout == "endless\n"
    follower = submitter.start("encsearch", "jobs", "logs", "endless", "--follow")
    read_until(follower, "stdout", lambda line: "toy epoch 1/" in line)

    submitter.run("jobs", "stop", "endless")
    follower.communicate(timeout=COMMAND_TIMEOUT_S)

    assert follower.returncode == 130
    assert [run.info.status for run in _runs(submitter, "training")].count("KILLED") == 1
    assert "was over already" in submitter.run("jobs", "stop", "endless").stderr


def test_a_stopped_job_is_resumed_by_another(submitter: Shell, recipe: list[str], shell: Shell) -> None:
    out = shell.folder / "stopped"
    longer = [*recipe[:2], "train.epochs=4", "train.steps_per_epoch=100", "--out", str(out), "--in-process"]
    submitter.run("submit", "--no-wait", "--id", "stopped", "train", *longer)
    follower = submitter.start("encsearch", "jobs", "logs", "stopped", "--follow")
    read_until(follower, "stdout", lambda line: "toy epoch 1/" in line)
    submitter.run("jobs", "stop", "stopped")
    follower.communicate(timeout=COMMAND_TIMEOUT_S)

    (folder,) = out.iterdir()
    done = submitter.run("submit", "--id", "resumed", "resume", str(folder))
    assert "of 4 epochs" in done.stdout
    assert "best epoch" in done.stdout
    assert (folder / "run.json").exists()


def test_who_has_no_token_or_a_wrong_one_is_told_so(submitter: Shell, tmp_path: Path) -> None:
    wrong = replace(submitter, variables={**submitter.variables, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert "the cluster refused the token" in one_line(wrong.run("jobs", "list", code=3))

    # Another home, where no token lies by chance.
    nobody = {"RAY_ADDRESS": submitter.variables["RAY_ADDRESS"], "HOME": str(tmp_path)}
    stranger = replace(submitter, variables=nobody)
    assert "the cluster asks for a token" in one_line(stranger.run("jobs", "list", code=3))
    forgetful = replace(submitter, variables={**nobody, "RAY_AUTH_MODE": "token"})
    assert "holds no token" in one_line(forgetful.run("jobs", "list", code=3))


def test_an_unknown_job_and_a_taken_id_are_named(submitter: Shell) -> None:
    assert "no job nobody on this cluster" in one_line(submitter.run("jobs", "status", "nobody", code=2))
    line = one_line(submitter.run("submit", "--id", "training", "train", "toy.yaml", code=2))
    assert "job id training is taken on this cluster" in line


def _runs(submitter: Shell, kind: str) -> list[Run]:
    client = MlflowClient(tracking_uri=submitter.variables["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id], f"tags.`encsearch.kind` = '{kind}'"))
