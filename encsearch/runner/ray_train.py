"""Train with Ray Train workers: DDP over any number of processes, and recovery of lost ones.

The workers do not know about tracking. Rank 0 writes reports and checkpoints into the training's folder, as
every training does (`rank`); the driver forwards the reports to the recorder. So one record outlives any
number of worker restarts, and Ray's own reports and checkpoints are not used.
"""

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray._raylet import PlacementGroupID
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from encsearch.config import Config, ScalingConfig, from_json, to_json
from encsearch.errors import NoticeError, StorageError, TrainingError, UserError, last_line, one_line
from encsearch.reports import (
    REPORTS_FILE,
    OnStep,
    Recorder,
    TrainingResult,
    best_report,
    distinct_reports,
    forwarding,
    ignore_step,
)
from encsearch.runner.monitor import count_recovery
from encsearch.runner.pulse import announce_drain, beating, take_drain, watching
from encsearch.runner.rank import RankTraining
from encsearch.runner.ray_session import PREEMPTION_WATCHER
from encsearch.train.checkpoint_files import find_best
from encsearch.train.experiment import build
from encsearch.train.moments import no_notice

WhyNot = NoticeError | TrainingError | UserError
"""Why a worker goes no further; another attempt would end in the same way."""


def run_ray_train(
    config: Config,
    run_dir: Path,
    recorder: Recorder,
    notice: Callable[[], bool] = no_notice,
    on_step: OnStep = ignore_step,
) -> TrainingResult:
    """Train with `config.scaling.num_workers` DDP workers; Ray is already connected.

    A lost worker restarts the group from the last checkpoint, at most `scaling.max_failures` times, and one
    that does not answer is lost after `scaling.timeout_s`. A node that Ray drains is no failure: the state is
    saved before it goes. A second call with the same `run_dir` resumes from its last checkpoint. `on_step` is
    called in a thread, several times a second, with the step that rank 0 has last told.

    Raises TrainingError when the training ends without a result, NoticeError once it is saved after a
    `notice`. The caller closes the recorder.
    """
    started = time.monotonic()
    run_dir = run_dir.absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    spool = run_dir / REPORTS_FILE
    key = secrets.token_hex(8)
    # Read by Ray's controller when `fit` starts it; a worker that is stopped would be noticed after ten
    # minutes.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.scaling.timeout_s)
    if config.scaling.min_workers:
        # Ray 2.60 counts a node that has just gone, and would wait 60 s for as many workers as before.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"
    # Silenced, since Ray prints every worker's stack; people get one line from the TrainingError.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    silence_s = config.scaling.timeout_s / 4
    job = run_dir.parent.name
    count_recovery(job, 0)
    with (
        forwarding(spool, recorder),
        watching(key, config.scaling.num_workers, notice, silence_s, on_step, job) as describe_silence,
        _keep_interrupt(),
    ):
        try:
            failure = _fit(config, run_dir, key)
        except TrainingFailedError as error:
            silence = describe_silence()
            raise TrainingError(_describe_failure(error) + (f"; {silence}" if silence else "")) from None
        except RayError as error:  # its head or this node's raylet is gone
            raise TrainingError(
                f"Ray is lost ({one_line(last_line(error))}); go on with `encsearch resume`"
            ) from None
    if isinstance(failure, NoticeError | StorageError):
        raise failure
    if failure:
        raise TrainingError(one_line(failure, None))
    reports = tuple(distinct_reports(spool))
    if not reports:
        raise TrainingError(f"{run_dir}: the training ended without a report")
    best = best_report(reports, config.metric)
    return TrainingResult(reports, best, find_best(run_dir), time.monotonic() - started)


