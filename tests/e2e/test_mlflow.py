"""The connection and the registry against a real MLflow: an SQLite store, and its HTTP server."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow.artifacts
import numpy as np
import pytest
import torch
from werkzeug.serving import BaseWSGIServer, make_server

from encsearch.config import Config, DataConfig, ModelConfig
from encsearch.data.datasets import DatasetInfo, default_palette
from encsearch.errors import PreflightError, UserError
from encsearch.inference.bundle import Bundle, write_bundle
from encsearch.model.encnet import EncNet
from encsearch.tracking.browse.links import ui_command
from encsearch.tracking.mlflow import Tracking, check_run, connect
from encsearch.tracking.registry.fetch import load
from encsearch.tracking.registry.packaging import register
from encsearch.tracking.registry.versions import download_bundle

INFO = DatasetInfo("toy", ("sky", "road (wet)", "car"), default_palette(3))
CONFIG = Config(
    data=DataConfig(store="store"),
    model=ModelConfig(backbone="tiny", output_stride=4, num_codewords=4, channels=8),
)


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One store for all tests, which is set up here: it takes seconds."""
    return connect(f"sqlite:///{tmp_path_factory.mktemp('my store')}/mlflow.db", "toys")


def start(tracking: Tracking) -> str:
    run_id: str = tracking.client.create_run(tracking.experiment_id, run_name="toy").info.run_id
    return run_id


def test_a_run_that_another_store_holds_is_not_promoted_here(tracking: Tracking) -> None:
    check_run(tracking, start(tracking))
    with pytest.raises(UserError, match="has no run 0123; set MLFLOW_TRACKING_URI to the store"):
        check_run(tracking, "0123")


def plan_of_a_history(database: Path) -> str:
    """How SQLite finds what `MlflowClient.get_metric_history` asks for."""
    with sqlite3.connect(database) as connection:
        query = "SELECT * FROM metrics WHERE run_uuid = 'r1' AND key = 'a' ORDER BY timestamp, step, value"
        return str(connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())


