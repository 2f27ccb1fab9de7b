"""A trial as Ray Tune runs it: one process, or its own DDP group, behind the same three calls.

A trial with several workers owns its group in one placement group: it cannot deadlock (Ray grants the whole
group or nothing), and none of its processes outlives a killed driver. After the first trial, which starts the
processes, it costs 0.2 CPU seconds beside the training; a TorchTrainer nested in a Tune function costs 21
(Ray 2.60, benchmarks/trial_overhead.py).
"""

import gc
import socket
import tempfile
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from encsearch.config import ScalingConfig, from_json
from encsearch.errors import TrainingError, UserError, one_line
from encsearch.reports import REPORTS_FILE, Report, append, best_report, distinct_reports
from encsearch.runner.hardware import COLLECTIVE_TIMEOUT_S, describe_hardware, latency_ms
from encsearch.search.trials import LATENCY
from encsearch.train.checkpoint import (
    load_checkpoint,
    read_newest,
    save_checkpoint,
    write_best,
    write_newest,
)
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import fit

# Resources of a trial's own process beside several workers; it only waits for them. Ray refuses a bundle
# without any resource, and part of a CPU would keep the trial off a cluster with exactly its workers' CPUs.
SUPERVISOR = {"memory": 1}


def trial_resources(scaling: ScalingConfig) -> tune.PlacementGroupFactory:
    """One bundle for a single worker; otherwise one for the trial's own process and one for each worker."""
    worker = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        worker["GPU"] = scaling.gpus_per_worker
    if scaling.num_workers == 1:
        return tune.PlacementGroupFactory([worker])
    return tune.PlacementGroupFactory([SUPERVISOR] + [worker] * scaling.num_workers)


