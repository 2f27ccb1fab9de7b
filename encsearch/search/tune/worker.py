"""One rank of a trial: what the trial's process, or each process of its group, does with torch."""

import gc
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ray
import torch
import torch.distributed as dist

from encsearch.config import from_json
from encsearch.errors import NoticeError, TrainingError, UserError, one_line
from encsearch.reports import Report
from encsearch.runner.hardware import describe_hardware, latency_ms
from encsearch.runner.pulse import listen
from encsearch.runner.rank import RankTraining
from encsearch.train.experiment import Experiment, build
from encsearch.train.moments import no_notice


@dataclass(frozen=True)
class Built:
    """A worker's answer to `build`: its hardware, and why the training cannot start (`failure`).

    `reports` are those up to the checkpoint from which it goes on.
    """

    hardware: str
    failure: str | None = None
    reports: tuple[Report, ...] = ()


class TrialWorker:
    """One rank of a trial, in the trial's own process or as an actor beside it, perhaps on another node."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self._rank, self._world_size = rank, world_size
        self._experiment: Experiment | None = None
        self._reports: Generator[Report, None, None] | None = None
        self._compiles = False
        self._notice: Callable[[], bool] = no_notice

    def rendezvous(self) -> str:
        """Find a free address on this rank's node for the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, rendezvous: str, backend: str, timeout_s: float) -> None:
        dist.init_process_group(
            backend,
            init_method=rendezvous,
            rank=self._rank,
            world_size=self._world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=torch.device("cuda:0") if backend == "nccl" else None,
        )

    def listen(self, sweep: str) -> None:
        """Hear from now on when the driver was told to end."""
        self._notice = listen(sweep)

    def build(self, config_json: str, fingerprint: str, folder: Path, keeps_best: bool) -> Built:
        """Replace the last training with a new one, or one that goes on in its folder.

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
        except (TrainingError, UserError) as error:
            return Built(hardware, one_line(error, None))
        if experiment.fingerprint != fingerprint:
            found = experiment.fingerprint[:12]
            return Built(
                hardware, f"{config.data.store} has other data here ({found}, not {fingerprint[:12]})"
            )
        self._experiment = experiment
        # One checkpoint, since there are hundreds of trials. The driver deletes it when the trial has ended.
        training = RankTraining(
            experiment,
            folder,
            config.metric,
            keep=1,
            keeps_best=keeps_best,
            settles=True,
            notice=self._notice,
        )
        try:
            reports = training.begin()
        except UserError as error:
            return Built(hardware, str(error))
        self._reports = training.reports()
        return Built(hardware, reports=reports)

    def step(self) -> Report | NoticeError | TrainingError | UserError:
        """Train one more epoch; return its report, or why there is none: Tune would retry what is raised."""
        assert self._reports is not None
        try:
            return next(self._reports)
        except StopIteration:
            return NoticeError("its state is saved")  # the answer before was this one too
        except (NoticeError, TrainingError, UserError) as error:
            return error

    def latency_ms(self) -> float:
        return latency_ms(self._built())

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