def test_a_store_finds_the_figures_of_one_run(tracking: Tracking, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copy(tracking.uri.removeprefix("sqlite:///"), database)
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE sqlite_stat1")
    assert "(key=?)" in plan_of_a_history(database), "SQLite does without"
    for _ in range(2):
        connect(f"sqlite:///{database}", "toys")
        assert "(run_uuid=? AND key=?)" in plan_of_a_history(database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE sqlite_stat1 SET stat = '9 9' WHERE idx = 'index_metrics_run_uuid'")
    connect(f"sqlite:///{database}", "toys")
    with sqlite3.connect(database) as connection:
        assert ("9 9",) in connection.execute("SELECT stat FROM sqlite_stat1").fetchall(), (
            "measured ones stay"
        )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundles") / "best"
    model = EncNet.from_config(CONFIG.model, len(INFO.classes)).eval()
    write_bundle(Bundle(model, CONFIG, INFO, "abc", metrics={"mIoU": 0.5}), folder)
    return folder


@pytest.fixture(scope="session")
def versions(tracking: Tracking, bundle: Path) -> tuple[str, str]:
    """Two versions of the model "toy", the second one the champion after the first."""
    run_id = start(tracking)
    first, second = (register(tracking, run_id, bundle, "toy", {"mIoU": text}) for text in ("0.5", "0.6"))
    tracking.client.set_registered_model_alias("toy", "champion", second)
    return first, second


@pytest.mark.parametrize("source", ["models:/toy@champion", "models:/toy/1"])
def test_a_registered_model_predicts_as_its_bundle_does(
    tracking: Tracking,
    versions: tuple[str, str],
    bundle: Path,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(37, 53), (97, 131)]]
    for mask, expected in zip(load(source).predict(images), load(bundle).predict(images), strict=True):
        assert np.array_equal(mask, expected)
    names = {experiment.name for experiment in tracking.client.search_experiments()}
    assert names == {"Default", "toys"}, "loading a model must not create an experiment"


def test_a_process_without_our_package_loads_the_model_with_the_code_it_carries(
    tracking: Tracking,
    versions: tuple[str, str],
    tmp_path: Path,
) -> None:
    script = """
import sys, mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/toy@champion")
print(model.predict(numpy.zeros((2, 33, 47, 3), numpy.uint8))[1]["labels"].shape)
print(sys.modules["encsearch"].__file__)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, tracking.uri], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shape, module = result.stdout.splitlines()
    assert result.stderr == ""
    assert shape == "(33, 47)"
    assert Path(module).parent.parent.name == "code", "not the copy in the model's folder"


def test_a_model_of_a_timm_backbone_carries_that_requirement(
    tracking: Tracking, bundle: Path, tmp_path: Path
) -> None:
    shape = ModelConfig(backbone="timm:lcnet_035", output_stride=16, channels=8)
    model = EncNet.from_config(shape, len(INFO.classes))
    config = CONFIG.model_copy(update={"model": shape})
    write_bundle(Bundle(model, config, INFO, "abc", metrics={}), tmp_path / "bundle")
    run_id = start(tracking)

    for folder, needs_timm in ((tmp_path / "bundle", True), (bundle, False)):
        version = register(tracking, run_id, folder, "served", {})
        source = tracking.client.get_model_version_download_uri("served", version)
        requirements = mlflow.artifacts.load_text(f"{source}/requirements.txt").splitlines()
        assert any(line.startswith("timm==") for line in requirements) == needs_timm


def test_artifacts_of_a_run_are_a_source_too(tracking: Tracking, bundle: Path, tmp_path: Path) -> None:
    run_id = start(tracking)
    tracking.client.log_artifacts(run_id, str(bundle.parent))
    folder = download_bundle(tracking, f"runs:/{run_id}/best", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="has no model bundle among its artifacts"):
        download_bundle(tracking, f"runs:/{run_id}/worst", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/nobody@champion", "no model nobody with a version; its models are .*toy"),
        ("models:/toy@winner", r"no alias winner; its aliases are champion \(version 2\)"),
        ("models:/toy/7", "no version 7; its versions are 2, 1"),
        ("models:/toy/latest", "not a model source"),
    ],
)
def test_a_source_that_does_not_exist_is_answered_with_what_does(
    tracking: Tracking,
    versions: tuple[str, str],
    tmp_path: Path,
    source: str,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        download_bundle(tracking, source, tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@127.0.0.1:9",
        "http://me:secret@127.0.0.1:port",
        "postgres://me:secret@127.0.0.1/mlflow",
        "file:///tmp/mlruns",
        "sqlite://mlflow.db",
        "sqlite:////dev/null",
        f"sqlite:///{__file__}",
    ],
)
def test_a_store_that_cannot_be_used_is_refused_in_one_line_without_secrets(uri: str) -> None:
    with pytest.raises(PreflightError) as caught:
        connect(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.fixture
def serve(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], BaseWSGIServer]]:
    """Starts MLflow's server over the store in a thread of this process, on a given port or a free one."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", tracking.uri)
    monkeypatch.setenv(
        "_MLFLOW_SERVER_ARTIFACT_ROOT", Path(tracking.uri.removeprefix("sqlite:///")).parent.as_uri()
    )
    from mlflow.server import app

    servers: list[BaseWSGIServer] = []

    def start_server(port: int) -> BaseWSGIServer:
        server = make_server("127.0.0.1", port, app, threaded=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start_server
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_registry_over_http_needs_no_global_store(
    serve: Callable[[int], BaseWSGIServer], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracking = connect(f"http://127.0.0.1:{serve(0).port}", "toys")
    version = register(tracking, start(tracking), bundle, "served", {"mIoU": "0.5"})
    folder = download_bundle(tracking, f"models:/served/{version}", tmp_path / "fetched")
    assert (folder / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_ui_command_opens_this_store(tracking: Tracking) -> None:
    command = ui_command(tracking.uri)
    assert command is not None
    assert f"--backend-store-uri '{tracking.uri}' --host 127.0.0.1" in command
    assert ui_command("http://127.0.0.1:5000") is None
