"""Train in this process on one device: for notebooks, benchmarks and machines without Ray."""

import shutil
import time
from pathlib import Path

from encsearch.config import Config
from encsearch.files import beside
from encsearch.reports import Recorder, Report, TrainingResult, best_report
from encsearch.runner.hardware import local_device
from encsearch.train.checkpoint import save_checkpoint
from encsearch.train.experiment import build
from encsearch.train.loop import fit


def run_local(config: Config, run_dir: Path, recorder: Recorder) -> TrainingResult:
    """Train to the end of the plan on `local_device`, and keep the best checkpoint under `run_dir`.

    Raises what `local_device` raises, TrainingError (non-finite gradient), and closes nothing: the caller
    owns the recorder.
    """
    started = time.monotonic()
    experiment = build(config, device=local_device(config.scaling))
    best_checkpoint = run_dir / "best"
    reports: list[Report] = []
    for report in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        reports.append(report)
        if report is best_report(tuple(reports), config.metric):
            with beside(best_checkpoint) as scratch:
                scratch.mkdir(parents=True)
                save_checkpoint(experiment.state, scratch)
                shutil.rmtree(best_checkpoint, ignore_errors=True)
        recorder.log(report)
    best = best_report(tuple(reports), config.metric)
    return TrainingResult(tuple(reports), best, best_checkpoint, time.monotonic() - started)
