"""Does recording lose anything, hold a training up, or cost it time? Three measurements, each in one run.

    python -m benchmarks.recording                  # from the repository's root; --parts for some of it

outages  One training is recorded through a real sender to a real `mlflow server`, which is killed, stopped
         (SIGSTOP: it accepts and never answers) and replaced by a port that answers 503, each between two
         phases in which it runs. Times of steps are medians, as ratios to the phases before and after; a
         report comes with every 50th step. At the end the store must hold what the job wrote, row for row.
cost     Blocks of 50 steps that begin with a report, in pairs: one recorded, one kept in memory, in random
         order. The ratio of a pair's times, its median and a 95 % bootstrap interval.
kills    Records of several runs, sent to SQLite by processes that are killed at random times until one comes
         to its end. The store must hold every row once, one run a key, and the true status.

Prints Markdown and writes JSON part by part, each with the machine's load.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch

from encsearch import EncNet
from encsearch.reports import MemoryRecorder, Recorder, Report
from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.outbox.events import Dataset
from encsearch.tracking.outbox.forward import read_sent
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER, Record, RunRecord, own_record
from encsearch.tracking.outbox.sender import Sender, run_sender
from tests.e2e.head import free_ports
from tests.e2e.stored import Held, send_once, send_under_kills, stored, written

PARTS = ("kills", "outages", "cost")
OUT = Path("benchmarks/results/recording.json")
SEED = 1
STEPS_A_REPORT = 50
PHASE_S = 60.0
BLOCK_PAIRS = 40
KILLS = 200
EPOCHS = 110  # of each child of a record that is sent under kills: more events than one chunk takes
COST_GOAL = 1.01
START_TIMEOUT_S = 120
CLASSES = tuple(f"class {i}" for i in range(11))
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

# Answers every request with 503, as a gateway does whose server is away.
REFUSING = """
import http.server, sys
class Refusing(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST = do_PUT = do_PATCH = answer
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Refusing).serve_forever()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--phase-s", type=float, default=PHASE_S)
    parser.add_argument("--pairs", type=int, default=BLOCK_PAIRS)
    parser.add_argument("--kills", type=int, default=KILLS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        database = folder / "mlflow.db"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
        with run_sender() as sender:
            # Set up by another process: a connection to a database must not cross the forks that follow.
            experiment_id = sender.store().experiment_id
        # The kills come first: their senders are forks, which must not inherit a store that was opened.
        for part in sorted(arguments.parts, key=PARTS.index):
            before = os.getloadavg()[0]
            measured: Kills | Outages | Cost
            if part == "kills":
                measured = count_kills(folder, f"sqlite:///{database}", experiment_id, arguments.kills)
            else:
                with closing(Server(database, *free_ports(1))) as server:
                    os.environ["MLFLOW_TRACKING_URI"] = server.uri
                    if part == "outages":
                        measured = measure_outages(folder / part, server, arguments.phase_s)
                    else:
                        measured = measure_cost(folder / part, server, arguments.pairs)
            print(told(measured))
            load = {"before": before, "after": os.getloadavg()[0], "cores": os.cpu_count()}
            facts[part] = asdict(measured) | {"load": load}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


@dataclass(frozen=True)
class Phase:
    """What the training did while the server was in one state; times in milliseconds.

    `step_cpu_ms` is of the training's thread alone: it tells a busy machine from a step that waits.
    """

    server: str
    steps: int
    step_ms: float
    step_cpu_ms: float
    slowest_step_ms: float
    log_ms: float
    slowest_log_ms: float


@dataclass(frozen=True)
class Outages:
    """`ratios` are a phase's median step to that of its two neighbours; `differences` are between records."""

    phases: tuple[Phase, ...]
    ratios: Mapping[str, float]
    rows: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Recorded to kept in memory: the median of the pairs' ratios with its interval; `log_ms` of a report."""

    pairs: int
    block_ms: float
    ratio: float
    low: float
    high: float
    log_ms: float


@dataclass(frozen=True)
class Kills:
    records: int
    runs: int
    rows: int
    killed: int
    differences: tuple[str, ...]


def measure_outages(folder: Path, server: "Server", phase_s: float) -> Outages:
    """One training over the phases; the time in which the server starts again belongs to none."""
    folder.mkdir()
    training = Training()
    phases: list[Phase] = []
    server.start()
    with run_sender() as sender:
        with own_record(folder) as record:
            recorder = begin(record, sender, folder)
            for fault in (server.kill, server.hang, server.refuse):
                phases.append(training.run("up", phase_s, recorder))
                fault()
                phases.append(training.run(fault.__name__, phase_s, recorder))
                server.start(meanwhile=lambda: training.step_and_report(recorder))
            phases.append(training.run("up", phase_s, recorder))
            recorder.close("FINISHED")
        sender.run_ids(timeout_s=120)
    differences = compare(folder, connect())
    server.kill()
    ratios = {
        phases[i].server: phases[i].step_ms / statistics.mean([phases[i - 1].step_ms, phases[i + 1].step_ms])
        for i in range(1, len(phases), 2)
    }
    return Outages(tuple(phases), ratios, count_rows(folder), differences)


def measure_cost(folder: Path, server: "Server", pairs: int) -> Cost:
    folder.mkdir()
    server.start()
    training = Training()
    rng = random.Random(SEED)
    ratios, blocks, logs = [], [], []
    with run_sender() as sender, own_record(folder) as record:
        recorder = begin(record, sender, folder)
        training.block(recorder)  # the first is slower
        for _ in range(pairs):
            seconds = {}
            # The report comes first, so that it is sent during the block that has it.
            for is_recorded in rng.sample((True, False), 2):
                seconds[is_recorded], log_s = training.block(recorder if is_recorded else MemoryRecorder())
                logs += [log_s] if is_recorded else []
            ratios.append(seconds[True] / seconds[False])
            blocks.append(seconds[False])
        recorder.close("FINISHED")
    server.kill()
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return Cost(
        pairs=pairs,
        block_ms=1000 * statistics.median(blocks),
        ratio=statistics.median(ratios),
        low=medians[50],
        high=medians[-51],
        log_ms=1000 * statistics.median(logs),
    )


def count_kills(folder: Path, tracking_uri: str, experiment_id: str, kills: int) -> Kills:
    """Records until so many senders were killed; all are compared at the end."""
    jobs: list[Path] = []

    def new_record() -> Path:
        jobs.append(write_record(folder / f"job{len(jobs)}"))
        return jobs[-1]

    longest_s = send_once(new_record(), tracking_uri, experiment_id)
    killed = 0
    while killed < kills:
        killed += send_under_kills(new_record(), tracking_uri, experiment_id, longest_s, seed=len(jobs))
    tracking = connect(tracking_uri)
    return Kills(
        records=len(jobs),
        runs=sum(len(written(job)) for job in jobs),
        rows=sum(map(count_rows, jobs)),
        killed=killed,
        differences=tuple(line for job in jobs for line in compare(job, tracking)),
    )


class Training:
    """A small EncNet on random images; a report with every STEPS_A_REPORT-th step."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self._model = EncNet("tiny", num_codewords=8, num_classes=len(CLASSES), output_stride=4, channels=16)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01)
        self._images = torch.randn(4, 3, 64, 64)
        self._masks = torch.randint(0, len(CLASSES), (4, 64, 64))
        self.steps = 0
        for _ in range(STEPS_A_REPORT):
            self._step()

    def run(self, name: str, seconds: float, recorder: Recorder) -> Phase:
        steps, cpu, logs = [], [], []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            step_s, step_cpu_s, log_s = self.step_and_report(recorder)
            steps.append(step_s)
            cpu.append(step_cpu_s)
            logs += [log_s] if log_s else []
        assert logs, f"no report in {seconds} s; give the phases more"
        return Phase(
            server=name,
            steps=len(steps),
            step_ms=1000 * statistics.median(steps),
            step_cpu_ms=1000 * statistics.median(cpu),
            slowest_step_ms=1000 * max(steps),
            log_ms=1000 * statistics.median(logs),
            slowest_log_ms=1000 * max(logs),
        )

    def step_and_report(self, recorder: Recorder) -> tuple[float, float, float]:
        """Seconds of a step, CPU seconds of it, seconds of the report that follows: 0 where none is due."""
        started_s, started_cpu_s = time.monotonic(), time.thread_time()
        self._step()
        stepped_s, step_cpu_s = time.monotonic(), time.thread_time() - started_cpu_s
        log_s = 0.0
        if self.steps % STEPS_A_REPORT == 0:
            recorder.log(self._report())
            log_s = time.monotonic() - stepped_s
        return stepped_s - started_s, step_cpu_s, log_s

    def block(self, recorder: Recorder) -> tuple[float, float]:
        """Seconds of a report and the steps up to the next, and of the report alone."""
        started_s = time.monotonic()
        recorder.log(self._report())
        logged_s = time.monotonic()
        for _ in range(STEPS_A_REPORT):
            self._step()
        return time.monotonic() - started_s, logged_s - started_s

    def _step(self) -> None:
        loss = torch.nn.functional.cross_entropy(self._model(self._images).logits, self._masks)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.steps += 1

    def _report(self) -> Report:
        return a_report(self.steps // STEPS_A_REPORT, self.steps)


class Server:
    """`mlflow server` over one SQLite file on one port: started, and taken away in three ways."""

    def __init__(self, database: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._database, self._port = database, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, meanwhile: Callable[[], object] = lambda: time.sleep(0.2)) -> None:
        """In the place of what was on the port; `meanwhile` is called until it answers."""
        self.kill()
        self._run(
            "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self._database}",
            "--artifacts-destination", str(self._database.parent / "artifacts"), "--serve-artifacts",
            "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
        )  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline_s, f"mlflow server did not start in {START_TIMEOUT_S} s"
            meanwhile()

    def kill(self) -> None:
        if self._process:
            # A stopped process is killed too.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def refuse(self) -> None:
        self.kill()
        self._run("-c", REFUSING, str(self._port))

    def _run(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **SETTINGS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def closing(server: "Server") -> Iterator["Server"]:
    """No server outlives the benchmark."""
    try:
        yield server
    finally:
        server.kill()


def begin(record: Record, sender: Sender, folder: Path) -> RunRecord:
    sender.store()
    sender.follow(folder)
    return record.start("training", params={"optim.lr": 0.01}, tags={"encsearch.kind": "training"})


def write_record(folder: Path) -> Path:
    """A job with a parent and two children, a dataset, a file, NaN and infinities; a child goes on once."""
    folder.mkdir()
    params = {f"param{i}": i for i in range(120)}
    data = Dataset("scenes", "f" * 64, "scenes", {"images": 48})
    with own_record(folder) as record:
        (folder / "notes.txt").write_text("kept\n")
        parent = record.start("sweep", params=params, tags={"encsearch.kind": "sweep"}, dataset=data)
        for name, status in (("trial0", "FINISHED"), ("trial1", "KILLED")):
            child = record.start(name, params=params, tags={}, parent="sweep", dataset=data)
            for epoch in range(EPOCHS):
                if name == "trial1" and epoch == EPOCHS // 2:
                    child.close("KILLED")
                    child = record.start(name, params=params, tags={}, parent="sweep", dataset=data)
                child.log(replace(a_report(epoch, 50 * epoch), class_iou={}))
            child.note({"encsearch.state": status})
            child.file(folder / "notes.txt")
            child.close(status)
        parent.summarize(a_report(0, 1))
        parent.close("FINISHED")
    return folder


def a_report(epoch: int, step: int) -> Report:
    """As many figures as a small training's; of the losses one is NaN, one infinite."""
    scores = dict.fromkeys(("mIoU", "pixAcc"), epoch % 17 / 17)
    losses = {"train/loss": 1 / (epoch + 1), "train/aux_loss": 2 / (epoch + 1)}
    rare = {"val/loss": float("nan") if epoch % 7 == 3 else 0.5, "train/ratio": float("inf"), "lr": 0.01}
    iou = {name: (epoch + i) % 13 / 13 for i, name in enumerate(CLASSES)}
    return Report(epoch=epoch, step=step, seconds=1.5, metrics=scores | losses | rare, class_iou=iou)


def compare(job_folder: Path, tracking: Tracking) -> tuple[str, ...]:
    """One line for each thing of a run that the store does not hold as it was written; none is the goal."""
    told, kept = written(job_folder), stored(tracking, job_folder)
    unsent = read_sent(job_folder).offset != (job_folder / FOLDER / EVENTS_FILE).stat().st_size
    lines = [f"{job_folder.name}: not all was sent"] if unsent else []
    lines += [f"{job_folder.name}: {run} is missing" for run in told.keys() - kept.keys()]
    for run in told.keys() & kept.keys():
        lines += [
            f"{job_folder.name}: {run}: {name} differs"
            for name in Held.__dataclass_fields__
            if getattr(told[run], name) != getattr(kept[run], name)
        ]
    return tuple(lines)


def count_rows(job_folder: Path) -> int:
    return sum(len(held.rows) for held in written(job_folder).values())


def told(measured: "Outages | Cost | Kills") -> str:
    if isinstance(measured, Kills):
        return (
            f"kills: {measured.killed} senders, {measured.records} records, {measured.runs} runs, "
            f"{measured.rows} rows, {len(measured.differences)} differences"
        )
    if isinstance(measured, Cost):
        return (
            f"cost: recorded / in memory = {measured.ratio:.4f} ({measured.low:.4f} to {measured.high:.4f}),"
            f" {measured.pairs} pairs of {measured.block_ms:.0f} ms; the goal of {COST_GOAL} is "
            f"{verdict(measured)}; a report takes {measured.log_ms:.2f} ms of the training, "
            f"{measured.log_ms / measured.block_ms:.2%} of its block"
        )
    lines = ["| server | steps | step, ms | to `up` | CPU, ms | slowest, ms | report, ms | slowest, ms |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for phase in measured.phases:
        ratio = f"{measured.ratios[phase.server]:.3f}" if phase.server in measured.ratios else ""
        lines.append(
            f"| {phase.server} | {phase.steps} | {phase.step_ms:.1f} | {ratio} | {phase.step_cpu_ms:.1f}"
            f" | {phase.slowest_step_ms:.0f} | {phase.log_ms:.2f} | {phase.slowest_log_ms:.1f} |"
        )
    return "\n".join([*lines, f"outages: {measured.rows} rows, {len(measured.differences)} differences"])


def verdict(cost: Cost) -> str:
    """On a busy machine the interval is wide, and then says neither."""
    if cost.high <= COST_GOAL:
        return "met"
    return "missed" if cost.low > COST_GOAL else "not decided"


if __name__ == "__main__":
    main()
