"""Train in this process on one device: for notebooks, benchmarks and machines without Ray."""

import logging
import time
from contextlib import suppress
from pathlib import Path

from encsearch.config import Config
from encsearch.errors import UserError
from encsearch.reports import (
    REPORTS_FILE,
    Recorder,
    Report,
    TrainingResult,
    append,
    best_report,
    distinct_reports,
)
from encsearch.runner.hardware import local_device
from encsearch.train.checkpoint import checkpoint_bytes, load_checkpoint
from encsearch.train.checkpoint_files import (
    MODEL_FILE,
    find_best,
    intact,
    read_content,
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
    reports up to there; from an earlier one, or the beginning, if the best weights up to there are lost. An
    epoch that is trained again keeps its first report, which was recorded.

    Raises what `local_device` raises, TrainingError (non-finite gradient), and closes nothing: the caller
    owns the recorder.
    """
    started = time.monotonic()
    experiment = build(config, device=local_device(config.scaling))
    spool = run_dir / REPORTS_FILE
    run_dir.mkdir(parents=True, exist_ok=True)
    known = {report.step: report for report in distinct_reports(spool)}
    if checkpoint := _find_start(run_dir, tuple(known.values()), config.metric):
        load_checkpoint(experiment.state, checkpoint)
    reports = [report for step, report in known.items() if step <= experiment.state.step]
    for report in reports:
        recorder.log(report)
    for trained in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        report = known.get(trained.step, trained)
        if report is trained:
            append(spool, report)  # first, so that no checkpoint is without its report
        reports.append(report)
        files = checkpoint_bytes(experiment.state)
        if report is best_report(tuple(reports), config.metric):
            write_best(run_dir, files)
        write_newest(run_dir, report.epoch, files, keep=KEPT)
        recorder.log(report)
    best = best_report(tuple(reports), config.metric)
    return TrainingResult(tuple(reports), best, find_best(run_dir), time.monotonic() - started)


def _find_start(run_dir: Path, reports: tuple[Report, ...], metric: str) -> Path | None:
    """The newest intact checkpoint up to which the best weights are kept, as `best`; None without any.

    The log says so if it is not the newest.
    """
    starts = {content.step: place for place, content in intact(run_dir)}
    best = find_best(run_dir)
    weights = dict(starts)
    with suppress(UserError):
        weights[read_content(best, (MODEL_FILE,)).step] = best  # its optimizer state is not needed
    needed = {step: _best_step(reports, step, metric) for step in starts}
    start = max((step for step in starts if needed[step] in weights), default=None)
    if reports and start != max(starts, default=0):
        logging.getLogger(__name__).warning(
            "%s: no newer checkpoint is left whole with the best weights up to it; training again from %s",
            run_dir,
            "the beginning" if start is None else starts[start].name,
        )
    if start is None:
        return None
    if (kept := weights[needed[start]]) != best:
        write_best(run_dir, {path.name: path.read_bytes() for path in kept.iterdir()})
    return starts[start]


def _best_step(reports: tuple[Report, ...], step: int, metric: str) -> int:
    """The step of the best report up to `step`; -1 if none is left, which no checkpoint has."""
    up_to = tuple(report for report in reports if report.step <= step)
    return best_report(up_to, metric).step if up_to else -1
