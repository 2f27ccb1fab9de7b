"""Hosts on one machine: each has a network, a name, processes, a /dev/shm and a /tmp/ray of its own."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.shell import COMMAND_TIMEOUT_S, clean_environment

BRIDGE = "encs"
SUBNET = "10.213.77"
LOGIN = f"{SUBNET}.254"
"""This machine's own address on the network of the hosts."""
POLL_S = 0.5
NEEDED = ("ip", "unshare", "nsenter", "mount")

# The first process of a host, a shell, which also reaps orphans. "$1" is a file of names, "$2" the host's.
INIT = """
set -e
mount --make-rprivate /
mount --bind "$1" /etc/hosts
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /dev/shm
hostname "$2"
ip link set lo up
echo ready
while true; do sleep 1000 & wait; done
"""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    pid: int
    """Of its first process, as this machine numbers it."""
    link: str
    """The end of its network's link that is here."""

    def start(
        self,
        *command: str,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program on this host; it ends with the host. What it says is piped, or in `log`."""
        enter = ("nsenter", f"--target={self.pid}", "--net", "--uts", "--pid", "--mount", f"--wd={folder}")
        return subprocess.Popen(
            [*enter, *command],
            env={**clean_environment(), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=log.open("a") if log else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self) -> None:
        """Take the host off the network."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        _ip("link", "set", self.link, "up")


@contextmanager
def running_hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts that reach each other and this machine by name; all that runs on them ends with the block."""
    if missing := [program for program in NEEDED if not shutil.which(program)]:
        pytest.skip(f"hosts need {', '.join(missing)}")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("hosts need the right to make network namespaces (root)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, start=1)}
        lines = [f"{address} {name}" for name, address in addresses.items()]
        named = folder / "hosts"
        named.write_text("\n".join(["127.0.0.1 localhost", f"{LOGIN} login", *lines]) + "\n")
        _ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "del", BRIDGE)
        _ip("addr", "add", f"{LOGIN}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield [stack.enter_context(_running_host(*item, named)) for item in addresses.items()]


def wait_until(true: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, describe()
        time.sleep(POLL_S)


@contextmanager
def _running_host(name: str, address: str, names: Path) -> Iterator[Host]:
    namespaces = ("--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
    process = subprocess.Popen(
        ["unshare", *namespaces, "bash", "-c", INIT, "init", str(names), name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        host = Host(name, address, int(children.split()[0]), f"{BRIDGE}{process.pid}")
        _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        _ip("link", "set", host.link, "master", BRIDGE, "up")
        inside = ("nsenter", f"--target={host.pid}", "--net")
        _ip("addr", "add", f"{address}/24", "dev", "eth0", inside=inside)
        _ip("link", "set", "eth0", "up", inside=inside)
        yield host
    finally:
        process.kill()
        process.communicate()


def _ip(*arguments: str, inside: tuple[str, ...] = ()) -> None:
    done = subprocess.run([*inside, "ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
