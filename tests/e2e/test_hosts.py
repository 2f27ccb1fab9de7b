"""A cluster of several hosts, which a person uses from another one that has the client's packages alone.

`make cluster-test`, as root; the hosts are namespaces of this machine (tests/e2e/hosts.py).
"""

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from encsearch.files import read_lines
from tests.e2e.hosts import Host, running_hosts, wait_until
from tests.e2e.shell import BIN, Shell

pytestmark = pytest.mark.hosts

ROOT = Path(__file__).parents[2]
# A lost node is seen within seconds instead of a minute, by the head and by itself.
SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
# A node that was cut off leaves its Ray, so something must start it again: here a loop, elsewhere systemd.
SUPERVISED = "while true; do ray start --block --address=head:6379 --num-cpus=1; sleep 1; done"
SWEEP = ("scaling.num_workers=2", "search.budget.trials=2", "search.confirm.finalists=1", "train.epochs=3")


@dataclass(frozen=True)
class Client:
    """A person on the host `client`, in an empty folder, with an environment that has the client alone."""

    host: Host
    folder: Path
    variables: Mapping[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        program = str(self.folder.parent / "venv" / "bin" / "encsearch")
        return self.host.start(program, *arguments, folder=self.folder, variables=self.variables)

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        said, _ = process.communicate()
        assert process.returncode == code, f"{' '.join(arguments)}: {said}"
        return said


@dataclass(frozen=True)
class Place:
    """Three hosts with Ray, one with MLflow, and the client; all see `shared`."""

    client: Client
    nodes: tuple[Host, ...]
    shared: Path


@contextmanager
def running_place(database: Path) -> Iterator[Place]:
    with (
        running_hosts("head", "node1", "node2", "mlflow", "client") as (head, *nodes, mlflow, person),
        tempfile.TemporaryDirectory(prefix="place-") as folder,
    ):
        shared = Path(folder)
        for name in ("client", "logs", "mlflow"):
            (shared / name).mkdir()
        shutil.copy(database, shared / "mlflow" / "mlflow.db")
        install_client(shared / "venv")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        start = ["ray", "start", "--head", "--block", "--port=6379", f"--node-ip-address={head.address}"]
        start += ["--num-cpus=0", "--dashboard-host=0.0.0.0"]
        server = ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1"]
        server += [f"--backend-store-uri=sqlite:///{shared}/mlflow/mlflow.db", "--allowed-hosts=mlflow:5000"]
        server += [f"--artifacts-destination={shared}/mlflow/files"]
        for host, command in (
            (mlflow, server),
            (head, start),
            *((node, ["bash", "-c", SUPERVISED]) for node in nodes),
        ):
            program, *arguments = command
            host.start(
                shutil.which(program, path=f"{BIN}:/usr/bin:/bin") or program,
                *arguments,
                folder=shared,
                variables={**token, **SOON},
                log=shared / "logs" / f"{host.name}.log",
            )
        variables = {**token, "RAY_ADDRESS": "http://head:8265", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
        client = Client(person, shared / "client", variables)
        # Ray's job server comes a while after Ray.
        wait_until(lambda: client.start("jobs", "list").wait() == 0, lambda: "no job server")
        yield Place(client, tuple(nodes), shared)


def install_client(place: Path) -> None:
    """A virtual environment with `encsearch[client]` alone; skips where no registry can be reached."""
    uv = shutil.which("uv", path=f"{BIN}:{Path.home()}/.local/bin") or shutil.which("uv")
    if not uv:
        pytest.skip("no uv")
    for command in (
        ["venv", str(place)],
        ["pip", "install", f"--python={place}/bin/python", f"{ROOT}[client]"],
    ):
        done = subprocess.run([uv, *command, "--quiet"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the client cannot be installed here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def place(empty_database: Path, shell: Shell) -> Iterator[Place]:
    with running_place(empty_database) as place:
        shutil.copytree(shell.folder / "scenes", place.shared / "scenes")
        shutil.copy(shell.folder / "toy.yaml", place.client.folder)
        yield place


def test_the_doctor_measures_between_hosts(place: Place) -> None:
    said = place.client.run("doctor", "--address=http://head:8265", f"--out={place.shared}/runs", "--json")
    found = json.loads(said)
    assert {finding["state"] for finding in found} == {"ok"}
    assert [finding["check"] for finding in found].count("network") == 3


def test_a_sweep_outlives_a_host_that_is_cut_off_and_comes_back(place: Place) -> None:
    """Each trial trains on both hosts; one goes in the middle of the first."""
    client, runs = place.client, place.shared / "runs"
    recipe = ("sweep", "toy.yaml", f"data.store={place.shared}/scenes", *SWEEP, "--out", str(runs))
    assert client.run("submit", "--no-wait", "--name", "first", *recipe).splitlines()[-1] == "first"
    reports = runs / "first" / "trials" / "0000" / "reports.jsonl"
    wait_until(reports.exists, lambda: client.run("jobs", "logs", "first"))

    place.nodes[1].cut()
    wait_until(
        lambda: "starts again" in client.run("jobs", "logs", "first"),
        lambda: client.run("jobs", "logs", "first"),
    )
    place.nodes[1].join()

    client.run("jobs", "wait", "first")
    assert {report["metrics"]["world_size"] for report in read_lines(reports)} == {2}
    trials = json.loads((runs / "first" / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE", "PRUNED"]  # as without a loss
    promoted = client.run("submit", "promote", str(runs / "first"))
    assert "http://mlflow:5000/#/models/toy/versions/1" in promoted


def test_exit_codes_of_jobs_reach_the_person(place: Place) -> None:
    client = place.client
    recipe = ("train", "toy.yaml", f"data.store={place.shared}/scenes", "--out", f"{place.shared}/runs")
    assert "optim.lr" in client.run("submit", *recipe, "optim.lr=fast", code=2)
    client.run("submit", *recipe, "data.store=/nowhere", code=3)
    long = client.start("submit", "--name", "long", *recipe, "train.epochs=1000")
    wait_until((place.shared / "runs" / "long" / "checkpoints" / "reports.jsonl").exists, lambda: "")
    client.run("jobs", "stop", "long")
    assert long.wait() not in (0, 1)
    again = client.run("submit", "--name", "long", *recipe, "train.epochs=1000", "--no-wait")
    assert "long-2" in again
    wait_until(lambda: "goes on" in client.run("jobs", "logs", "long-2"), lambda: "")
    client.run("jobs", "stop", "long-2")
