"""A trial as Ray Tune runs it: one process, or a DDP group of its own, behind the same three calls.

A trial of several workers owns its group in one placement group. Measured on Ray 2.60, that costs a quarter
of the CPU time of a TorchTrainer nested in a Tune function, it cannot deadlock (the group is granted whole or
not at all), and nothing of it outlives a killed driver.
"""

import socket
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from encsearch.config import ScalingConfig, from_json
from encsearch.errors import TrainingError, UserError
from encsearch.experiment import build
from encsearch.train.checkpoint import load_checkpoint, save_checkpoint
from encsearch.train.loop import fit

# What the process of a trial with several workers books: it only waits for them. Ray refuses a bundle without
# any resource, and a part of a CPU would keep the trial off a cluster that has exactly its workers' CPUs.
SUPERVISOR = {"memory": 1}


def trial_resources(scaling: ScalingConfig) -> tune.PlacementGroupFactory:
    """One bundle for a single worker; else one for the trial's own process and one for each worker."""
    worker = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        worker["GPU"] = scaling.gpus_per_worker
    if scaling.num_workers == 1:
        return tune.PlacementGroupFactory([worker])
    return tune.PlacementGroupFactory([SUPERVISOR] + [worker] * scaling.num_workers)


class Trial(tune.Trainable):
    """Steps a training by one epoch; `config["config"]` is the trial's whole configuration as JSON.

    The processes are reused for the next trial, so torch is imported once.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._workers = _start_workers(from_json(config["config"]).scaling)
        self._build(config["config"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._build(new_config["config"])
        return True

    def step(self) -> dict[str, Any]:
        """The report of one more epoch, or why the trial cannot go on (`failure`)."""
        if self._failure:
            return {"failure": self._failure, "done": True}
        results: list[dict[str, Any]] = _call(self._workers, "step")
        return next((result for result in results if "failure" in result), results[0])

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._failure:
            return
        for name, content in _call(self._workers[:1], "save")[0].items():
            (Path(checkpoint_dir) / name).write_bytes(content)

    def load_checkpoint(self, checkpoint: Any) -> None:
        files = {path.name: path.read_bytes() for path in Path(checkpoint).iterdir() if path.is_file()}
        _call(self._workers, "load", files)

    def cleanup(self) -> None:
        for worker in self._workers:
            if not isinstance(worker, TrialWorker):
                ray.kill(worker)

    def _build(self, config: str) -> None:
        reasons = _call(self._workers, "build", config)
        self._failure: str | None = next(filter(None, reasons), None)


class TrialWorker:
    """One rank of a trial, in the trial's own process or as an actor beside it.

    Checkpoints cross as {file name: content}, because an actor may live on another node.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self._rank, self._world_size = rank, world_size

    def rendezvous(self) -> str:
        """A free address on this rank's node for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, rendezvous: str, backend: str) -> None:
        dist.init_process_group(backend, init_method=rendezvous, rank=self._rank, world_size=self._world_size)

    def build(self, config_json: str) -> str | None:
        """Start a training in the place of the last one; returns why it cannot start, if it cannot.

        If that were raised, Tune would start the same trial again.
        """
        config = from_json(config_json)
        # Ray 2.60 shows every GPU of the node to a process that booked none.
        device = "cuda:0" if config.scaling.gpus_per_worker else "cpu"
        try:
            experiment = build(config, rank=self._rank, world_size=self._world_size, device=device)
        except UserError as error:
            return str(error)
        self._state, self._epochs = experiment.state, experiment.plan.epochs
        self._reports = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
        return None

    def step(self) -> dict[str, Any]:
        try:
            report = next(self._reports)
        except (TrainingError, UserError) as error:
            return {"failure": str(error), "done": True}
        done = report.epoch == self._epochs
        return {**report.metrics, "epoch": report.epoch, "report": report.to_dict(), "done": done}

    def save(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(self._state, Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def load(self, files: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            load_checkpoint(self._state, Path(folder))


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
