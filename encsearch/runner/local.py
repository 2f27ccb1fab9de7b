"""Train in this process on one device: for notebooks, benchmarks and machines without Ray."""

import time
from collections.abc import Callable
from pathlib import Path

from encsearch.config import Config
from encsearch.reports import OnStep, Recorder, TrainingResult, best_report, ignore_step
from encsearch.runner.hardware import local_device
from encsearch.runner.rank import RankTraining
from encsearch.train.checkpoint_files import find_best
from encsearch.train.experiment import build
from encsearch.train.moments import no_notice


def run_local(
    config: Config,
    run_dir: Path,
    recorder: Recorder,
    notice: Callable[[], bool] = no_notice,
    on_step: OnStep = ignore_step,
) -> TrainingResult:
    """Train to the end of the plan on `local_device`, and keep the best checkpoint under `run_dir`.

    A second call with the same `run_dir` goes on from its newest intact checkpoint, and first repeats the
    reports up to there; see `RankTraining`. `on_step` is called after every step.

    Raises what `local_device` raises, TrainingError when the training fails, NoticeError once it is saved
    after a `notice`, and closes nothing: the caller owns the recorder.
    """
    started = time.monotonic()
    experiment = build(config, device=local_device(config.scaling))
    run_dir.mkdir(parents=True, exist_ok=True)

    def stepping() -> bool:
        on_step(experiment.state.step)
        return notice()

    training = RankTraining(experiment, run_dir, config.metric, notice=stepping)
    reports = list(training.begin())
    for report in reports:
        recorder.log(report)
    for report in training.reports():
        reports.append(report)
        recorder.log(report)
    best = best_report(tuple(reports), config.metric)
    return TrainingResult(tuple(reports), best, find_best(run_dir), time.monotonic() - started)
