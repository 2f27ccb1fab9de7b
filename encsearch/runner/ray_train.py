"""Train with Ray Train workers: DDP over any number of processes, and recovery of lost ones.

The workers do not know about tracking. Their reports go through Ray Train's controller, which runs on the
driver's node, into a spool file; the driver forwards the spool to the recorder. So one record
outlives any number of worker restarts.
"""

import logging
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from encsearch.config import Config, ScalingConfig, from_json, to_json
from encsearch.errors import TrainingError, UserError, last_line, one_line
from encsearch.reports import REPORTS_FILE, Recorder, Report, SpoolReader, TrainingResult, append, forwarding
from encsearch.runner.hardware import COLLECTIVE_TIMEOUT_S
from encsearch.train.checkpoint import load_checkpoint, save_checkpoint
from encsearch.train.checkpoint_files import MODEL_FILE, find_before, read_content
from encsearch.train.experiment import build
from encsearch.train.loop import fit
from encsearch.train.state import TrainState


def run_ray_train(config: Config, run_dir: Path, recorder: Recorder) -> TrainingResult:
    """Train with `config.scaling.num_workers` DDP workers; Ray is already connected.

    A lost worker restarts the group from the last checkpoint, at most `scaling.max_failures` times.
    A second call with the same `run_dir` resumes from its last checkpoint.
    Raises TrainingError when the training ends without a result. The caller closes the recorder.
    """
    started = time.monotonic()
    run_dir = run_dir.absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    spool = run_dir / REPORTS_FILE
    # Silenced, since Ray prints every worker's stack; people get one line from the TrainingError.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"config": to_json(config)},
        torch_config=ray.train.torch.TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=_to_ray_scaling(config.scaling),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(run_dir),
            failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=config.metric, checkpoint_score_order="max"
            ),
            callbacks=[_SpoolReports(spool)],
            worker_runtime_env={"env_vars": {"PYTHONWARNINGS": "ignore"}},
        ),
    )
    with forwarding(spool, recorder), _keep_interrupt():
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise TrainingError(_describe_failure(error)) from None
    if result.return_value:
        raise TrainingError(result.return_value)
    reports = tuple(SpoolReader(spool).new_reports())
    if not reports or not result.best_checkpoints:
        raise TrainingError(f"{run_dir}: the training ended without a report")
    kept = sorted(result.best_checkpoints, key=lambda pair: pair[1][config.metric], reverse=True)
    best_checkpoint, best = _find_intact([(Path(place.path), metrics) for place, metrics in kept])
    return TrainingResult(reports, best, best_checkpoint, time.monotonic() - started)


def _find_intact(kept: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[Path, Report]:
    """The first checkpoint with intact weights and its report; the log names those that are passed over.

    Raises TrainingError if none is.
    """
    for place, metrics in kept:
        report = Report.from_dict(metrics["report"])
        try:
            read_content(place, (MODEL_FILE,))
            return place, report
        except UserError as error:
            logging.getLogger(__name__).warning("%s; epoch %d is not used", error, report.epoch)
    raise TrainingError(f"{kept[0][0].parent}: no checkpoint has intact weights; start a new training")


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
        num_workers=scaling.num_workers,
        use_gpu=scaling.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


class _SpoolReports(UserCallback):
    """Runs in the controller: appends each epoch's report once, even if a restart repeats the epoch."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._reader = SpoolReader(spool)
        self._newest_step = 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        report = Report.from_dict(metrics[0]["report"])
        for written in self._reader.new_reports():
            self._newest_step = written.step
        if report.step > self._newest_step:
            append(self._spool, report)


def _train_worker(arguments: dict[str, str]) -> str | None:
    """Train one rank; returns why the training cannot go on, or None at its end.

    A non-finite gradient is returned, not raised: Ray would retry, and it would come again on every rank.
    """
    config = from_json(arguments["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    # Ray 2.60 shows every GPU of the node to a process that booked none.
    device = str(ray.train.torch.get_device()) if config.scaling.gpus_per_worker else "cpu"
    experiment = build(config, rank=rank, world_size=context.get_world_size(), device=device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            _load_newest(experiment.state, Path(folder), Path(checkpoint.path))
    # The record shows where a training went on after a lost worker.
    resumed = {"resumed_from_step": float(experiment.state.step)}
    try:
        for report in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
            _publish(replace(report, metrics={**report.metrics, **resumed}), experiment.state, rank)
    except TrainingError as error:
        return one_line(error, None)
    return None


def _load_newest(state: TrainState, folder: Path, stored: Path) -> None:
    """Go on from a checkpoint or, if it is damaged, from the one before in the same storage."""
    try:
        load_checkpoint(state, folder)
    except UserError as error:
        before = find_before(stored)
        if before is None:
            raise
        logging.getLogger(__name__).warning("%s; going on from %s", error, before.name)
        load_checkpoint(state, before)


def _publish(report: Report, state: TrainState, rank: int) -> None:
    """Every rank reports; rank 0 adds the checkpoint of the same step."""
    metrics = {**report.metrics, "report": report.to_dict()}
    if rank > 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(state, Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _describe_failure(error: TrainingFailedError) -> str:
    """The message of the first failed worker, or of Ray."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause: Exception = failures[0] if failures else error
    return last_line(cause)
