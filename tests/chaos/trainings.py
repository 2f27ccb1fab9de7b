"""Trainings by the command line that are disturbed, resumed until they end, and what must be left then.

Whatever was done to it, a training must leave what an undisturbed one of the same workers leaves: the same
weights, every epoch once with the same figures, one finished run in MLflow, no process.
"""

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from encsearch.reports import Report, distinct_reports
from encsearch.train.checkpoint_files import CHECKPOINTS
from tests.chaos.sweeps import STORE
from tests.e2e.shell import BIN, Shell, clean_environment

EPOCHS, STEPS, SAVED_EVERY = 5, 60, 10
RECIPE: dict[str, Any] = {
    "name": "toy",
    "data": {"store": "../scenes", "threads": 1},
    "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
    "optim": {"lr": 0.05, "head_lr_factor": 2, "clip_norm": 5.0},
    "train": {
        "epochs": EPOCHS,
        "steps_per_epoch": STEPS,
        "global_batch_size": 8,
        "val_batch_size": 5,
        "checkpoint_every": {"steps": SAVED_EVERY},
    },
    "scaling": {"timeout_s": 20},
}
Mode = Literal["in process", "1 worker", "2 workers"]
OPTIONS: Mapping[Mode, tuple[str, ...]] = {
    "in process": ("--in-process",),
    "1 worker": (),
    "2 workers": ("scaling.num_workers=2",),
}
MARK = "ENCSEARCH_CHAOS"  # in the environment of all that a try starts
EPOCH_LINE = "toy epoch "
# Metrics whose names begin so are of the process.
OF_THE_PROCESS = ("time/", "throughput/", "memory/", "resumed_from_step")
ATTEMPTS, ATTEMPT_TIMEOUT_S, GONE_S, POLL_S = 4, 300, 30, 0.05
AWAY_S, MEMORY_THRESHOLD = 60, 0.3
# Linux' EXT4_IOC_SHUTDOWN: every use of the file system fails from now on; what was not synced is lost.
SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2
# Moments below START are while the training starts, START_S seconds after its folder is made at most.
START, START_S = 0.1, 6


@dataclass
class Try:
    """One training and what was done to it; `faults` is empty if it left what it must."""

    kind: str
    mode: Mode
    codes: list[int] = field(default_factory=list)
    recovery_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    is_struck: bool = False


@dataclass(frozen=True)
class Job:
    """A training that runs: its first attempt, or a resume."""

    process: subprocess.Popen[bytes]
    out: Path
    log: Path
    mark: str

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def folder(self) -> Path | None:
        return next((path.parent for path in self.out.glob("*/training.json")), None)

    def reached(self) -> int:
        """The newest optimizer step that is on disk."""
        folder = self.folder
        steps = [0]
        for file in (folder / CHECKPOINTS).glob("checkpoint-*/checkpoint.json") if folder else ():
            with suppress(FileNotFoundError):  # replaced meanwhile
                steps.append(json.loads(file.read_bytes())["step"])
        return max(steps)

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def find(self, name: str) -> psutil.Process | None:
        """One of its processes by the name of its program, or else by a part of its title."""
        running = self.processes()
        found = [process for process in running if process.name() == name]
        found = found or [process for process in running if name in _title(process)]
        return found[-1] if found else None


Disk = Literal["small", "of its own"]
Strike = Callable[[Job], None]
"""Disturbs a running training; the moment has come."""


@dataclass(frozen=True)
class Kind:
    """`undo` comes before a resume; `disk` is the file system that the runs have for themselves.

    `is_synced_after`: the job says that its record is to be sent by `encsearch sync`.
    """

    name: str
    strike: Strike
    mode: Mode
    undo: Callable[[Job], None] | None = None
    disk: Disk | None = None
    is_synced_after: bool = False


