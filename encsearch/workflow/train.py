"""`encsearch train`: one configuration, by Ray Train or in this process."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from encsearch.config import CONFIG_FILE, Config, to_yaml, trial_config
from encsearch.files import write_whole
from encsearch.inference.bundle import write_bundle
from encsearch.redaction import without_secrets
from encsearch.reports import Recorder, RunSummary, TrainingResult, recording
from encsearch.runner.hardware import local_device
from encsearch.runner.local import run_local
from encsearch.runner.ray_session import ray_session
from encsearch.text import format_count, format_score
from encsearch.tracking.outbox.record import own_record
from encsearch.tracking.outbox.sender import run_sender
from encsearch.train.preflight import open_store, preflight
from encsearch.workflow.artifacts import checkpoint_model, write_context, write_panels
from encsearch.workflow.job import BUNDLE, Progress, new_folder, write_summary
from encsearch.workflow.recorder import start_recorder


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    summary: RunSummary
    result: TrainingResult


def train(config: Config, out: Path, progress: Progress, *, in_process: bool = False) -> Trained:
    """Train, record in MLflow, and keep the best checkpoint as a bundle in a new folder below `out`.

    Raises PreflightError before anything is started, TrainingError when the training fails.
    """
    config = trial_config(config, {})
    store = open_store(config)
    found = preflight(config, store, out)
    if in_process:
        local_device(config.scaling)
    with run_sender() as sender, _session(config, in_process):
        tracking = sender.store()
        folder = new_folder(out, config.name)
        write_whole(folder / CONFIG_FILE, to_yaml(config))
        with own_record(folder, sender.root) as record:
            sender.follow(folder)
            recorder = start_recorder(
                config,
                store,
                record,
                run=folder.name,
                kind="training",
                artifacts=folder / "artifacts",
                follow=lambda report: progress.epoch(config.name, report, config),
            )
            steps = format_count(found.steps_per_epoch, "step")
            progress.say(f"training {config.name}: {steps} an epoch; files in {folder}")
            with recording(recorder):
                run = run_local if in_process else _ray_runner()
                result = run(config, folder / "checkpoints", recorder)
                bundle = checkpoint_model(config, store, result.best_checkpoint, result.best)
                write_bundle(bundle, folder / BUNDLE)
                # The diagnostics run where the panels have left the model.
                write_panels(
                    bundle, store, recorder.artifacts, "auto" if config.scaling.gpus_per_worker else "cpu"
                )
                write_context(bundle, store, recorder.artifacts)
        summary = RunSummary(
            kind="training",
            name=config.name,
            metric=config.metric,
            value=result.best.metrics[config.metric],
            fingerprint=store.fingerprint,
            store=config.data.store,
            split=config.data.val_split,
            tracking_uri=without_secrets(tracking.uri),
            experiment_id=tracking.experiment_id,
            run=recorder.run,
            run_id=None,
            bundle=str(BUNDLE),
        )
        # Written before the wait: a training stays finished after a Ctrl-C while the store does not answer.
        write_summary(folder, summary)
        sender.notify("finished", f"{config.metric} {format_score(summary.value)}")
        run_ids = sender.run_ids()
    summary = replace(summary, run_id=run_ids.get(recorder.run))
    write_summary(folder, summary)
    return Trained(folder, summary, result)


def _session(config: Config, in_process: bool) -> AbstractContextManager[None]:
    return nullcontext() if in_process else ray_session(needs=config.scaling, dashboard=False)


def _ray_runner() -> Callable[[Config, Path, Recorder], TrainingResult]:
    """Imported late: importing Ray takes seconds, which a training without it can save."""
    from encsearch.runner.ray_train import run_ray_train

    return run_ray_train
