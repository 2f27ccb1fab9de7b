"""A trial as Ray Tune runs it: one process, or its own DDP group, behind the same three calls.

A trial with several workers owns its group in one placement group: it cannot deadlock (Ray grants the whole
group or nothing), and none of its processes outlives a killed driver. After the first trial, which starts the
processes, it costs 0.2 CPU seconds beside the training; a TorchTrainer nested in a Tune function costs 21
(Ray 2.60, benchmarks/trial_overhead.py).
"""

import time
from collections import deque
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from encsearch.config import ScalingConfig, from_json
from encsearch.errors import NoticeError, StorageError, one_line
from encsearch.reports import Report
from encsearch.search.trials import ENDS_ALL, LATENCY, SAVED

# Resources of a trial's own process beside several workers; it only waits for them. Ray refuses a bundle
# without any resource, and part of a CPU would keep the trial off a cluster with exactly its workers' CPUs.
SUPERVISOR = {"memory": 1}
SAVED_S = 0.5


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
    _next: dict[str, Any] | None  # what the next step builds first
    _epochs: int
    _origin: dict[str, str]
    _ready: deque[Report]
    _failure: str | None
    _measures_latency: bool

    def setup(self, config: dict[str, Any]) -> None:
        self._workers = _start_workers(from_json(config["config"]).scaling)
        _call(self._workers, "listen", config["sweep"])
        self._next = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._next = new_config
        return True

    def step(self) -> dict[str, Any]:
        """The report of one more epoch, or the reason why the trial cannot continue (`failure`).

        `ends_all` is why the trial, and all others with it, is to be resumed later. Once the driver was told
        to end, `saved`: the state is on disk, and nothing more is trained. Before the first epoch, if it was
        requested, only `latency_ms`.
        """
        # Not in `setup`: while that goes on, Tune 2.60 may give the trial to a process that has become free,
        # and two processes would be at work in one folder. Only one of them is ever told to step.
        if self._next:
            config, self._next = self._next, None
            self._build(config)
        if self._failure:
            return {**self._origin, "failure": self._failure, "done": True}
        if self._measures_latency:
            self._measures_latency = False
            return {**self._origin, LATENCY: _call(self._workers[:1], "latency_ms")[0]}
        if not self._ready:
            results = _call(self._workers, "step")
            match next((result for result in results if not isinstance(result, Report)), results[0]):
                case Report() as report:
                    self._ready.append(report)
                case NoticeError():
                    time.sleep(SAVED_S)  # Tune asks again at once
                    return {**self._origin, SAVED: True}
                case StorageError() as error:
                    return {**self._origin, ENDS_ALL: str(error)}
                case error:
                    return {**self._origin, "failure": one_line(error, None), "done": True}
        report = self._ready.popleft()
        return {
            **self._origin,
            "report": report.to_dict(),
            "epoch": report.epoch,
            "done": report.epoch == self._epochs or bool(report.ends),
        }

    def cleanup(self) -> None:
        for worker in self._workers:
            if isinstance(worker, ActorHandle):
                ray.kill(worker)

    def _build(self, config: dict[str, Any]) -> None:
        folder = Path(config["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self._measures_latency = config["measures_latency"]
        self._epochs = from_json(config["config"]).train.epochs
        built = _call(
            self._workers, "build", config["config"], config["fingerprint"], folder, config["keeps_best"]
        )
        self._failure = next(filter(None, (b.failure for b in built)), None)
        kinds = sorted({worker.hardware for worker in built})
        self._origin = {"hardware": f"{len(built)} x {' and '.join(kinds)}"}
        self._ready = deque(built[0].reports)


def _start_workers(scaling: ScalingConfig) -> list[Any]:
    # Here, in the trial's process: the driver, which hands this class to Tune, has no torch.
    from encsearch.search.tune.worker import TrialWorker

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
    _call(workers, "join", ray.get(workers[0].rendezvous.remote()), backend, scaling.timeout_s)
    return workers


def _call(workers: list[Any], method: str, *arguments: Any) -> list[Any]:
    """Call `method` on every worker at once and wait for all."""
    if not isinstance(workers[0], ActorHandle):
        return [getattr(workers[0], method)(*arguments)]
    results: list[Any] = ray.get([getattr(worker, method).remote(*arguments) for worker in workers])
    return results
