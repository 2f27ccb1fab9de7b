"""A sweep by the command line that is killed and resumed until it ends, and the processes that it leaves."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.head import Workers
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
        # The recipe's own point, two more, and four by TPE; one at a time, so that their order is fixed.
        "startup_trials": 3,
        "max_concurrent": 1,
        "asha": {"grace_epochs": 2, "reduction_factor": 2},
        "confirm": {"finalists": 1, "seeds": [1], "num_workers": 1, "baselines": []},
    },
}
STORE = ("data", "scenes", "scenes", "--train", "48", "--val", "10", "--test", "4", "--size", "64")

# Ray 2.60: a worker that was just started when its node went asks for that for half a minute.
ATTEMPT_TIMEOUT_S, FREED_TIMEOUT_S, POLL_S = 600, 90, 0.05
# As Tune names a trial's process while it works, and between two calls.
TRIAL = ("ray::ResourceTrainable", "ray::Trial")
# Ray 2.60's own helpers, which hold no resources: two of a node notice after a minute that the node is gone,
# and one of Ray Train stays as long as the cluster.
OF_RAY = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")


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


Strike = Callable[[Running], list[psutil.Process]]
"""Waits for its moment and kills, unless the command ends before; returns what the driver owned by then."""


@dataclass(frozen=True)
class Attempt:
    """One process of a sweep: its exit code, how long it ran, and in which phase it was at its end.

    `freed_s` is how long its processes outlived it, None if some were still there after FREED_TIMEOUT_S.
    """

    command: str
    code: int
    seconds: float
    phase: str
    freed_s: float | None


@dataclass(frozen=True)
class User:
    """Somebody in a folder with a store, a recipe and a tracking database.

    `nodes` gives the first process of each node of the cluster that the variables name; it has none if they
    name none.
    """

    shell: Shell
    nodes: Callable[[], Sequence[int]] = tuple

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.shell.folder / 'mlflow.db'}"

    def owned(self, driver: int) -> list[psutil.Process]:
        """All that the driver has started; on a cluster the workers that are not idle."""
        nodes = self.nodes()
        if not nodes:
            return descendants(driver)
        return [process for node in nodes for process in descendants(node) if is_busy(process)]

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


def new_user(
    folder: Path,
    variables: Mapping[str, str] | None = None,
    nodes: Callable[[], Sequence[int]] = tuple,
    recipe: Mapping[str, Any] = RECIPE,
) -> User:
    """Make the folder's store and its recipe `toy.yaml`; MLflow's own store comes beside them."""
    shell = Shell(folder, variables or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.yaml").write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    if not (folder / "scenes").exists():
        shell.encsearch(*STORE)
    return User(shell, nodes)


def bring_to_end(
    user: User, name: str, strikes: Sequence[Strike], later: User | None = None
) -> tuple[list[Attempt], Path]:
    """Sweep below `runs/NAME`, resume after every strike that killed the driver; returns the sweep's folder.

    A sweep that was killed before it could be resumed is started anew. `later` is who resumes, on another
    Ray, if it is not the user.
    """
    attempts: list[Attempt] = []
    out = user.shell.folder / "runs" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for strike in (*strikes, _leave_alone):
        folder = sweep_folder(out)
        command = ("resume", str(folder)) if folder else ("sweep", "toy.yaml", "--out", str(out))
        who = (later or user) if attempts else user
        running = who.start(out / f"attempt{len(attempts)}.log", *command)
        owned = strike(running)
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
    if any("-seed1: mIoU" in line for line in lines):
        return "report"
    if any("finalist trial" in line for line in lines):
        return "finalist"
    if any(" starts: " in line or " epochs" in line for line in lines):
        return "search"
    return "start"


@dataclass(frozen=True)
class Moment:
    """So many seconds after a sweep's line of that number, or at its next line if that comes before.

    Unlike a time it means the same on a machine that is slower now.
    """

    lines: int
    seconds: float

    def wait(self, running: Running) -> None:
        _wait(running, lambda: num_lines(running) >= self.lines)
        due = running.seconds + self.seconds
        _wait(running, lambda: running.seconds >= due or num_lines(running) > self.lines)


def num_lines(running: Running) -> int:
    """How many lines with a time the command has said."""
    return sum(line.startswith("[") for line in running.said.splitlines())


def kill_driver_at(moment: Moment) -> Strike:
    def strike(running: Running) -> list[psutil.Process]:
        moment.wait(running)
        return _kill_driver(running)

    return strike


def kill_driver_when(is_time: Callable[[Running], bool]) -> Strike:
    def strike(running: Running) -> list[psutil.Process]:
        _wait(running, lambda: is_time(running))
        return _kill_driver(running)

    return strike


def kill_trials_at(moments: Sequence[Moment]) -> Strike:
    """Kill the process of the trial that runs at each of the moments, or comes next."""

    def strike(running: Running) -> list[psutil.Process]:
        for moment in moments:
            moment.wait(running)
            kill_trial_when(lambda _: True)(running)
        return running.owned()

    return strike


def kill_trial_when(is_time: Callable[[Running], bool]) -> Strike:
    """Kill the trial's process that is there at that time, or comes next."""

    def strike(running: Running) -> list[psutil.Process]:
        _wait(running, lambda: is_time(running) and bool(trial_processes(running)))
        for process in trial_processes(running):
            process.kill()
        return running.owned()

    return strike


