"""The folder of a user with a small data set and a recipe that searches on it, and servers for all tests."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.servers import Postgresql, TrackingServer, running_postgresql, running_tracking_server
from tests.e2e.shell import Shell

NUM_TRAIN, NUM_VAL, SIDE_PX = 48, 10, 64

# Small enough for seconds, long enough for scores that differ: a good point, a bad one, and one by TPE.
RECIPE: dict[str, Any] = {
    "name": "toy",
    "data": {"store": "scenes", "threads": 1},
    "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 8, "channels": 16},
    "optim": {"lr": 0.05, "head_lr_factor": 2, "clip_norm": 5.0},
    "train": {"epochs": 2, "steps_per_epoch": 20, "global_batch_size": 8, "val_batch_size": 5},
    # What is trained in seconds is weak.
    "promote": {"model_name": "toy", "floor": 0.0, "min_class_share": 0.0},
    "search": {
        "space": {
            "model.num_codewords": {"choice": [4, 8]},
            "loss.se_weight": {"uniform": [0.0, 1.0]},
            "optim.lr": {"loguniform": [1e-6, 0.1]},
        },
        # The first is the point that every sweep begins with here: the recipe's with the paper's SE-weight.
        "enqueue": [
            {"model.num_codewords": 8, "loss.se_weight": 0.2, "optim.lr": 0.05},
            {"model.num_codewords": 4, "loss.se_weight": 0.5, "optim.lr": 1e-6},
        ],
        "budget": {"trials": 3},
        "max_concurrent": 1,
        "asha": {"grace_epochs": 1, "reduction_factor": 2},
        "confirm": {"num_workers": 2, "baselines": ["none"]},
    },
}


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Shell:
    """A folder with the store `scenes`, the recipe `toy.yaml` and MLflow's own store."""
    shell = Shell(tmp_path_factory.mktemp("user"))
    shutil.copy(empty_database, shell.folder)
    (shell.folder / "toy.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    sizes = ("--train", str(NUM_TRAIN), "--val", str(NUM_VAL), "--test", "4", "--size", str(SIDE_PX))
    shell.encsearch("data", "scenes", "scenes", *sizes)
    return shell


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a server of the environment's ENCSEARCH_NOTIFY_URL has received; the URL holds a password."""
    received: list[dict[str, Any]] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """The tests look at stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ENCSEARCH_NOTIFY_URL", f"json://user:hidden@127.0.0.1:{server.server_port}/hook")
    yield received
    server.shutdown()
    server.server_close()


# The command line, which says at its end whether its process has come to torch.
WATCHED = """
import sys
from encsearch.cli.main import main
try:
    main()
finally:
    print("torch is loaded:", "torch" in sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="session")
def swept(shell: Shell) -> dict[str, Any]:
    """What `encsearch sweep --json` says; standard output holds nothing else, and the driver no torch."""
    done = shell.run("sweep", "toy.yaml", "--json", program=("python", "-P", "-c", WATCHED))
    assert "Traceback" not in done.stderr
    assert "torch is loaded: False" in done.stderr
    for event in ("trial 0 COMPLETE", "trial 1 PRUNED", f"next: encsearch promote {shell.folder}/runs/toy-"):
        assert event in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def tracking_server(
    postgresql: Postgresql, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    """The team's; each module signs up a user of its own, who works in an experiment of his own."""
    with running_tracking_server(tmp_path_factory.mktemp("server"), postgresql) as server:
        yield server
