"""A cluster's nodes for one test module or benchmark, beside whatever else runs on this machine."""

import random
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.e2e.shell import Shell, read_until

STOP_TIMEOUT_S = 3
PORTS = (20_000, 32_000)


@dataclass(frozen=True)
class Head:
    """`address` is for drivers, `dashboard` for job submission; `temp` is the folder that Ray writes to."""

    address: str
    dashboard: str
    token: str
    temp: Path
    pid: int

    @property
    def variables(self) -> Mapping[str, str]:
        """What a driver needs to attach."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextmanager
def running_head(
    folder: Path, num_cpus: int, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Head]:
    """With token authentication and ports of its own; only its own processes are ended."""
    token = secrets.token_hex(32)
    port, dashboard, client_server, agent = free_ports(4)
    # Not pytest's folder: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        command = f"ray start --head --block --num-cpus={num_cpus} --temp-dir={temp}"
        command += f" --node-ip-address=127.0.0.1 --port={port}"
        command += f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"
        command += f" --ray-client-server-port={client_server} --dashboard-agent-listen-port={agent}"
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        process = Shell(folder, {**variables, **own}).start(*command.split())
        try:
            read_until(process, "stdout", lambda line: "Ray runtime started" in line)
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token, Path(temp), process.pid)
        finally:
            _end(process)


class Workers:
    """Nodes of one CPU each beside a head; one that is killed is replaced."""

    def __init__(self, head: Head, folder: Path, count: int) -> None:
        self._head, self._shell = head, Shell(folder, head.variables)
        self._nodes = [self._start() for _ in range(count)]

    @property
    def pids(self) -> list[int]:
        return [node.pid for node in self._nodes]

    def replace(self, pid: int) -> None:
        """Kill all processes of a node at once, as when its machine fails, and start another."""
        place = self.pids.index(pid)
        first = psutil.Process(pid)
        for process in (*first.children(recursive=True), first):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._nodes[place].communicate()
        self._nodes[place] = self._start()

    def close(self) -> None:
        for node in self._nodes:
            _end(node)

    def _start(self) -> subprocess.Popen[str]:
        # Of its own: two nodes in one folder delete the working directories of each other's jobs (Ray 2.60).
        temp = tempfile.mkdtemp(dir=self._head.temp)
        command = f"ray start --block --address={self._head.address} --num-cpus=1 --temp-dir={temp}"
        command += f" --node-ip-address=127.0.0.1 --dashboard-agent-listen-port={free_ports(1)[0]}"
        process = self._shell.start(*command.split())
        read_until(process, "stdout", lambda line: "Ray runtime started" in line)
        return process


def free_ports(count: int) -> list[int]:
    return [free_range(1) for _ in range(count)]


def free_range(count: int) -> int:
    """The first of so many free ports in a row, which neither Ray's workers nor outgoing connections take."""
    while True:
        first = random.SystemRandom().randrange(*PORTS)
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the head node to end, then kill what is left of its processes; one that did not start has none."""
    if process.poll() is not None:
        return
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(started, timeout=STOP_TIMEOUT_S)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()