def _fit(config: Config, run_dir: Path, key: str) -> "WhyNot | None":
    """Train by Ray, and return what the workers return.

    Ray 2.60 starts lost workers again, but not its controller; here it is, as often as workers are. And it
    counts a failure where a node goes before its time is over, since another worker is the first to notice.
    Its memory monitor kills the controller, or what that needs, beside the workers.
    """
    log = logging.getLogger(__name__)
    max_failures, failures = config.scaling.max_failures, 0
    while True:
        trainer = _TrainerWithoutData(
            _train_worker,
            train_loop_config={
                "config": to_json(config),
                "folder": str(run_dir),
                "key": key,
                "is_watched": os.environ.get(PREEMPTION_WATCHER) == "1",
            },
            torch_config=ray.train.torch.TorchConfig(timeout_s=round(config.scaling.timeout_s)),
            scaling_config=_to_ray_scaling(config.scaling),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(run_dir),
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
                worker_runtime_env={"env_vars": {"PYTHONWARNINGS": "ignore"}},
            ),
        )
        try:
            returned: WhyNot | None = trainer.fit().return_value
            return returned
        except (TrainingFailedError, RayActorError, OutOfMemoryError) as error:
            if isinstance(error, TrainingFailedError) and take_drain(key):
                log.warning("a node that was to go is gone; the training starts again, which is no failure")
                continue
            if not _is_loss(error) or failures == max_failures:
                raise
            failures += 1
            log.warning(
                "Ray's controller of the training is lost (%s); another one starts (%d of %d)",
                one_line(last_line(error)),
                failures,
                max_failures,
            )
            _free_workers()


class _TrainerWithoutData(ray.train.torch.TorchTrainer):
    """Ray 2.60 has a process for Ray Data, and imports it in each worker, also where no data set is given."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "DatasetsCallback"]


def _is_loss(error: Exception) -> bool:
    """Whether Ray's controller, or a process that it needs, was lost."""
    cause = getattr(error, "controller_failure", error)
    return isinstance(cause, RayActorError | OutOfMemoryError)


def _free_workers() -> None:
    """Give back what the workers of a lost controller hold, on a Ray of this process.

    Ray 2.60 has a process for that, which asks the dashboard; such a Ray has none, and runs nothing else.
    """
    if "RAY_ADDRESS" not in os.environ:
        for number, group in placement_group_table().items():
            if group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(number))))


@contextmanager
def _keep_interrupt() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt: Ray 2.60 installs a handler that ends the process with code 0 or 1."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _to_ray_scaling(scaling: ScalingConfig) -> ray.train.ScalingConfig:
    resources = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    return ray.train.ScalingConfig(
        num_workers=(scaling.min_workers, scaling.num_workers)
        if scaling.min_workers
        else scaling.num_workers,
        use_gpu=scaling.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


class _Preemption:
    """Whether Ray has announced, since the last question, that a node of this training goes."""

    def __init__(self, training: str, is_watched: bool) -> None:
        self._training, self._is_watched = training, is_watched
        self._last: Any = None

    def __call__(self) -> bool:
        """Every rank must ask at the same step: Ray brings their answers together."""
        info = ray.train.get_preemption_info() if self._is_watched else None
        is_new = info is not None and info != self._last
        self._last = info
        if is_new:
            announce_drain(self._training)
        return is_new


def _train_worker(arguments: dict[str, Any]) -> "WhyNot | None":
    """Train one rank; returns why the training cannot go on, or None at its end.

    What would come again on every rank is returned, not raised: Ray would retry.
    """
    config = from_json(arguments["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    # Ray 2.60 shows every GPU of the node to a process that booked none.
    device = str(ray.train.torch.get_device()) if config.scaling.gpus_per_worker else "cpu"
    world_size = context.get_world_size()
    try:
        experiment = build(config, rank=rank, world_size=world_size, device=device)
    except TrainingError as error:
        if world_size > 1:
            raise  # the others wait for this one, until Ray ends all
        return error
    preempted = _Preemption(arguments["key"], arguments["is_watched"])
    with beating(arguments["key"], rank, world_size, lambda: experiment.state.step) as notice:
        training = RankTraining(
            experiment, Path(arguments["folder"]), config.metric, notice=notice, preempted=preempted
        )
        try:
            training.begin()
            for _ in training.reports():
                pass
        except (NoticeError, TrainingError, UserError) as error:
            return error
    return None


def _describe_failure(error: TrainingFailedError) -> str:
    """The message of the first failed worker, or of Ray."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause: Exception = failures[0] if failures else error
    return last_line(cause)