def signalled(sent: signal.Signals, name: str | None = None) -> Strike:
    """Send a signal to the driver, or to its process of that title."""

    def strike(job: Job) -> None:
        if name is None:
            job.process.send_signal(sent)
        elif process := job.find(name):
            process.send_signal(sent)
        else:
            raise LookupError(f"no process {name}")

    return strike


def fill_disk(job: Job) -> None:
    """Write until nothing fits on the file system of the runs, or of the tracking database."""
    with suppress(OSError), open(job.out / "fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def free_disk(job: Job) -> None:
    (job.out / "fill").unlink(missing_ok=True)


def freeze_disk(job: Job) -> None:
    """Let everything that uses the file system of the runs wait for a minute."""
    subprocess.run(["fsfreeze", "--freeze", str(job.out)], check=True)
    time.sleep(AWAY_S)
    subprocess.run(["fsfreeze", "--unfreeze", str(job.out)], check=True)


def lose_disk(job: Job) -> None:
    """Let every use of the file system of the runs fail for a minute; what was not synced is lost."""
    folder = os.open(job.out, os.O_RDONLY)
    fcntl.ioctl(folder, SHUTDOWN, WITHOUT_FLUSH.to_bytes(4, sys.byteorder))
    os.close(folder)
    time.sleep(AWAY_S)
    subprocess.run(["umount", "--lazy", str(job.out)], check=True)
    _mount_image(job.out)


def fill_memory(job: Job) -> None:
    """Fill the machine's memory over Ray's threshold until Ray has killed a worker."""
    workers = [process for process in job.processes() if "RayTrainWorker" in _title(process)]
    if not workers:
        raise LookupError("no worker yet")
    size = int(psutil.virtual_memory().total * MEMORY_THRESHOLD)
    code = f"held = bytearray(b'1') * {size}; input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as filler:
        deadline = time.monotonic() + AWAY_S
        while all(process.is_running() for process in workers) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        filler.kill()


def kinds() -> list[tuple[Kind, int]]:
    """What is done, and how often."""
    kill, stop, term, interrupt = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT
    return [
        (Kind("driver, SIGKILL", signalled(kill), "in process"), 10),
        (Kind("driver, SIGTERM", signalled(term), "in process"), 6),
        (Kind("driver, Ctrl-C", signalled(interrupt), "in process"), 3),
        (
            Kind(
                "sender of the record, SIGKILL",
                signalled(kill, "outbox.sender"),
                "in process",
                is_synced_after=True,
            ),
            3,
        ),
        (Kind("disk full", fill_disk, "in process", free_disk, "small"), 6),
        (Kind("disk hangs for a minute", freeze_disk, "in process", disk="of its own"), 2),
        (Kind("disk lost for a minute", lose_disk, "in process", disk="of its own"), 3),
        (Kind("worker, SIGKILL", signalled(kill, "RayTrainWorker"), "2 workers"), 6),
        (Kind("worker, SIGSTOP", signalled(stop, "RayTrainWorker"), "2 workers"), 4),
        (Kind("only worker, SIGSTOP", signalled(stop, "RayTrainWorker"), "1 worker"), 2),
        (Kind("controller, SIGKILL", signalled(kill, "TrainController"), "2 workers"), 4),
        (Kind("driver, SIGKILL", signalled(kill), "2 workers"), 4),
        (Kind("driver, SIGTERM", signalled(term), "2 workers"), 4),
        (Kind("raylet, SIGKILL", signalled(kill, "raylet"), "2 workers"), 3),
        (Kind("GCS, SIGKILL", signalled(kill, "gcs_server"), "2 workers"), 3),
        (Kind("memory full, Ray's monitor", fill_memory, "2 workers"), 3),
        (Kind("disk full", fill_disk, "2 workers", free_disk, "small"), 3),
        (Kind("disk hangs for a minute", freeze_disk, "2 workers", disk="of its own"), 2),
        (Kind("disk lost for a minute", lose_disk, "2 workers", disk="of its own"), 2),
    ]


class Ground:
    """A folder with a store, what undisturbed trainings left, and a place for each try."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self._database = folder, database
        folder.mkdir(parents=True, exist_ok=True)
        self._shell = Shell(folder)
        if not (folder / "scenes").exists():
            self._shell.run(*STORE)
        self._expected: dict[Mode, tuple[str, list[Any]]] = {}
        self._count = 0

    def undisturbed(self, mode: Mode) -> None:
        """Train once without a fault, and keep what that leaves."""
        if mode not in self._expected:
            with self._place(None) as out:
                job = self._start(out, "train", "../toy.yaml", *OPTIONS[mode], "--out", str(out))
                assert job.process.wait(ATTEMPT_TIMEOUT_S) == 0, job.said
                assert job.folder
                self._expected[mode] = _left(job.folder)

    def run(self, kind: Kind, moment: float) -> Try:
        """Disturb a training at `moment`, a part of its steps or (below START) of its start, and end it."""
        done = Try(kind.name, kind.mode)
        self.undisturbed(kind.mode)
        with self._place(kind.disk) as out:
            arguments = ("train", "../toy.yaml", *OPTIONS[kind.mode], "--out", str(out))
            job = self._start(out, *arguments)
            while not job.folder:
                assert job.process.poll() is None, job.said
                time.sleep(POLL_S)
            if moment < START:
                time.sleep(moment / START * START_S)
            while moment >= START and job.reached() < moment * EPOCHS * STEPS and job.process.poll() is None:
                time.sleep(POLL_S)
            saved, struck = job.reached(), time.monotonic()
            try:
                if job.process.poll() is None:
                    kind.strike(job)
            except LookupError:
                pass  # it has ended, or not begun: no try
            else:
                done.is_struck = job.process.poll() is None or job.process.returncode != 0
            done.recovery_s = self._follow(job, job.said.count(EPOCH_LINE), struck)
            done.codes.append(job.process.returncode)
            jobs = [job]
            while not (job.folder and (job.folder / "run.json").exists()) and len(jobs) < ATTEMPTS:
                if kind.undo:
                    kind.undo(job)
                began = time.monotonic()
                command = ("resume", str(job.folder)) if job.folder else arguments
                job = self._start(out, *command)
                done.recovery_s += self._follow(job, 0, began)
                done.codes.append(job.process.returncode)
                jobs.append(job)
            if kind.undo:
                kind.undo(job)
            if kind.is_synced_after:
                self._start(out, "sync", str(job.folder)).process.wait(ATTEMPT_TIMEOUT_S)
            done.faults += self._judge(jobs, kind.mode, saved)
        return done

    def _follow(self, job: Job, lines: int, since: float) -> float:
        """Wait for the end of an attempt; seconds from `since` to its next epoch, or to its end."""
        next_s = None
        deadline = time.monotonic() + ATTEMPT_TIMEOUT_S
        while job.process.poll() is None and time.monotonic() < deadline:
            if next_s is None and job.said.count(EPOCH_LINE) > lines:
                next_s = time.monotonic() - since
            time.sleep(POLL_S)
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()
            return ATTEMPT_TIMEOUT_S
        return next_s if next_s is not None else time.monotonic() - since

    def _judge(self, jobs: list[Job], mode: Mode, saved: int) -> Iterator[str]:
        folder = jobs[-1].folder
        for number, job in enumerate(jobs):
            if "Traceback" in job.said:
                yield f"attempt {number} shows a traceback"
            # A signal to a job that has said its last word ends it as any program.
            allowed = (0, 1, 3, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
            is_over = "next: encsearch promote" in job.said
            if job.process.returncode not in allowed[: None if is_over else 6]:
                yield f"attempt {number} ended with {job.process.returncode}"
        deadline = time.monotonic() + GONE_S
        while (left := jobs[0].processes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        yield from (f"left: {_title(process)[:60]}" for process in left)
        for process in left:
            process.kill()
        if not folder or not (folder / "run.json").exists():
            yield f"it has not ended: {jobs[-1].said.strip().splitlines()[-1:]}"
            return
        weights, reports = _left(folder)
        if weights != self._expected[mode][0]:
            yield "other weights"
        if reports != self._expected[mode][1]:
            yield "other figures"
        if not (folder / "run.json").exists():
            yield "no run.json"
        resumed = [r.metrics.get("resumed_from_step", 0.0) for r in _reports(folder)]
        # Workers go on for some seconds without the driver, and may come to the end.
        had_all = f"goes on: {EPOCHS} of {EPOCHS} epochs" in jobs[-1].said
        if len(jobs) > 1 and max(resumed) < saved and not had_all:
            yield f"went on from step {max(resumed):.0f}, though {saved} was on disk"
        yield from _judge_runs(folder.parent.parent / f"{folder.parent.name}.db")

    @contextmanager
    def _place(self, disk: Disk | None) -> Iterator[Path]:
        """A folder for the runs, on a file system of its own if asked for, and a database beside it."""
        self._count += 1
        out = self.folder / f"try{self._count}"
        out.mkdir()
        shutil.copy(self._database, self.folder / f"{out.name}.db")
        (self.folder / "toy.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        if disk == "small":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(out)], check=True)
        elif disk:
            with open(_image(out), "wb") as image:
                image.truncate(256 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(_image(out))], check=True)
            _mount_image(out)
        try:
            yield out
        finally:
            if disk:
                subprocess.run(["umount", "--lazy", str(out)], check=True)
            shutil.rmtree(out, ignore_errors=True)
            _image(out).unlink(missing_ok=True)

    def _start(self, out: Path, *command: str) -> Job:
        log = self.folder / f"{out.name}-{len(list(self.folder.glob(f'{out.name}-*.log')))}.log"
        environment = {
            **clean_environment(),
            # Threads that spin beside other work on the same cores make an epoch thirty times as long.
            "OMP_NUM_THREADS": "1",
            "RAY_memory_usage_threshold": str(MEMORY_THRESHOLD),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / out.name}.db",
            MARK: f"{os.getpid()}-{out.name}",
        }
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(BIN / "encsearch"), *command],
                cwd=out,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        return Job(process, out, log, environment[MARK])


def _image(out: Path) -> Path:
    return out.with_suffix(".img")


def _mount_image(out: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(_image(out)), str(out)], check=True)
    shutil.rmtree(out / "lost+found", ignore_errors=True)


def moments(count: int, seed: int) -> list[float]:
    """One at random in each of `count` equal parts of a run, shuffled."""
    rng = random.Random(seed)
    found = [(part + rng.random()) / count for part in range(count)]
    rng.shuffle(found)
    return found


def _reports(folder: Path) -> list[Report]:
    return distinct_reports(folder / CHECKPOINTS / "reports.jsonl")


def _left(folder: Path) -> tuple[str, list[Any]]:
    """The hash of a finished training's weights, and what its reports say of what was trained."""
    weights = (folder / "artifacts" / "bundle" / "model.safetensors").read_bytes()
    figures = [
        (
            report.epoch,
            {name: value for name, value in report.metrics.items() if not name.startswith(OF_THE_PROCESS)},
            [(point.step, dict(point.values)) for point in report.points if "step/loss" in point.values],
        )
        for report in _reports(folder)
    ]
    return hashlib.sha256(weights).hexdigest(), json.loads(json.dumps(figures))


def _judge_runs(database: Path) -> Iterator[str]:
    with closing(sqlite3.connect(database)) as tracked:
        states = [row[0] for row in tracked.execute("select status from runs")]
        epochs = tracked.execute("select count(distinct step) from metrics where key = 'mIoU'").fetchone()[0]
    if states != ["FINISHED"]:
        yield f"MLflow has runs {states}"
    if epochs != EPOCHS:
        yield f"MLflow has mIoU of {epochs} epochs"


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
