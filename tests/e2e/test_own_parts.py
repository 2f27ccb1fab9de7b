"""Own parts, those of examples/: searched on Ray, promoted, and loaded where their module is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from encsearch.errors import UserError
from encsearch.inference.bundle import read_bundle
from encsearch.tracking.mlflow import connect
from encsearch.tracking.registry.fetch import fetch_bundle
from tests.e2e.shell import Shell, refusal_in

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Shell:
    """A folder with the parts, their recipe, and MLflow's store."""
    shell = Shell(tmp_path_factory.mktemp("parts"))
    shutil.copy(empty_database, shell.folder)
    for name in ("my_parts.py", "own.yaml"):
        shutil.copy(EXAMPLES / name, shell.folder)
    return shell


@pytest.fixture(scope="module")
def swept(shell: Shell, ray_here: None) -> dict[str, Any]:
    done = shell.encsearch("sweep", "own.yaml", "--json", "search.budget.trials=2", "train.epochs=1")
    assert "copying 32 samples of my_parts:Stripes" in done.stderr
    assert "own parts, each tried by its contract: my_parts:Backbone," in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def elsewhere(shell: Shell, swept: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Another folder, without the module, that has the registry with the promoted model."""
    shell.encsearch("promote", swept["folder"])
    uri = f"sqlite:///{shell.folder}/mlflow.db"
    return Shell(tmp_path_factory.mktemp("elsewhere"), {"MLFLOW_TRACKING_URI": uri})


def test_every_run_says_what_its_parts_are_made_of(shell: Shell, swept: dict[str, Any]) -> None:
    client = MlflowClient(f"sqlite:///{shell.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("encsearch").experiment_id])
    assert len(runs) == 4  # the sweep, two trials, a finalist
    digests = {run.data.tags["code.sha256"] for run in runs}
    bundle = read_bundle(next(Path(swept["folder"]).rglob("code.json")).parent)
    assert bundle.code
    assert digests == {bundle.code.digest}
    trial = next(run for run in runs if run.data.tags["encsearch.kind"] == "trial")
    assert "model.args.my_parts:Backbone.width" in trial.data.params
    assert 0 <= trial.data.metrics["best/my_parts:ImageMIoU"] <= 1


def test_the_champion_is_used_where_its_module_is_not(elsewhere: Shell, shell: Shell) -> None:
    (store,) = (shell.folder / "runs" / "stores").iterdir()
    done = elsewhere.run("eval", "models:/encnet@champion", "--store", str(store), "--json")
    assert json.loads(done.stdout)
    assert "the model's own parts run code: my_parts.py (SHA-256 " in done.stderr


def test_code_that_was_exchanged_is_not_run(elsewhere: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a `code.json` that fits: the version's tag does not."""
    uri = elsewhere.variables["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = connect(uri, "encsearch").client
    client.set_model_version_tag("encnet", "1", "code.sha256", 64 * "0")
    with pytest.raises(UserError, match="was registered with 000000000000; it is not run"):
        fetch_bundle("models:/encnet/1")


def test_a_resume_refuses_a_part_that_has_changed(shell: Shell, swept: dict[str, Any]) -> None:
    source = shell.folder / "my_parts.py"
    kept = source.read_text()
    source.write_text(kept.replace("radius: int = 1", "radius: int = 3"))
    try:
        refused = shell.encsearch("resume", swept["folder"], "--extend", "1", code=3)
    finally:
        source.write_text(kept)
    assert "my_parts.py is not what it was when the job began" in refusal_in(refused.stderr)
