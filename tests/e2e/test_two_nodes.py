"""Jobs on the cluster that `cluster/local/two_nodes.sh` starts."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.head import free_ports, free_range
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell

pytestmark = pytest.mark.own_ray

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local" / "two_nodes.sh"
NUM_PORTS = 4  # from PORT on


@pytest.fixture
def nodes() -> Iterator[Path]:
    """What both nodes write to."""
    # Not pytest's folder: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def submitter(shell: Shell, nodes: Path) -> Iterator[Shell]:
    """At the root of the checkout, beside a head without CPUs and a worker node, which ask for a token."""
    (dashboard,) = free_ports(1)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    settings = {"NODES_DIR": str(nodes), "HEAD_CPUS": "0", "WORKER_CPUS": "2"}
    settings |= {"PORT": str(free_range(NUM_PORTS)), "DASHBOARD_PORT": str(dashboard)}
    script = Shell(ROOT, {**token, **settings})
    uri = f"sqlite:///{shell.folder / 'mlflow.db'}"
    try:
        run_to_end(script, str(SCRIPT), "start")
        yield Shell(
            ROOT, {**token, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "MLFLOW_TRACKING_URI": uri}
        )
    finally:
        run_to_end(script, str(SCRIPT), "stop")


def test_two_jobs_at_once_keep_their_working_directories(shell: Shell, submitter: Shell, nodes: Path) -> None:
    """A job's command runs on the head, its training on the other node: each has a copy of the directory.

    The other job's training stays with its command.
    """
    recipe = [str(shell.folder / "toy.yaml"), f"data.store={shell.folder / 'scenes'}"]
    recipe += ["train.epochs=1", "--out", str(shell.folder / "runs")]

    jobs = [submitter.start("encsearch", "submit", "train", *recipe, *o) for o in ((), ("--in-process",))]
    said = ["".join(job.communicate(timeout=COMMAND_TIMEOUT_S)) for job in jobs]

    assert [job.returncode for job in jobs] == [0, 0], "\n".join(said)
    copies = nodes.glob("*/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert len([copy for copy in copies if copy.is_dir()]) == 2


def run_to_end(shell: Shell, *command: str) -> None:
    process = shell.start(*command)
    out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, out + err