def kill_nodes_at(moments: Sequence[Moment], workers: Workers) -> Strike:
    """Kill the node of the trial that runs at each of the moments, or comes next."""

    def strike(running: Running) -> list[psutil.Process]:
        for moment in moments:
            moment.wait(running)
            _wait(running, lambda: bool(trial_processes(running)))
            trials = {process.pid for process in trial_processes(running)}
            for node in workers.pids:
                if trials & {process.pid for process in descendants(node)}:
                    workers.replace(node)
        return running.owned()

    return strike


def in_turn(*strikes: Strike) -> Strike:
    """All of them on one process."""

    def strike(running: Running) -> list[psutil.Process]:
        return [process for one in strikes for process in one(running)]

    return strike


def watch(seconds: list[float]) -> Strike:
    """Kill nothing, but add the time of each line, and that of the end, to `seconds`."""

    def strike(running: Running) -> list[psutil.Process]:
        owned: list[psutil.Process] = []
        while running.process.poll() is None:
            seconds.extend([running.seconds] * (num_lines(running) - len(seconds)))
            owned = running.owned() or owned
            time.sleep(POLL_S)
        seconds.append(running.seconds)
        return owned

    return strike


def trial_processes(running: Running) -> list[psutil.Process]:
    return [process for process in running.owned() if title(process).startswith(TRIAL)]


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


def _leave_alone(running: Running) -> list[psutil.Process]:
    """For the attempt that is to end by itself; what it owns is counted once it has said something of it."""
    _wait(running, lambda: phase_of(running.said) != "start")
    return running.owned()


def _kill_driver(running: Running) -> list[psutil.Process]:
    owned = running.owned()
    running.process.kill()
    return owned


def _wait(running: Running, is_time: Callable[[], bool]) -> None:
    """Until it is time or the command ends."""
    while running.process.poll() is None and not is_time():
        time.sleep(POLL_S)


def _freed_s(owned: Sequence[psutil.Process]) -> float | None:
    """Seconds until the processes are gone, or idle on a cluster that goes on."""
    started = time.monotonic()
    while time.monotonic() - started < FREED_TIMEOUT_S:
        if not any(_is_alive(process) for process in owned):
            return time.monotonic() - started
        time.sleep(POLL_S)
    print("not freed:", [title(process) for process in owned if _is_alive(process)])
    return None


def _is_alive(process: psutil.Process) -> bool:
    told = title(process)  # a zombie has none
    return process.is_running() and bool(told) and not told.startswith(("ray::IDLE", *OF_RAY))