class TrialTrainable(tune.Trainable):
    """Trains one epoch a step; `config` holds an `Assignment`, its configuration as JSON.

    The processes are reused for the next trial, so torch is imported once. A trial whose folder has a
    checkpoint continues from there, and first repeats the reports up to it.
    """

    _workers: list[Any]
    _folder: Path
    _epochs: int
    _origin: dict[str, str]
    _ready: deque[Report]
    _failure: str | None
    _measures_latency: bool
    _keeps_best: bool
    _metric: str

    def setup(self, config: dict[str, Any]) -> None:
        self._workers = _start_workers(from_json(config["config"]).scaling)
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._build(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The report of one more epoch, or the reason why the trial cannot continue (`failure`).

        Before the first epoch, if it was requested, only `latency_ms`.
        """
        if self._failure:
            return {**self._origin, "failure": self._failure, "done": True}
        if self._measures_latency:
            self._measures_latency = False
            return {**self._origin, LATENCY: _call(self._workers[:1], "latency_ms")[0]}
        if not self._ready:
            failure = self._train()
            if failure:
                return {**self._origin, "failure": failure, "done": True}
        report = self._ready.popleft()
        return {
            **self._origin,
            "report": report.to_dict(),
            "epoch": report.epoch,
            "done": report.epoch == self._epochs,
        }

    def cleanup(self) -> None:
        for worker in self._workers:
            if not isinstance(worker, TrialWorker):
                ray.kill(worker)

    def _build(self, config: dict[str, Any]) -> None:
        self._folder = Path(config["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._measures_latency, self._keeps_best = config["measures_latency"], config["keeps_best"]
        training = from_json(config["config"])
        self._epochs, self._metric = training.train.epochs, training.metric
        built = _call(self._workers, "build", config["config"], config["fingerprint"])
        self._failure = next(filter(None, (b.failure for b in built)), None)
        kinds = sorted({worker.hardware for worker in built})
        self._origin = {"hardware": f"{len(built)} x {' and '.join(kinds)}"}
        reached = 0
        if not self._failure and (files := read_newest(self._folder)):
            reached = _call(self._workers, "load", files)[0]
        reports = distinct_reports(self._folder / REPORTS_FILE)
        self._ready = deque(report for report in reports if report.epoch <= reached)

    def _train(self) -> str | None:
        """Train one epoch and store it: first the report, so that no checkpoint is without its report."""
        results = _call(self._workers, "step")
        failure = next((result for result in results if isinstance(result, str)), None)
        if failure:
            return failure
        report: Report = results[0]
        append(self._folder / REPORTS_FILE, report)
        files = _call(self._workers[:1], "save")[0]
        if self._keeps_best and self._is_best(report):
            write_best(self._folder, files)
        write_newest(self._folder, report.epoch, files)
        self._ready.append(report)
        return None

    def _is_best(self, report: Report) -> bool:
        """Whether it is the best so far; one that a kill made the training repeat is, if it was before."""
        reports = distinct_reports(self._folder / REPORTS_FILE)
        so_far = tuple(other for other in reports if other.epoch <= report.epoch)
        return best_report(so_far, self._metric).epoch == report.epoch


@dataclass(frozen=True)
class Built:
    """A worker's answer to `build`: its hardware, and why the training cannot start (`failure`)."""

    hardware: str
    failure: str | None = None


class TrialWorker:
    """One rank of a trial, in the trial's own process or as an actor beside it.

    Checkpoints are sent as {file name: content}, because an actor may run on another node.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self._rank, self._world_size = rank, world_size
        self._experiment: Experiment | None = None
        self._reports: Generator[Report, None, None] | None = None
        self._compiles = False

    def rendezvous(self) -> str:
        """Find a free address on this rank's node for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, rendezvous: str, backend: str) -> None:
        dist.init_process_group(
            backend,
            init_method=rendezvous,
            rank=self._rank,
            world_size=self._world_size,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
            device_id=torch.device("cuda:0") if backend == "nccl" else None,
        )

    def build(self, config_json: str, fingerprint: str) -> Built:
        """Replace the last training with a new one.

        Errors are returned: Tune would start the same trial again if they were raised.
        """
        self._drop()
        config = from_json(config_json)
        self._compiles = config.train.compile
        # Ray 2.60 shows every GPU of the node to a process that booked none.
        device = "cuda:0" if config.scaling.gpus_per_worker else "cpu"
        try:
            hardware = describe_hardware(device)
        except (RuntimeError, AssertionError) as error:  # no GPU, or its driver is too old for this PyTorch
            return Built(f"no {device}", f"{device} cannot be used here: {one_line(error)}")
        try:
            experiment = build(config, rank=self._rank, world_size=self._world_size, device=device)
        except UserError as error:
            return Built(hardware, str(error))
        if experiment.fingerprint != fingerprint:
            found = experiment.fingerprint[:12]
            return Built(
                hardware, f"{config.data.store} has other data here ({found}, not {fingerprint[:12]})"
            )
        self._experiment = experiment
        self._reports = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
        return Built(hardware)

    def step(self) -> Report | str:
        """Train one more epoch; return its report, or the reason of a failure."""
        assert self._reports is not None
        try:
            return next(self._reports)
        except (TrainingError, UserError) as error:
            return str(error)

    def latency_ms(self) -> float:
        return latency_ms(self._built())

    def save(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(self._built().state, Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def load(self, files: dict[str, bytes]) -> int:
        """Continue from a checkpoint; return the number of epochs in it."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            load_checkpoint(self._built().state, Path(folder))
        return self._built().state.step // self._built().plan.steps_per_epoch

    def _built(self) -> Experiment:
        assert self._experiment is not None
        return self._experiment

    def _drop(self) -> None:
        """Free the last training before the next is built: a GPU may not hold both."""
        if self._reports is not None:
            self._reports.close()
        on_gpu = self._experiment is not None and self._experiment.plan.device.type == "cuda"
        self._experiment = self._reports = None
        if self._compiles:
            torch.compiler.reset()  # it compiles eight networks in a process, and no ninth
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()


def _start_workers(scaling: ScalingConfig) -> list[Any]:
    if scaling.num_workers == 1:
        return [TrialWorker()]
    group = ray.util.get_current_placement_group()
    worker_class = ray.remote(TrialWorker)
    bundles = group.bundle_specs[1:]
    workers = [
        worker_class.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank + 1),
        ).remote(rank, scaling.num_workers)
        for rank, bundle in enumerate(bundles)
    ]
    backend = "nccl" if scaling.gpus_per_worker else "gloo"
    _call(workers, "join", ray.get(workers[0].rendezvous.remote()), backend)
    return workers


def _call(workers: list[Any], method: str, *arguments: Any) -> list[Any]:
    """Call `method` on every worker at once and wait for all."""
    if isinstance(workers[0], TrialWorker):
        return [getattr(workers[0], method)(*arguments)]
    results: list[Any] = ray.get([getattr(worker, method).remote(*arguments) for worker in workers])
    return results
