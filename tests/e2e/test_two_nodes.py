"""Jobs on the cluster that `cluster/local/two_nodes.sh` starts, used as a person does, with a token."""

import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from encsearch.files import read_lines
from tests.e2e.head import free_ports, free_range
from tests.e2e.hosts import wait_until
from tests.e2e.shell import Shell, read_until

pytestmark = pytest.mark.own_ray

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local" / "two_nodes.sh"
NUM_PORTS = 4  # from PORT on
# A lost node is seen within seconds instead of half a minute.
SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
EPOCHS = 6
# More trials than anybody waits for: on a fast machine too it is in the middle when a node goes.
SWEEP = (
    *(f"train.epochs={EPOCHS}", "train.steps_per_epoch=40", "search.budget.trials=1000"),
    *("search.max_concurrent=2", "search.scheduler=none"),
    *("search.confirm.finalists=1", "search.confirm.epochs=1", "search.confirm.num_workers=1"),
    "search.confirm.baselines=[]",
)
# How Ray calls a trial's process while it trains; not while it starts.
TRIAL = "ray::ResourceTrainable.train"


@dataclass(frozen=True)
class Nodes:
    """A head and a worker node of one CPU each, so that two trials at the same time are on both."""

    folder: Path
    script: Shell
    user: Shell

    def run(self, command: str) -> str:
        return self.script.run(command, program=(str(SCRIPT),)).stdout

    def titles(self, role: str) -> dict[int, str]:
        """The processes of a node, by their pids: those in the session that the script has opened for it."""
        session, found = int((self.folder / f"{role}.pid").read_text()), {}
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == session:
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def trains(self, role: str) -> bool:
        return any(title.startswith(TRIAL) for title in self.titles(role).values())

    def lose_worker(self) -> None:
        """Kill all processes of the worker node at once, as when its machine fails."""
        lost = [psutil.Process(pid) for pid in self.titles("worker")]
        for process in lost:
            process.kill()
        psutil.wait_procs(lost)


@pytest.fixture
def nodes(shell: Shell) -> Iterator[Nodes]:
    (dashboard,) = free_ports(1)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Not pytest's folder: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder:
        settings = {"NODES_DIR": folder, "HEAD_CPUS": "1", "WORKER_CPUS": "1", **SOON}
        settings |= {"PORT": str(free_range(NUM_PORTS)), "DASHBOARD_PORT": str(dashboard)}
        uri = f"sqlite:///{shell.folder / 'mlflow.db'}"
        user = {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "MLFLOW_TRACKING_URI": uri}
        nodes = Nodes(Path(folder), Shell(ROOT, {**token, **settings}), Shell(ROOT, {**token, **user}))
        try:
            nodes.run("start")
            yield nodes
        finally:
            nodes.run("stop")


def test_a_sweep_outlives_the_loss_of_a_node_and_a_stop(shell: Shell, nodes: Nodes) -> None:
    """Its trials train on both nodes. Another job beside it leaves their copies of the directory alone."""
    user, out = nodes.user, shell.folder / "on-nodes"
    recipe = (str(shell.folder / "toy.yaml"), f"data.store={shell.folder / 'scenes'}", "--out", str(out))

    def describe() -> str:
        return user.run("jobs", "logs", "first").stdout

    user.run("submit", "--no-wait", "--name", "first", "sweep", *recipe, *SWEEP)
    user.run("submit", "train", *recipe, "train.epochs=1", "--in-process")
    wait_until(lambda: nodes.trains("head") and nodes.trains("worker"), describe)
    copies = nodes.folder.glob("*/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert len([copy for copy in copies if copy.is_dir()]) == 2

    nodes.lose_worker()
    assert "worker: not running" in nodes.run("status")
    nodes.run("start")
    follower = user.start("encsearch", "jobs", "logs", "first", "--follow")
    said = read_until(follower, "stdout", lambda line: "lost its process and starts again" in line)
    wait_until(lambda: nodes.trains("head") and nodes.trains("worker"), describe)

    user.run("jobs", "stop", "first")
    follower.communicate()
    assert follower.returncode == 130
    resumed = user.run("submit", "--name", "first", "resume", str(out / "first"), "search.budget.trials=1")

    assert resumed.stderr == "submitted first-2\n"
    trials = json.loads((out / "first" / "sweep.json").read_text())["trials"]
    (lost,) = re.findall(r"trial (\d+) lost its process", said)
    assert int(lost) in [trial["number"] for trial in trials]
    for trial in trials:
        reports = read_lines(out / "first" / "trials" / f"{trial['number']:04d}" / "reports.jsonl")
        epochs = [report["epoch"] for report in reports]
        assert (trial["state"], epochs) == ("COMPLETE", list(range(1, EPOCHS + 1)))
