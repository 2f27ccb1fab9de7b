"""A registered model: its page, a clean environment that loads it, and MLflow's own scoring server."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.registry.fetch import load
from encsearch.tracking.registry.packaging import register
from tests.e2e.head import free_ports
from tests.e2e.shell import Shell
from tests.e2e.tiny_model import noise, pixels_of, png, write_tiny_model

INSTALL_TIMEOUT_S = 120
READY_TIMEOUT_S = 180


@dataclass(frozen=True)
class Registered:
    tracking: Tracking
    bundle: Path
    version: str

    @property
    def files(self) -> str:
        return str(self.tracking.client.get_model_version_download_uri("toy", self.version))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Registered:
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_database, folder)
    tracking = connect(f"sqlite:///{folder}/mlflow.db", "toys")
    bundle = write_tiny_model(folder / "bundle")
    run_id = tracking.client.create_run(tracking.experiment_id).info.run_id
    return Registered(tracking, bundle, register(tracking, run_id, bundle, "toy", {"mIoU": "0.5"}))


def test_the_page_of_a_version_tells_what_it_is(registered: Registered, tmp_path: Path) -> None:
    found = registered.tracking.client.get_model_version("toy", registered.version)
    assert found.description == (registered.bundle / "README.md").read_text()
    assert found.tags["weights.sha256"] in (registered.bundle / "weights.sha256").read_text()
    assert found.tags["mIoU"] == "0.5"
    files = Path(mlflow.artifacts.download_artifacts(registered.files, dst_path=str(tmp_path)))
    assert not [path for path in files.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    (bundle,) = (path.parent for path in files.rglob("model.safetensors"))
    assert {path.name for path in bundle.iterdir()} == {path.name for path in registered.bundle.iterdir()}


USE = """
import json, sys
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
images = numpy.load(sys.argv[2])
files = pandas.DataFrame({"image": [open(sys.argv[3], "rb").read()]})
found = [model.predict(images), model.predict(images[0]), model.predict(files)]
assert "encsearch" in sys.modules and not {"ray", "optuna", "matplotlib"} & sys.modules.keys()
print(json.dumps([[row["labels"].tolist() for row in rows] for rows in found]))
"""


def test_a_clean_environment_with_its_own_requirements_loads_it_and_no_pickle_is_read(
    registered: Registered, tmp_path: Path
) -> None:
    files = mlflow.artifacts.download_artifacts(registered.files, dst_path=str(tmp_path / "model"))
    clean = tmp_path / "clean"
    shell = Shell(tmp_path, {"VIRTUAL_ENV": str(clean), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    images = np.stack([noise(33, 47), noise(33, 47, seed=1)])
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "image.png").write_bytes(png(images[0]))
    try:
        _install(shell, f"{files}/requirements.txt")
        # -P: nothing is imported from the folder that it runs in.
        command = [str(clean / "bin" / "python"), "-P", "-c", USE, files, "images.npy", "image.png"]
        done = shell.start(*command)
        out, err = done.communicate(timeout=READY_TIMEOUT_S)
    finally:
        shutil.rmtree(clean, ignore_errors=True)  # 5 GB
    assert done.returncode == 0, err
    first, second = (labels.tolist() for labels in load(registered.bundle).predict(images))
    assert json.loads(out) == [[first, second], [first], [first]]


def _install(shell: Shell, requirements: str) -> None:
    """Skips the test where there is no uv, or no registry that answers in time."""
    for command in (["uv", "venv", "clean"], ["uv", "pip", "install", "-r", requirements]):
        try:
            process = shell.start(*command)
        except FileNotFoundError:
            pytest.skip("no uv")
        try:
            _, err = process.communicate(timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.skip(f"the registry took more than {INSTALL_TIMEOUT_S} s")
        if process.returncode:
            pytest.skip(f"cannot be installed here: {err.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def scoring_server(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve`, in a process of its own; yields its address."""
    (port,) = free_ports(1)
    shell = Shell(tmp_path_factory.mktemp("server"), {"MLFLOW_TRACKING_URI": registered.tracking.uri})
    source = f"models:/toy/{registered.version}"
    command = ["mlflow", "models", "serve", "-m", source, "--env-manager", "local", "--port", str(port)]
    process = shell.start(*command)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _answers(f"{url}/ping"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"not ready after {READY_TIMEOUT_S} s"
            time.sleep(0.2)
        yield url
    finally:
        # Its group: `mlflow models serve` starts uvicorn by a shell.
        subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.communicate(timeout=READY_TIMEOUT_S)


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def text(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(png(image)).decode()


def invoke(url: str, body: bytes, media: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": media})
    try:
        answer = urllib.request.urlopen(request, timeout=READY_TIMEOUT_S)
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    return answer.status, json.loads(answer.read())["predictions"]


def test_mlflows_server_answers_as_the_bundle_does(registered: Registered, scoring_server: str) -> None:
    images = [noise(33, 47), noise(24, 32)]
    texts = [text(image) for image in images]
    expected = load(registered.bundle)
    for request in (
        {"dataframe_split": {"columns": ["image"], "data": [[one] for one in texts]}},
        {"dataframe_records": [{"image": one} for one in texts]},
        {"inputs": {"image": texts}},
        {"inputs": texts},
        {"instances": [{"image": one} for one in texts]},
    ):
        status, rows = invoke(scoring_server, json.dumps(request).encode())
        assert status == 200, rows
        for row, image in zip(rows, images, strict=True):
            assert np.array_equal(row["labels"], expected.predict(image)[0])
            assert row["presence"] == pytest.approx(expected.predict_presence(image)[0], abs=1e-5)
    as_png = {"inputs": {"image": texts[:1]}, "params": {"labels": "png"}}
    _, (row,) = invoke(scoring_server, json.dumps(as_png).encode())
    assert np.array_equal(pixels_of(base64.b64decode(row["labels"])), expected.predict(images[0])[0])


def test_a_variable_says_how_many_pixels_may_come_as_text_in_one_request(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(33, 47)
    given = {"image": np.array([text(image), text(image)], dtype=object)}
    monkeypatch.setenv("ENCSEARCH_MAX_PIXELS", "3102")
    assert len(mlflow.pyfunc.load_model(registered.files).predict(given)) == 2
    monkeypatch.setenv("ENCSEARCH_MAX_PIXELS", "3101")
    with pytest.raises(MlflowException, match="image 1: 3,102 pixels up to here in one request, but 3,101"):
        mlflow.pyfunc.load_model(registered.files).predict(given)
    monkeypatch.setenv("ENCSEARCH_MAX_PIXELS", "4e6")
    with pytest.raises(MlflowException, match="ENCSEARCH_MAX_PIXELS=4e6 is no number of pixels"):
        mlflow.pyfunc.load_model(registered.files)


def test_mlflows_server_reads_no_file_and_answers_400_to_what_is_no_image(
    scoring_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(noise(8, 8)))
    for body, media in (
        (json.dumps({"inputs": {"image": [str(path)]}}), "application/json"),
        (f'image\n"{path}"\n', "text/csv"),
        (json.dumps({"inputs": {"image": ["bm90IGFuIGltYWdl"]}}), "application/json"),
        (json.dumps({"inputs": {"picture": ["x"]}}), "application/json"),
        (json.dumps({"inputs": {"image": [[[1, 2, 3]]]}}), "application/json"),
        (json.dumps({"inputs": {"image": [text(np.zeros((2100, 2100, 3), np.uint8))]}}), "application/json"),
        (json.dumps({"inputs": {"image": []}, "params": {"labels": "gif"}}), "application/json"),
        ("{", "application/json"),
    ):
        status, answer = invoke(scoring_server, body.encode(), media)
        assert status == 400, (body, answer)
