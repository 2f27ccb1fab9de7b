"""What do checkpoints cost, and does Ray Train slow a training down?

    python -m benchmarks.checkpoints          # about five minutes

1. EncNet on ResNet-50, on the CPU, blocks of steps in turn: without checkpoints, and with one written in the
   background as soon as the one before is on disk, the most that can be. From that: how long the training
   waits for one, what the writing takes beside it, and what share of the time that is, one in ten minutes.
2. The same small training in this process and by a worker of Ray Train, one thread each, in turn, three
   pairs: images a second of the epochs after the first, the median of the pairs' ratios.

Prints both and writes JSON.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from encsearch.config import Config
from encsearch.data.loading import feed
from encsearch.data.scenes import generate_scenes
from encsearch.reports import MemoryRecorder
from encsearch.runner.local import run_local
from encsearch.runner.ray_session import ray_session
from encsearch.train.checkpoint import CheckpointWriter
from encsearch.train.experiment import build
from encsearch.train.step import train_step

ROUNDS, STEPS = 5, 6
EPOCHS, EPOCH_STEPS, RUNS = 4, 200, 3
INTERVAL_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoints.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "scenes"
        generate_scenes(store, num_train=48, num_val=10, num_test=4, size=96)
        found = {
            # First, since the other leaves gigabytes in this process.
            "ray": ray_against_process(store, Path(folder)),
            "checkpoint": checkpoint_cost(store, Path(folder)),
        }
    print(json.dumps(found, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def checkpoint_cost(store: Path, folder: Path) -> dict[str, Any]:
    config = Config.model_validate(
        {
            "data": {"store": str(store)},
            "model": {"backbone": "resnet50"},
            "train": {"global_batch_size": 2, "precision": "fp32"},
        }
    )
    e = build(config)
    e.state.network.train()
    batches = e.loaders.train.batches(0)
    inputs = list(islice(feed(batches, e.plan.device), STEPS))
    batches.close()
    place = folder / "checkpoints"
    place.mkdir()
    writer = CheckpointWriter(place, keep=2)
    waits: list[float] = []
    writes: list[float] = []
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    wall: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(ROUNDS + 1):
        for name in ("without", "with"):
            started, used = time.perf_counter(), _cpu_s()
            for batch in inputs:
                train_step(e.state, batch, e.loss, e.plan)
            if name == "with":
                began = time.perf_counter()
                writer.write(e.state, len(waits))
                waits.append(time.perf_counter() - began)
                for batch in inputs:
                    train_step(e.state, batch, e.loss, e.plan)
                writer.wait()
                writes.append(time.perf_counter() - began)
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(_cpu_s() - used)
    writer.close()
    extra_cpu = statistics.median(cpu["with"][1:]) - 2 * statistics.median(cpu["without"][1:])
    extra_wall = statistics.median(wall["with"][1:]) - 2 * statistics.median(wall["without"][1:])
    return {
        "bytes": sum(path.stat().st_size for path in max(place.iterdir()).iterdir()),
        "step_s": statistics.median(wall["without"][1:]) / STEPS,
        "training_waits_s": statistics.median(waits[1:]),
        "extra_wall_s": extra_wall,
        "extra_cpu_s": extra_cpu,
        "share_at_10_minutes": max(statistics.median(waits[1:]), extra_wall) / INTERVAL_S,
        "rounds": ROUNDS,
    }


def ray_against_process(store: Path, folder: Path) -> dict[str, Any]:
    from encsearch.runner.ray_train import run_ray_train

    config = Config.model_validate(
        {
            "data": {"store": str(store), "threads": 1},
            "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
            "train": {"epochs": EPOCHS, "steps_per_epoch": EPOCH_STEPS, "global_batch_size": 8},
        }
    )
    rates: dict[str, list[float]] = {"in process": [], "by Ray Train": []}
    with ray_session(needs=config.scaling, dashboard=False):
        for number in range(RUNS):
            for name, run in (("in process", run_local), ("by Ray Train", run_ray_train)):
                result = run(config, folder / f"{name}-{number}", MemoryRecorder())
                epochs = [r.metrics["throughput/images_per_s"] for r in result.reports[1:]]
                rates[name].append(statistics.median(epochs))
    ratios = [ray / process for ray, process in zip(rates["by Ray Train"], rates["in process"], strict=True)]
    return {"images_per_s": rates, "ratios": ratios, "ratio": statistics.median(ratios)}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
