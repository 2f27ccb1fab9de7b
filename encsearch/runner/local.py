"""Train in this process on one device: for notebooks, benchmarks and machines without Ray."""

import time
from pathlib import Path

from encsearch.config import Config
from encsearch.reports import REPORTS_FILE, Recorder, TrainingResult, append, best_report, distinct_reports
from encsearch.runner.hardware import local_device
from encsearch.train.checkpoint import checkpoint_bytes, load_checkpoint
from encsearch.train.checkpoint_files import (
    find_best,
    find_intact,
    write_best,
    write_newest,
)
from encsearch.train.experiment import build
from encsearch.train.loop import fit

KEPT = 2
"""Newest checkpoints on disk: if one is damaged, the training goes on from the one before."""


def run_local(config: Config, run_dir: Path, recorder: Recorder) -> TrainingResult:
    """Train to the end of the plan on `local_device`, and keep the best checkpoint under `run_dir`.

    A second call with the same `run_dir` goes on from its newest intact checkpoint, and first repeats the
    reports up to there. Raises what `local_device` raises, TrainingError (non-finite gradient), and closes
    nothing: the caller owns the recorder.
    """
    started = time.monotonic()
    experiment = build(config, device=local_device(config.scaling))
    spool = run_dir / REPORTS_FILE
    run_dir.mkdir(parents=True, exist_ok=True)
    if checkpoint := find_intact(run_dir):
        load_checkpoint(experiment.state, checkpoint)
    reports = [report for report in distinct_reports(spool) if report.step <= experiment.state.step]
    for report in reports:
        recorder.log(report)
    for report in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        append(spool, report)  # first, so that no checkpoint is without its report
        reports.append(report)
        files = checkpoint_bytes(experiment.state)
        if report is best_report(tuple(reports), config.metric):
            write_best(run_dir, files)
        write_newest(run_dir, report.epoch, files, keep=KEPT)
        recorder.log(report)
    best = best_report(tuple(reports), config.metric)
    return TrainingResult(tuple(reports), best, find_best(run_dir), time.monotonic() - started)
