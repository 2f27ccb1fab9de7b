"""The folder that a command is called in: none of its files is run, and a job outlives it."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.chaos.sweeps import title
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, read_until

pytestmark = pytest.mark.ray

START_TIMEOUT_S = 60
TRAP = "open({ran!r}, 'a').write(__name__ + '\\n')\nraise ImportError('not the module that was meant')\n"


@pytest.fixture
def visitor(shell: Shell, tmp_path: Path) -> Shell:
    """In an empty folder, with a store that others record in, too."""
    folder = tmp_path / "visited"
    folder.mkdir()
    return Shell(folder, {"MLFLOW_TRACKING_URI": f"sqlite:///{shell.folder / 'mlflow.db'}"})


@pytest.fixture
def training(shell: Shell, tmp_path: Path) -> list[str]:
    recipe = [str(shell.folder / "toy.yaml"), f"data.store={shell.folder / 'scenes'}", "train.epochs=1"]
    return ["train", *recipe, "--json", "--out", str(tmp_path / "runs")]


def test_files_named_like_modules_are_not_run(visitor: Shell, training: list[str], tmp_path: Path) -> None:
    """There is a file for every module of Python's library, which tells when it is run."""
    ran = tmp_path / "ran"
    for name in sys.stdlib_module_names:
        (visitor.folder / f"{name}.py").write_text(TRAP.format(ran=str(ran)))

    done = visitor.encsearch(*training)
    ui = visitor.start("encsearch", "ui", json.loads(done.stdout)["folder"])
    read_until(ui, "stderr", lambda line: "serving until" in line)
    ui.send_signal(signal.SIGINT)
    ui.communicate(timeout=COMMAND_TIMEOUT_S)

    assert not ran.exists(), ran.read_text()


@pytest.mark.own_ray
def test_a_training_whose_folder_is_deleted_is_recorded_to_its_end(
    visitor: Shell, training: list[str]
) -> None:
    process = visitor.start("encsearch", *training)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not any("outbox.sender" in title(child) for child in psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline_s, "the job has not begun"
        time.sleep(0.05)
    shutil.rmtree(visitor.folder)
    out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)

    assert process.returncode == 0, err
    client = MlflowClient(tracking_uri=visitor.variables["MLFLOW_TRACKING_URI"])
    assert client.get_run(json.loads(out)["run_id"]).info.status == "FINISHED"
