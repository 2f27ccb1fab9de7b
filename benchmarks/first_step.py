"""From `encsearch submit` to the first optimizer step: the seconds, and whose they are.

    python -m benchmarks.first_step                  # 12 jobs of some 40 s on two cores
    python -m benchmarks.first_step --kinds train --workers 2 --times 1

A cluster of one node with token authentication is started, and jobs are submitted to it one after the other,
as a user does, with an SQLite store of MLflow that exists: a training by Ray Train, and a sweep, whose trials
train in processes of Ray Tune. A recipe that saves its state after each step shows by its file when the first
one is done (its network is small; a step and its file take some 20 ms). In between count the times at which
processes began:

client     `encsearch submit` has checked the recipe, packed and sent: until Ray's job process begins
job        Ray's process for the job, until `encsearch` itself begins
driver     imports, checks, connects to Ray, until the first process of its own on the cluster begins
workers    processes start, import torch, build the network, train a step

Wall seconds, medians; CPU seconds of each kind of process until the step, `idle` those that Ray starts ahead.
Polled each POLL_S. Prints Markdown and writes JSON, one `--label` beside the others.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from encsearch.data.scenes import generate_scenes
from encsearch.tracking.mlflow import connect
from encsearch.train.checkpoint_files import CHECKPOINT_PREFIX
from tests.e2e.head import Head, running_head
from tests.e2e.shell import Shell

OUT = Path("benchmarks/results/first_step.json")
POLL_S = 0.1
LIMIT_S = 300
MARKS = ("client", "job", "driver", "workers")
USERS = (*MARKS, "idle")
RECIPE: dict[str, Any] = {
    "name": "first",
    "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
    "train": {
        "epochs": 1,
        "steps_per_epoch": 2000,
        "global_batch_size": 8,
        "val_batch_size": 8,
        "checkpoint_every": {"steps": 1},
    },
    "search": {"space": {"optim.lr": {"loguniform": [0.01, 0.02]}}, "budget": {"trials": 1}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=("train", "sweep"), default=["train", "sweep"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of one training")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--label", default="now", help="of the code that is measured")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        generate_scenes(folder / "scenes", num_train=48, num_val=8, num_test=4, size=64)
        tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
        connect(tracking_uri, "Default")
        with running_head(folder, num_cpus=4) as head:
            for kind in arguments.kinds:
                for workers in arguments.workers:
                    for number in range(arguments.times):
                        place = folder / f"{kind}-{workers}-{number}"
                        row = measure(kind, workers, place, head, folder / "scenes", tracking_uri)
                        print(json.dumps(row), flush=True)
                        rows.append(row)
    arguments.out.write_text(json.dumps({**facts, arguments.label: rows}, indent=1) + "\n")
    print(describe(rows))


def measure(
    kind: str, workers: int, folder: Path, head: Head, store: Path, tracking_uri: str
) -> dict[str, Any]:
    """Submit a job in `folder`, wait for its first step, stop it."""
    folder.mkdir()
    recipe = {**RECIPE, "data": {"store": str(store), "threads": 1}, "scaling": {"num_workers": workers}}
    (folder / "first.yaml").write_text(yaml.safe_dump(recipe))
    shell = Shell(
        folder,
        {
            "RAY_ADDRESS": head.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": head.token,
            "MLFLOW_TRACKING_URI": tracking_uri,
        },
    )
    others = {process.pid for process in psutil.Process(head.pid).children(recursive=True)}
    load = psutil.getloadavg()[0]
    job = ("submit", "--name", folder.name, kind, "first.yaml", "--out", str(folder / "runs"))
    client = shell.start("encsearch", *job)
    begun_s = time.time()
    seen: dict[int, tuple[str, float, float]] = {}  # by process: kind, when it began, CPU seconds
    while not any(folder.glob(f"runs/**/{CHECKPOINT_PREFIX}*")):
        look(client.pid, head.pid, others, seen)
        if client.poll() is not None or time.time() > begun_s + LIMIT_S:
            raise SystemExit("the job ended before its first step:\n" + "".join(client.communicate()))
        time.sleep(POLL_S)
    newest = next(folder.glob(f"runs/**/{CHECKPOINT_PREFIX}*"))
    ended_s = min(newest.stat().st_ctime, time.time())
    shell.run("jobs", "stop", folder.name)
    client.communicate()
    starts: dict[str, float] = {}
    cpu_s: Counter[str] = Counter()
    for what, start_s, used_s in seen.values():
        starts[what] = min(start_s, starts.get(what, start_s))
        cpu_s[what] += used_s
    marks = [begun_s, starts["job"], starts["driver"], starts["workers"], ended_s]
    shares = {name: after - before for name, (before, after) in zip(MARKS, pairwise(marks), strict=True)}
    return {
        "kind": kind,
        "workers": workers,
        "seconds": ended_s - begun_s,
        "shares_s": shares,
        "cpu_s": dict(cpu_s),
        "load": round(load, 1),
    }


def look(client: int, head: int, others: set[int], seen: dict[int, tuple[str, float, float]]) -> None:
    """Note the processes of this job, and what they have used."""
    for root in (client, head):
        try:
            found = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in found:
            if process.pid in others or process.pid == head:
                continue
            try:
                with process.oneshot():
                    title = " ".join(process.cmdline())
                    used = process.cpu_times()
                    seen[process.pid] = (
                        name_kind(title, is_client=root == client),
                        process.create_time(),
                        used.user + used.system,
                    )
            except psutil.Error:
                continue


def name_kind(title: str, *, is_client: bool) -> str:
    """Whose a process is, by the title that Ray gives it."""
    if is_client:
        return "client"
    if "JobSupervisor" in title:
        return "job"
    if "encsearch" in title and "ray::" not in title:
        return "driver"
    if "ray::IDLE" in title or "default_worker" in title:
        return "idle"
    return "workers" if "ray::" in title else "nodes"


def describe(rows: list[Mapping[str, Any]]) -> str:
    """The medians as a table."""
    lines = [
        f"| job | workers | to the first step, s | {' | '.join(MARKS)} | CPU s: {', '.join(USERS)} | sum |",
        "|---" * 9 + "|",
    ]
    keys = sorted({(row["kind"], row["workers"]) for row in rows}, reverse=True)
    for kind, workers in keys:
        own = [row for row in rows if (row["kind"], row["workers"]) == (kind, workers)]

        def middle(values: list[float]) -> str:
            return f"{statistics.median(values):.1f}"

        shares = [middle([row["shares_s"][name] for row in own]) for name in MARKS]
        cpu = [middle([row["cpu_s"].get(name, 0.0) for row in own]) for name in USERS]
        total = middle([sum(row["cpu_s"].values()) for row in own])
        cells = [kind, str(workers), middle([row["seconds"] for row in own]), *shares, ", ".join(cpu), total]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
