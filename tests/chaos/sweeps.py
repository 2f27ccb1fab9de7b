"""A sweep by the command line that is killed and resumed until it ends, and the processes that it leaves."""

import contextlib
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.shell import BIN, Shell, clean_environment

RECIPE: dict[str, Any] = {
    "name": "toy",
    "data": {"store": "scenes", "threads": 1},
    "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
    "optim": {"lr": 0.05, "head_lr_factor": 2, "clip_norm": 5.0},
    "train": {"epochs": 6, "steps_per_epoch": 12, "global_batch_size": 8, "val_batch_size": 5},
    "search": {
        "space": {
            "model.num_codewords": {"choice": [4, 8]},
            "loss.se_weight": {"uniform": [0.0, 1.0]},
            "optim.lr": {"loguniform": [1e-6, 0.1]},
        },
        "enqueue": [
            {"model.num_codewords": 8, "loss.se_weight": 0.5, "optim.lr": 0.05},
            {"model.num_codewords": 4, "loss.se_weight": 0.5, "optim.lr": 1e-6},
        ],
        "budget": {"trials": 7},
        # Two points that are given, one at random and four by TPE; one at a time, so that their order is fixed.
        "startup_trials": 3,
        "max_concurrent": 1,
        "asha": {"grace_epochs": 2, "reduction_factor": 2},
        "confirm": {"finalists": 1, "seeds": [1], "num_workers": 1, "baselines": []},
    },
}
STORE = ("data", "scenes", "scenes", "--train", "48", "--val", "10", "--test", "4", "--size", "64")

ATTEMPT_TIMEOUT_S, FREED_TIMEOUT_S, STOP_TIMEOUT_S, POLL_S = 400, 60, 3, 0.05


@dataclass(frozen=True)
class Running:
    """A command that runs; its output is in `log`, `owned` gives the processes that must go with it."""

    process: subprocess.Popen[bytes]
    started_s: float
    log: Path
    owned: Callable[[], list[psutil.Process]]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


Strike = Callable[[Running], None]
"""Waits for its moment and kills; returns at once where the command has ended before."""


@dataclass(frozen=True)
class Attempt:
    """One process of a sweep: its exit code, how long it ran, and in which phase it was at its end.

    `freed_s` is how long its processes outlived it, None for those that were still there after a minute.
    """

    command: str
    code: int
    seconds: float
    phase: str
    freed_s: float | None


