"""One rank of a trial: what the trial's process, or each process of its group, does with torch."""

import gc
import socket
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ray
import torch
import torch.distributed as dist

from encsearch.config import from_json
from encsearch.errors import TrainingError, UserError, one_line
from encsearch.reports import Report
from encsearch.runner.hardware import COLLECTIVE_TIMEOUT_S, describe_hardware, latency_ms
from encsearch.train.checkpoint import checkpoint_bytes, load_checkpoint
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import fit


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
            return Built(hardware, one_line(error, None))
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
            return one_line(error, None)

    def latency_ms(self) -> float:
        return latency_ms(self._built())

    def save(self) -> dict[str, bytes]:
        return checkpoint_bytes(self._built().state)

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
