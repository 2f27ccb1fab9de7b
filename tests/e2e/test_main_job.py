"""The main job as a user does it: check, sweep, promote, evaluate, predict, report; and what may go wrong."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from encsearch.config import flatten, load_config, with_values
from tests.e2e.conftest import NUM_TRAIN, NUM_VAL, RECIPE
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, one_line, read_until

pytestmark = pytest.mark.ray

ENDED_TIMEOUT_S = 120
TRIALS = ("trial0", "trial1", "trial2")
EXPLAINED = {"config.yaml", "tables", "pictures"}


@pytest.fixture(scope="module")
def promoted(shell: Shell, swept: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(shell.encsearch("promote", swept["folder"], "--json").stdout)
    return result


@pytest.fixture(scope="module")
def client(shell: Shell) -> MlflowClient:
    uri = f"sqlite:///{shell.folder / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_check_counts_what_a_training_would_use(shell: Shell) -> None:
    found = json.loads(shell.encsearch("check", "toy.yaml", "--json").stdout)
    assert (found["num_train"], found["num_val"]) == (NUM_TRAIN, NUM_VAL)
    assert found["steps_per_epoch"] == 20
    assert found["num_parameters"] > 0


def test_a_sweep_names_its_trials_its_finalists_and_its_winner(swept: dict[str, Any]) -> None:
    states = [trial["state"] for trial in swept["trials"]]
    assert states[:2] == ["COMPLETE", "PRUNED"]
    assert [trial["values"] for trial in swept["trials"][:2]] == RECIPE["search"]["enqueue"]
    finalist, baseline = swept["finalists"]
    best = max(swept["trials"], key=lambda trial: (len(trial["curve"]), trial["value"]))
    assert finalist["trial"] == best["number"]
    assert (baseline["name"], baseline["trial"]) == (f"trial{best['number']}-FCN-seed1", None)
    assert swept["value"] == finalist["value"] == finalist["best"]["metrics"]["mIoU"]


def test_mlflow_holds_a_parent_and_a_true_child_of_each_training(
    shell: Shell, swept: dict[str, Any], client: MlflowClient
) -> None:
    parent = client.get_run(swept["parent_run_id"])
    assert (parent.info.status, parent.data.tags["encsearch.kind"]) == ("FINISHED", "sweep")
    assert "mlflow.parentRunId" not in parent.data.tags
    assert "report.html" in artifacts(client, parent)

    children = {run.info.run_name: run for run in runs_of(client, parent.info.run_id)}
    finalist, baseline = swept["finalists"]
    assert set(children) == {*TRIALS, finalist["name"], baseline["name"]}
    assert {run.info.status for run in children.values()} == {"FINISHED"}  # also of those stopped early
    assert swept["run_id"] == children[finalist["name"]].info.run_id

    config = load_config(shell.folder / "toy.yaml")
    for trial in swept["trials"]:
        run = children[f"trial{trial['number']}"]
        expected = flatten(with_values(config, trial["values"]).model_copy(update={"search": None}))
        others = ("search", "ablate", "eval", "promote", "code")
        assert set(run.data.params) == {path for path in expected if not path.startswith(others)}
        shown = {path: json.loads(run.data.params[path]) for path in trial["values"]}
        assert shown == pytest.approx(trial["values"], rel=1e-5)  # MLflow gets six digits
        assert run.data.metrics["best/mIoU"] == pytest.approx(max(v for _, v in trial["curve"]), rel=1e-5)
        assert run.data.tags["encsearch.kind"] == "trial"
    for run in children.values():
        assert run.data.tags["data.fingerprint"] == swept["fingerprint"]
        assert {"version.encsearch", "version.ray", "version.torch"} <= set(run.data.tags)
        assert artifacts(client, run) >= EXPLAINED
    assert children[finalist["name"]].data.params["scaling.num_workers"] == "2"


def test_promote_moves_the_alias_once(
    shell: Shell, swept: dict[str, Any], promoted: dict[str, Any], client: MlflowClient
) -> None:
    assert (promoted["uri"], promoted["version"], promoted["replaced"]) == ("models:/toy@champion", "1", None)
    line = shell.refusal("promote", swept["folder"], code=4)
    assert f"{swept['folder']} is not promoted to champion" in line
    version = client.get_model_version_by_alias("toy", "champion")
    assert (str(version.version), version.run_id) == ("1", swept["run_id"])
    assert len(client.search_model_versions("name='toy'")) == 1
    note = client.get_run(swept["parent_run_id"]).data.tags["mlflow.note.content"]
    assert note.startswith("Model: [toy, version 1](#/models/toy/versions/1?")
    assert note.count("Model: ") == 1


def test_the_champion_and_the_folder_score_as_the_training_did(
    shell: Shell, swept: dict[str, Any], promoted: dict[str, Any]
) -> None:
    champion = json.loads(shell.encsearch("eval", promoted["uri"], "--json").stdout)
    folder = json.loads(shell.encsearch("eval", swept["folder"], "--json").stdout)
    assert champion["mean_iou"] == pytest.approx(swept["value"], abs=1e-6)
    assert champion == folder
    assert np.sum(champion["confusion"]) > 0


def test_images_of_any_size_get_label_maps_of_their_size(
    shell: Shell, promoted: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"odd": (97, 61), "wide": (131, 40), "store's": (64, 64)}
    (tmp_path / "images").mkdir()
    for name, size in sizes.items():
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "images" / f"{name}.png")
    out = tmp_path / "out"
    done = shell.encsearch("predict", promoted["uri"], str(tmp_path / "images"), "--out", str(out), "--json")
    assert len(json.loads(done.stdout)) == len(sizes)
    for name, size in sizes.items():
        with Image.open(out / f"{name}.png") as labels, Image.open(out / f"{name}.overlay.png") as overlay:
            assert (labels.mode, labels.size, overlay.size) == ("P", size, size)


def test_the_report_can_be_written_anew_and_the_ui_is_linked(shell: Shell, swept: dict[str, Any]) -> None:
    report = shell.folder / swept["report"]
    page = report.read_text()
    report.unlink()
    assert shell.encsearch("report", swept["folder"]).stdout.strip() == swept["report"]
    assert report.read_text() == page

    links = json.loads(shell.encsearch("ui", swept["folder"], "--json").stdout)
    assert f"sqlite:///{shell.folder / 'mlflow.db'}" in links["open MLflow"]
    assert swept["parent_run_id"] in links["trials"]
    assert links["best run"].split("?")[0].endswith(f"/runs/{swept['run_id']}")


@pytest.mark.fast
def test_a_training_by_one_worker_is_recorded(shell: Shell, client: MlflowClient, ray_here: None) -> None:
    done = json.loads(shell.encsearch("train", "toy.yaml", "--json").stdout)
    run = client.get_run(done["run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", Path(done["folder"]).name)
    assert done["value"] == done["best"]["metrics"]["mIoU"]
    assert run.data.metrics["best/mIoU"] == pytest.approx(done["value"], rel=1e-5)
    assert artifacts(client, run) >= EXPLAINED | {"bundle"}
    assert json.loads((shell.folder / done["folder"] / "run.json").read_text())["run_id"] == done["run_id"]


@pytest.mark.own_ray
def test_ctrl_c_ends_a_training_its_record_and_its_processes(shell: Shell, client: MlflowClient) -> None:
    err = stop_at(shell, "toy epoch 1/", signal.SIGINT, "train", "toy.yaml", "train.epochs=1000")
    (run,) = runs_named(client, err)
    assert run.info.status == "KILLED"
    assert run.data.metrics["epoch"] >= 1


@pytest.mark.own_ray
def test_sigterm_ends_a_sweep_its_records_and_its_processes(shell: Shell, client: MlflowClient) -> None:
    err = stop_at(shell, "trial 0 starts", signal.SIGTERM, "sweep", "toy.yaml", "train.epochs=1000")
    (parent,) = runs_named(client, err)
    (trial,) = runs_of(client, parent.info.run_id)
    assert (parent.info.status, trial.info.status) == ("KILLED", "KILLED")


def test_an_unreachable_tracking_server_is_refused_before_anything_is_made(
    shell: Shell, tmp_path: Path
) -> None:
    offline = Shell(shell.folder, {"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"})
    out = tmp_path / "runs"
    line = offline.refusal("train", "toy.yaml", "--out", str(out), code=3)
    assert "MLflow at http://127.0.0.1:9 cannot be used" in line
    assert not out.exists()


def test_an_unreachable_cluster_is_refused_before_anything_is_made(shell: Shell, tmp_path: Path) -> None:
    offline = Shell(tmp_path, {"RAY_ADDRESS": "127.0.0.1:9"})
    recipe, store = shell.folder / "toy.yaml", shell.folder / "scenes"
    line = one_line(offline.run("train", str(recipe), f"data.store={store}", code=3))
    assert "Ray at RAY_ADDRESS=127.0.0.1:9 cannot be reached" in line
    assert list(tmp_path.iterdir()) == []


def stop_at(shell: Shell, line: str, signum: signal.Signals, *arguments: str) -> str:
    """Run a command up to a line on stderr, then end it by a signal; returns stderr.

    Ctrl-C in a terminal reaches the whole process group; what Kubernetes and Slurm send, the process alone.
    """
    process = shell.start("encsearch", *arguments)
    err = read_until(process, "stderr", lambda text: line in text)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in started)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    out, rest = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 128 + signum, err + rest
    assert out == ""
    assert "Traceback" not in err + rest
    _, left = psutil.wait_procs(started, timeout=ENDED_TIMEOUT_S)
    assert left == []
    return err + rest


def runs_named(client: MlflowClient, err: str) -> list[Run]:
    """The runs that have the name of the folder which a command said it writes to."""
    (name,) = re.findall(r"files in \S*/runs/(\S+)", err)
    return find(client, f"attributes.run_name = '{name}'")


def runs_of(client: MlflowClient, parent_run_id: str) -> list[Run]:
    return find(client, f"tags.`mlflow.parentRunId` = '{parent_run_id}'")


def find(client: MlflowClient, condition: str) -> list[Run]:
    experiment = client.get_experiment_by_name("encsearch")
    return list(client.search_runs([experiment.experiment_id], condition))


def artifacts(client: MlflowClient, run: Run) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id)}
