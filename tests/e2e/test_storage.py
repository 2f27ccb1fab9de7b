"""Where studies are kept: two sweeps share a database and all else, a killed one goes on in PostgreSQL."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from tests.e2e.head import Head
from tests.e2e.servers import PASSWORD, Postgresql
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, read_until

pytestmark = pytest.mark.ray

# Every trial and every finalist needs two of the cluster's three CPUs, so one CPU is always left over.
BRIEF = ("train.steps_per_epoch=5", "search.max_concurrent=null", "search.confirm.baselines=[]")
PAIRS = (*BRIEF, "scaling.num_workers=2")
SINGLES = (*BRIEF, "search.budget.trials=2")
ONE_WORKER = "search.confirm.num_workers=1"
# PostgreSQL's password as it stands in a URL.
QUOTED, WRONG = "p%40ss%2Fw%3Ard", "mistaken"


def test_two_sweeps_at_once_share_a_cluster_and_a_database_and_nothing_else(
    shell: Shell, cluster: Head
) -> None:
    """Together they ask for more CPUs than there are, so each has to wait for the other."""
    shared = {"ENCSEARCH_STORAGE": "sqlite:///shared.db", "MLFLOW_EXPERIMENT_NAME": "shared"}
    both = Shell(shell.folder, {**cluster.variables, **shared})
    processes = [both.start("encsearch", "sweep", "toy.yaml", *o, "--json") for o in (PAIRS, SINGLES)]
    try:
        outputs = [process.communicate(timeout=COMMAND_TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    sweeps = [json.loads(out) for out, _ in outputs]

    studies = optuna.get_all_study_summaries(f"sqlite:///{shell.folder / 'shared.db'}")
    assert {study.study_name: study.n_trials for study in studies} == {
        Path(sweep["folder"]).name: count for sweep, count in zip(sweeps, (3, 2), strict=True)
    }
    for sweep, count in zip(sweeps, (3, 2), strict=True):
        assert [trial["number"] for trial in sweep["trials"]] == list(range(count))
        (finalist,) = sweep["finalists"]
        names = {f"trial{number}" for number in range(count)} | {finalist["name"]}
        assert _children(shell, sweep) == dict.fromkeys(names, "FINISHED") | {
            f"trial{t['number']}": "KILLED" for t in sweep["trials"] if t["state"] == "PRUNED"
        }
        told = json.loads((shell.folder / sweep["folder"] / "run.json").read_text())
        assert (told["parent_run_id"], told["run_id"]) == (sweep["parent_run_id"], sweep["run_id"])


def test_a_killed_sweep_goes_on_in_postgresql_and_its_password_is_never_shown(
    shell: Shell, cluster: Head, postgresql: Postgresql, ray_here: None
) -> None:
    """It goes on here and not on the cluster, on two CPUs, for trials that take both."""
    kept = Shell(shell.folder, {"ENCSEARCH_STORAGE": postgresql.url, "MLFLOW_EXPERIMENT_NAME": "kept"})
    there = Shell(shell.folder, {**kept.variables, **cluster.variables})
    process = there.start("encsearch", "sweep", "toy.yaml", *PAIRS, ONE_WORKER, "--out", "kept")
    told = read_until(process, "stderr", lambda line: "trial 1 starts" in line)
    process.kill()
    process.wait()
    (folder,) = (shell.folder / "kept").iterdir()
    wrong = Shell(shell.folder, {"ENCSEARCH_STORAGE": postgresql.url.replace(QUOTED, WRONG)})
    refused = wrong.refusal("resume", str(folder), code=3)

    done = kept.encsearch("resume", str(folder), "--json")

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
