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


# Put before everything else on the path: what the extra `client` does not install cannot be imported.
CLIENT_ALONE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "torchvision", "ray", "mlflow", "optuna", "numpy", "pyarrow", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def submitter(shell: Shell, cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """At the root of the checkout, with the client's packages alone, the cluster's address and token.

    Jobs record in a store that they see.
    """
    client_alone = tmp_path_factory.mktemp("client")
    (client_alone / "sitecustomize.py").write_text(CLIENT_ALONE)
    return Shell(
        ROOT,
        {
            **cluster.variables,
            "PYTHONPATH": str(client_alone),
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
    submitter: Shell, shell: Shell, recipe: list[str], cluster: Head
) -> None:
    done = submitter.run("submit", "--id", "training", "train", *recipe, "--in-process")

    assert done.stderr.splitlines() == ["submitted training"]
    for line in ("toy epoch 1/2:", "toy epoch 2/2:", "best epoch"):
        assert line in done.stdout
    (run,) = _runs(submitter, "training")
    assert run.info.status == "FINISHED"
    job = json.loads(submitter.run("jobs", "status", "training", "--json").stdout)
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    assert job["entrypoint"].startswith("exec python -m encsearch train --name training ")
    assert (shell.folder / "runs" / "training" / "run.json").is_file()
    assert "training" in [job["id"] for job in json.loads(submitter.run("jobs", "list", "--json").stdout)]
    assert submitter.run("jobs", "logs", "training").stdout == done.stdout
    assert submitter.run("jobs", "links", "training").stdout == f"job: {cluster.dashboard}/#/jobs/training\n"
    submitter.run("jobs", "wait", "training")

    (copy,) = cluster.temp.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (copy / "encsearch" / "__main__.py").is_file()
    assert {".git", ".venv", "data", "runs", "mlflow.db"}.isdisjoint(path.name for path in copy.iterdir())


def test_a_failing_job_exits_as_its_command_does(submitter: Shell, recipe: list[str]) -> None:
    elsewhere = [recipe[0], "data.store=/nowhere", *recipe[2:]]
    done = submitter.run("submit", "--id", "mistaken", "train", *elsewhere, code=3)

    assert "error: /nowhere" in done.stdout
    submitted, failed = done.stderr.splitlines()
    assert (submitted, failed.startswith("mistaken failed: ")) == ("submitted mistaken", True)
    submitter.run("jobs", "wait", "mistaken", code=3)


def test_what_the_cluster_cannot_find_is_refused_here(submitter: Shell) -> None:
    said = one_line(submitter.run("submit", "train", "camvid", "--out", "/shared/runs", code=2))
    assert "data.store data/camvid is relative" in said
    assert "needs numpy, which is not installed" in one_line(submitter.run("train", "camvid", code=3))


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


def test_a_stopped_job_that_is_submitted_again_goes_on(
    submitter: Shell, recipe: list[str], shell: Shell
) -> None:
    out = shell.folder / "stopped"
    longer = [*recipe[:2], "train.epochs=4", "train.steps_per_epoch=100", "--out", str(out), "--in-process"]
    submitter.run("submit", "--no-wait", "--id", "stopped", "train", *longer)
    follower = submitter.start("encsearch", "jobs", "logs", "stopped", "--follow")
    read_until(follower, "stdout", lambda line: "toy epoch 1/" in line)
    submitter.run("jobs", "stop", "stopped")
    follower.communicate(timeout=COMMAND_TIMEOUT_S)

    done = submitter.run("submit", "--id", "stopped", "train", *longer)
    assert done.stderr == "submitted stopped-2\n"
    assert "of 4 epochs" in done.stdout
    assert "best epoch" in done.stdout
    assert (out / "stopped" / "run.json").exists()
    again = submitter.run("submit", "--id", "stopped", "train", *longer)
    assert "the training is finished" in again.stdout
    other = submitter.run("submit", "--id", "stopped", "train", *longer, "optim.lr=0.5", code=2)
    assert "optim.lr=0.5: the job has begun" in other.stdout


def test_who_has_no_token_or_a_wrong_one_is_told_so(submitter: Shell, tmp_path: Path) -> None:
    wrong = replace(submitter, variables={**submitter.variables, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert "the cluster refused the token" in one_line(wrong.run("jobs", "list", code=3))

    # Another home, where no token lies by chance.
    nobody = {"RAY_ADDRESS": submitter.variables["RAY_ADDRESS"], "HOME": str(tmp_path)}
    stranger = replace(submitter, variables=nobody)
    assert "the cluster asks for a token" in one_line(stranger.run("jobs", "list", code=3))
    forgetful = replace(submitter, variables={**nobody, "RAY_AUTH_MODE": "token"})
    assert "holds no token" in one_line(forgetful.run("jobs", "list", code=3))


def test_a_job_that_runs_is_not_started_twice(submitter: Shell, recipe: list[str]) -> None:
    job = ("submit", "--no-wait", "--id", "twice", "train", *recipe, NEVER_ENDING, "--in-process")
    first, second = (submitter.run(*job) for _ in range(2))
    assert (first.stdout, second.stdout) == ("twice\n", "twice\n")
    assert (first.stderr, second.stderr) == ("submitted twice\n", "twice runs already\n")
    submitter.run("jobs", "stop", "twice")
    submitter.run("jobs", "wait", "twice", code=130)


def test_an_unknown_job_is_named(submitter: Shell) -> None:
    assert "no job nobody on this cluster" in one_line(submitter.run("jobs", "status", "nobody", code=2))


def _runs(submitter: Shell, kind: str) -> list[Run]:
    client = MlflowClient(tracking_uri=submitter.variables["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id], f"tags.`encsearch.kind` = '{kind}'"))
