"""Real Ray Train workers: the report of each epoch once, and a lost worker's training goes on."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from encsearch.config import Config, with_values
from encsearch.errors import TrainingError
from encsearch.reports import MemoryRecorder, Report
from encsearch.runner.ray_train import run_ray_train
from encsearch.train.checkpoint import load_checkpoint
from encsearch.train.experiment import build

pytestmark = pytest.mark.ray

EPOCHS = 5
# Everything that draws random numbers.
AUGMENT = {
    "crop": [24, 40],
    "shorter_side": 36,
    "scale": [0.5, 2],
    "rotate_deg": 10,
    "jitter": 0.2,
    "blur": 0.5,
    "class_uniform": 0.5,
}


class KillsAWorker(MemoryRecorder):
    """Ends one worker process with SIGKILL when it sees the second epoch."""

    killed: int | None = None

    def log(self, report: Report) -> None:
        super().log(report)
        if report.epoch == 2 and self.killed is None:
            workers = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
            self.killed = workers[-1].pid
            os.kill(self.killed, signal.SIGKILL)


def test_a_killed_worker_costs_no_epoch_and_changes_no_figure(toy_config: Config, tmp_path: Path) -> None:
    config = with_values(toy_config, {"scaling.num_workers": 2, "train.epochs": EPOCHS})
    # Epochs that take a moment, so that the kill falls into a running one.
    config = with_values(config, {"train.steps_per_epoch": 40})
    config = with_values(config, {f"augment.{name}": value for name, value in AUGMENT.items()})
    calm, attacked = MemoryRecorder(), KillsAWorker()

    expected = run_ray_train(config, tmp_path / "calm", calm)
    result = run_ray_train(config, tmp_path / "attacked", attacked)

    assert attacked.killed is not None
    assert [r.epoch for r in attacked.reports] == list(range(1, EPOCHS + 1))
    resumed = attacked.reports[-1].metrics["resumed_from_step"]
    assert resumed >= 40, "it must go on from a checkpoint, not from the start"
    assert "resumed_from_step" not in calm.reports[-1].metrics
    assert result.best.metrics["mIoU"] == pytest.approx(expected.best.metrics["mIoU"], abs=1e-6)
    assert attacked.reports[-1].confusion == calm.reports[-1].confusion

    state = build(config).state
    load_checkpoint(state, result.best_checkpoint)
    assert state.step == result.best.step, "weights and metric must be of the same step"


def test_a_diverging_training_fails_once_with_its_reason(toy_config: Config, tmp_path: Path) -> None:
    config = with_values(toy_config, {"optim.lr": 10, "optim.head_lr_factor": 1000, "train.epochs": 40})
    recorder = MemoryRecorder()

    with pytest.raises(TrainingError, match="non-finite gradient in 3 steps"):
        run_ray_train(config, tmp_path, recorder)


def _is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in process.name() + " ".join(process.cmdline())
