"""Where studies are kept: two sweeps share a database and all else, a killed one goes on in PostgreSQL."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from encsearch.report.summary import from_json
from tests.e2e.head import Head
from tests.e2e.servers import PASSWORD, Postgresql
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, read_until

pytestmark = pytest.mark.own_ray

ROOT = Path(__file__).parents[2]
# Every trial and every finalist needs two of the cluster's three CPUs, so one CPU is always left over.
BRIEF = ("train.steps_per_epoch=5", "search.max_concurrent=null", "search.confirm.baselines=[]")
PAIRS = (*BRIEF, "scaling.num_workers=2")
ONE_WORKER = "search.confirm.num_workers=1"
SINGLES = (*BRIEF, "search.budget.trials=2", ONE_WORKER)
# PostgreSQL's password as it stands in a URL.
QUOTED, WRONG = "p%40ss%2Fw%3Ard", "mistaken"


def test_two_sweeps_at_once_share_a_cluster_and_a_database_and_nothing_else(
    shell: Shell, cluster: Head
) -> None:
    """One attaches to the cluster, one is a job by Ray's own command, from a checkout.

    Together they ask for more CPUs than there are, so each has to wait for the other.
    """
    uri = f"sqlite:///{shell.folder / 'mlflow.db'}"
    shared = {
        "ENCSEARCH_STORAGE": f"sqlite:///{shell.folder / 'shared.db'}",
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": "shared",
    }
    recipe = [str(shell.folder / "toy.yaml"), f"data.store={shell.folder / 'scenes'}"]
    attached = Shell(shell.folder, {**cluster.variables, **shared})
    submitter = Shell(ROOT, {**cluster.variables, "RAY_ADDRESS": cluster.dashboard})
    # Ray's command forwards no variables.
    submit = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env-json"]
    submit += [json.dumps({"env_vars": shared}), "--", "python", "jobs/sweep.py"]
    outs = [shell.folder / "attached", shell.folder / "submitted"]
    processes = [
        attached.start("encsearch", "sweep", *recipe, *PAIRS, "--out", str(outs[0])),
        submitter.start(*submit, *recipe, *SINGLES, "--out", str(outs[1])),
    ]
    try:
        said = ["".join(process.communicate(timeout=COMMAND_TIMEOUT_S)) for process in processes]
    finally:
        for process in processes:
            process.kill()

    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    folders = [folder for out in outs for folder in out.iterdir()]
    studies = optuna.get_all_study_summaries(shared["ENCSEARCH_STORAGE"])
    counts = {folder.name: count for folder, count in zip(folders, (3, 2), strict=True)}
    assert {study.study_name: study.n_trials for study in studies} == counts
    for folder in folders:
        sweep = from_json((folder / "sweep.json").read_text())
        assert [trial.number for trial in sweep.trials] == list(range(counts[folder.name]))
        (finalist,) = sweep.finalists
        assert finalist.trial is not None
        summary = json.loads((folder / "run.json").read_text())
        assert summary["run"] == f"trial{finalist.trial}-seed1"
        client = MlflowClient(tracking_uri=uri)
        assert client.get_run(summary["parent_run_id"]).info.status == "FINISHED"
        assert client.get_run(summary["run_id"]).info.run_name == summary["run"]
        names = {f"trial{trial.number}" for trial in sweep.trials} | {summary["run"]}
        assert _children(shell, summary) == dict.fromkeys(names, "FINISHED")


def test_a_killed_sweep_goes_on_in_postgresql_and_its_password_is_never_shown(
    shell: Shell, cluster: Head, postgresql: Postgresql
) -> None:
    where = {"ENCSEARCH_STORAGE": postgresql.url, "MLFLOW_EXPERIMENT_NAME": "kept"}
    kept = Shell(shell.folder, {**cluster.variables, **where})
    process = kept.start("encsearch", "sweep", "toy.yaml", *PAIRS, ONE_WORKER, "--out", "kept")
    told = read_until(process, "stderr", lambda line: "trial 1 starts" in line)
    process.kill()
    process.wait()
    (folder,) = (shell.folder / "kept").iterdir()
    wrong = Shell(shell.folder, {"ENCSEARCH_STORAGE": postgresql.url.replace(QUOTED, WRONG)})
    refused = wrong.refusal("resume", str(folder), code=3)

    done = kept.run("resume", str(folder), "--json")

    (study,) = optuna.get_all_study_summaries(postgresql.url)
    swept = json.loads(done.stdout)
    assert (study.study_name, study.n_trials) == (folder.name, 3)
    assert [trial["number"] for trial in swept["trials"]] == [0, 1, 2]
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in swept["trials"])
    assert set(_children(shell, swept)) == {"trial0", "trial1", "trial2", swept["finalists"][0]["name"]}

    assert json.loads((folder / "study.json").read_text())["storage"] == postgresql.shown
    assert f"the study's database {postgresql.shown} cannot be used: " in refused
    assert "password authentication failed" in refused
    texts = [told, refused, done.stdout, done.stderr]
    texts += [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert all(secret not in text for text in texts for secret in (PASSWORD, QUOTED, WRONG))


def _children(shell: Shell, sweep: dict[str, Any]) -> dict[str, str]:
    """The status of each of its runs in MLflow, by name."""
    client = MlflowClient(tracking_uri=f"sqlite:///{shell.folder / 'mlflow.db'}")
    condition = f"tags.`mlflow.parentRunId` = '{sweep['parent_run_id']}'"
    runs = client.search_runs([sweep["experiment_id"]], condition)
    return {run.info.run_name: run.info.status for run in runs}
