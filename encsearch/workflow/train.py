"""`encsearch train`: one configuration, by Ray Train or in this process."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from encsearch.config import CONFIG_FILE, Config, to_yaml, trial_config
from encsearch.data.own import with_own_store
from encsearch.data.store import Store
from encsearch.files import read_object, write_whole
from encsearch.inference.bundle import checkpoint_model, write_bundle
from encsearch.redaction import without_user
from encsearch.reports import (
    BEGUN_FILE,
    REPORTS_FILE,
    SUMMARY_FILE,
    OnStep,
    Recorder,
    RunSummary,
    TrainingResult,
    best_report,
    distinct_reports,
    read_summary,
    recording,
)
from encsearch.runner.hardware import local_device
from encsearch.runner.local import run_local
from encsearch.runner.monitor import say_dashboard
from encsearch.runner.notice import sigterm_notice
from encsearch.runner.ray_session import ray_session
from encsearch.text import format_count, format_score
from encsearch.tracking.outbox.record import Record, own_record
from encsearch.tracking.outbox.sender import Sender, run_sender
from encsearch.train.checkpoint_files import CHECKPOINTS, drop_checkpoints, find_best
from encsearch.train.preflight import check_same_data, open_store, preflight
from encsearch.workflow.artifacts import write_context, write_panels
from encsearch.workflow.job import (
    BUNDLE,
    Progress,
    changed_config,
    keep_code,
    kept_code,
    new_folder,
    report_resume,
    write_summary,
)
from encsearch.workflow.recorder import start_recorder

Runner = Callable[[Config, Path, Recorder, Callable[[], bool], OnStep], TrainingResult]
"""Trains to the end of the plan in a folder; see `run_ray_train`."""


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its summary, and the reports of all its epochs."""

    folder: Path
    summary: RunSummary
    result: TrainingResult = field(repr=False)


@dataclass(frozen=True)
class _Begun:
    """What a resume needs besides the recipe."""

    fingerprint: str
    in_process: bool


def train(
    config: Config, out: Path, progress: Progress, *, in_process: bool = False, name: str | None = None
) -> Trained:
    """Train, record in MLflow, and keep the best checkpoint as a bundle in a new folder below `out`.

    It is called `name`, or after the recipe and the time.
    Raises PreflightError before anything is started, TrainingError when the training fails.
    """
    config = with_own_store(trial_config(config, {}), out)
    store = open_store(config)
    found = preflight(config, store, out)
    if in_process:
        local_device(config.scaling)
    progress.phase("starting the record" if in_process else "starting Ray")
    with run_sender() as sender, _session(config, in_process):
        run = _runner(in_process)
        sender.store()
        folder = new_folder(out, config.name, name)
        write_whole(folder / CONFIG_FILE, to_yaml(config))
        config = keep_code(config, folder)
        begun = _Begun(store.fingerprint, in_process)
        write_whole(folder / BEGUN_FILE, json.dumps(asdict(begun)) + "\n")
        steps = format_count(found.steps_per_epoch, "step")
        with own_record(folder, sender.root) as record:
            progress.say(f"training {config.name}: {steps} an epoch; files in {folder}")
            for line in found.facts:
                progress.say(line)
            total = found.steps_per_epoch * config.train.epochs
            result = _run(config, store, folder, record, sender, progress, total, run)
        return _finish(config, store, folder, sender, result)