@dataclass(frozen=True)
class User:
    """Somebody in a folder with a store, a recipe and a tracking database; `head` is a cluster's first process."""

    shell: Shell
    head: int | None = None

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.shell.folder / 'mlflow.db'}"

    def owned(self, driver: int) -> list[psutil.Process]:
        """All that the driver has started; on a cluster the workers that are not idle."""
        if self.head is None:
            return descendants(driver)
        return [process for process in descendants(self.head) if is_busy(process)]

    def start(self, log: Path, *arguments: str) -> Running:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(BIN / "encsearch"), *arguments],
                cwd=self.shell.folder,
                env={**clean_environment(), **self.shell.variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(process, time.monotonic(), log, lambda: self.owned(process.pid))


def new_user(folder: Path, variables: Mapping[str, str] | None = None, head: int | None = None) -> User:
    """Make the folder's store and its recipe `toy.yaml`; MLflow's own store comes beside them."""
    shell = Shell(folder, variables or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    if not (folder / "scenes").exists():
        shell.encsearch(*STORE)
    return User(shell, head)


def bring_to_end(user: User, name: str, strikes: Sequence[Strike]) -> tuple[list[Attempt], Path]:
    """Sweep below `runs/NAME`, resuming after every strike that killed the driver; returns the sweep's folder.

    A sweep that was killed before it could be resumed is started anew.
    """
    attempts: list[Attempt] = []
    out = user.shell.folder / "runs" / name
    out.mkdir(parents=True)
    for strike in (*strikes, _leave_alone):
        folder = sweep_folder(out)
        command = ("resume", str(folder)) if folder else ("sweep", "toy.yaml", "--out", str(out))
        running = user.start(out / f"attempt{len(attempts)}.log", *command)
        strike(running)
        owned = running.owned()
        code = running.process.wait(ATTEMPT_TIMEOUT_S)
        seconds = running.seconds
        attempts.append(Attempt(command[0], code, seconds, phase_of(running.said), _freed_s(owned)))
        if code != -signal.SIGKILL:
            break
    folder = sweep_folder(out)
    assert folder, running.said
    return attempts, folder


def sweep_folder(out: Path) -> Path | None:
    """The sweep below `out` that can be resumed."""
    return next((path.parent for path in out.glob("*/study.json")), None)


def phase_of(said: str) -> str:
    """How far a sweep had come by what it said."""
    if "next: encsearch promote" in said:
        return "ended"
    lines = said.splitlines()
    if any("-seed1: " in line for line in lines):
        return "report"
    if any("finalist trial" in line for line in lines):
        return "finalist"
    if any(" starts: " in line or " epochs" in line for line in lines):
        return "search"
    return "start"


def kill_driver_at(seconds: float) -> Strike:
    return lambda running: _kill_driver(running, lambda: running.seconds >= seconds)


def kill_driver_when(is_time: Callable[[Running], bool]) -> Strike:
    return lambda running: _kill_driver(running, lambda: is_time(running))


def kill_trials_at(moments: Sequence[float]) -> Strike:
    """Kill the process of the trial that runs so many seconds after the first one started."""

    def strike(running: Running) -> None:
        if not _wait(running, lambda: "trial 0 starts" in running.said):
            return
        begun = running.seconds
        for moment in moments:
            kill_trial_when(lambda _, due=begun + moment: running.seconds >= due)(running)

    return strike


def kill_trial_when(is_time: Callable[[Running], bool]) -> Strike:
    """Kill the trial's process that is there at that time, or comes next."""

    def strike(running: Running) -> None:
        if _wait(running, lambda: is_time(running) and bool(trial_processes(running))):
            for process in trial_processes(running):
                process.kill()

    return strike


def trial_processes(running: Running) -> list[psutil.Process]:
    return [process for process in running.owned() if title(process).startswith("ray::Trial")]


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_busy(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray that does something."""
    return title(process).startswith("ray::") and not title(process).startswith("ray::IDLE")


def title(process: psutil.Process) -> str:
    """A process's name for itself, empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[Mapping[str, str], int]]:
    """A head node with a token and ports of its own: the variables of its users, and its first process."""
    token = secrets.token_hex(32)
    port, dashboard, client_server, agent = _free_ports(4)
    authenticated = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    # Not below `folder`: Ray puts Unix sockets there, whose paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        command = f"ray start --head --block --num-cpus=2 --temp-dir={temp} --node-ip-address=127.0.0.1"
        command += f" --port={port} --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"
        command += f" --ray-client-server-port={client_server} --dashboard-agent-listen-port={agent}"
        head = Shell(folder, authenticated).start(*command.split())
        try:
            assert head.stdout
            said = next((line for line in head.stdout if "Ray runtime started" in line), None)
            assert said, f"ray start ended with {head.wait()}"
            yield {**authenticated, "RAY_ADDRESS": f"127.0.0.1:{port}"}, head.pid
        finally:
            started = [psutil.Process(head.pid), *descendants(head.pid)]
            head.terminate()
            _, left = psutil.wait_procs(started, timeout=STOP_TIMEOUT_S)
            for process in left:
                process.kill()
            head.communicate()


def _leave_alone(running: Running) -> None:
    """The attempt that is to end by itself; what it owns is counted once it has begun to work."""
    _wait(running, lambda: phase_of(running.said) != "start")


def _kill_driver(running: Running, is_time: Callable[[], bool]) -> None:
    if _wait(running, is_time):
        running.process.kill()


def _wait(running: Running, is_time: Callable[[], bool]) -> bool:
    """Until it is time; False where the command ends before."""
    while running.process.poll() is None:
        if is_time():
            return True
        time.sleep(POLL_S)
    return False


def _freed_s(owned: Sequence[psutil.Process]) -> float | None:
    """Seconds until the processes are gone, or idle on a cluster that goes on."""
    started = time.monotonic()
    while time.monotonic() - started < FREED_TIMEOUT_S:
        if not any(_is_alive(process) for process in owned):
            return time.monotonic() - started
        time.sleep(POLL_S)
    return None


def _is_alive(process: psutil.Process) -> bool:
    told = title(process)  # a zombie has none
    return process.is_running() and bool(told) and not told.startswith("ray::IDLE")


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