def resume(folder: Path, overrides: Sequence[str], progress: Progress) -> Trained:
    """Go on with a training that was killed or interrupted, from its newest checkpoint.

    A finished one is read, and not trained again. Raises UserError for a folder that is not a training's, for
    a change that would make it another training, and while another process trains there; PreflightError when
    the data has changed.
    """
    begun = read_object(folder / BEGUN_FILE, _Begun)
    recipe = changed_config(folder, overrides)
    if (folder / SUMMARY_FILE).is_file():
        return _read_finished(folder, recipe.metric)
    config = kept_code(recipe, folder)
    store = open_store(config)
    found = preflight(config, store, folder)
    check_same_data(config, store, begun.fingerprint)
    progress.phase("starting the record" if begun.in_process else "starting Ray")
    with run_sender() as sender, _session(config, begun.in_process):
        run = _runner(begun.in_process)
        sender.store()
        with own_record(folder, sender.root) as record:
            write_whole(folder / CONFIG_FILE, to_yaml(recipe))
            done = len(distinct_reports(folder / CHECKPOINTS / REPORTS_FILE))
            epochs = format_count(config.train.epochs, "epoch")
            progress.say(
                f"training {config.name} goes on: {format_count(done)} of {epochs} of "
                f"{format_count(found.steps_per_epoch, 'step')} have been reported; files in {folder}"
            )
            total = found.steps_per_epoch * config.train.epochs
            result = _run(config, store, folder, record, sender, progress, total, run)
        return _finish(config, store, folder, sender, result)


def _read_finished(folder: Path, metric: str) -> Trained:
    place = folder / CHECKPOINTS
    reports = tuple(distinct_reports(place / REPORTS_FILE))
    seconds = sum(report.seconds for report in reports)
    result = TrainingResult(reports, best_report(reports, metric), find_best(place), seconds)
    return Trained(folder, read_summary(folder), result)


def _run(
    config: Config,
    store: Store,
    folder: Path,
    record: Record,
    sender: Sender,
    progress: Progress,
    total: int,
    run: Runner,
) -> TrainingResult:
    """Train in a folder that has been begun, to the end of its plan of `total` steps."""
    sender.follow(folder)
    say_dashboard(progress.say)
    progress.phase("starting the training")
    recorder = start_recorder(
        config,
        store,
        record,
        run=folder.name,
        kind="training",
        artifacts=folder / "artifacts",
        follow=lambda report: progress.epoch(config.name, report, config),
    )
    with recording(recorder), report_resume(folder, progress.say):
        with sigterm_notice() as notice:
            result = run(
                config,
                folder / CHECKPOINTS,
                recorder,
                notice,
                lambda step: progress.step(step, total, config),
            )
        progress.phase("keeping the best checkpoint as a model, drawing its pictures")
        bundle = checkpoint_model(config, store, result.best_checkpoint, result.best)
        write_bundle(bundle, folder / BUNDLE)
        # The diagnostics run where the panels have left the model.
        write_panels(bundle, store, recorder.artifacts, "auto" if config.scaling.gpus_per_worker else "cpu")
        write_context(bundle, store, recorder.artifacts)
    return result


def _finish(config: Config, store: Store, folder: Path, sender: Sender, result: TrainingResult) -> Trained:
    tracking, run = sender.store(), folder.name
    summary = RunSummary(
        kind="training",
        name=config.name,
        metric=config.metric,
        value=result.best.metrics[config.metric],
        fingerprint=store.fingerprint,
        store=config.data.store,
        split=config.data.val_split,
        tracking_uri=without_user(tracking.uri),
        experiment_id=tracking.experiment_id,
        run=run,
        run_id=None,
        bundle=str(BUNDLE),
    )
    # Written before the wait: a training stays finished after a Ctrl-C while the store does not answer.
    write_summary(folder, summary)
    drop_checkpoints(folder / CHECKPOINTS)
    sender.notify("finished", f"{config.metric} {format_score(summary.value)}")
    run_ids = sender.run_ids()
    summary = replace(summary, run_id=run_ids.get(run))
    write_summary(folder, summary)
    return Trained(folder, summary, result)


def _session(config: Config, in_process: bool) -> AbstractContextManager[None]:
    return nullcontext() if in_process else ray_session(needs=config.scaling, dashboard=False)


def _runner(in_process: bool) -> Runner:
    """Called while the sender prepares its store: Ray's import takes as long, on another core."""
    if in_process:
        return run_local
    from encsearch.runner.ray_train import run_ray_train

    return run_ray_train
