"""`encsearch sweep`: search, confirm, report; one parent run in MLflow, one child a trial and a finalist."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.bundle import Bundle
from encsearch.config import Config, ScalingConfig, flatten, to_yaml
from encsearch.data.store import open_split
from encsearch.errors import UserError
from encsearch.experiment import preflight
from encsearch.panels import comparison_sheet, evenly_spaced
from encsearch.predict import Predictor
from encsearch.records import Recorder, Report, recording
from encsearch.runner.ray_session import ray_session
from encsearch.search.confirm import Confirmation, confirm
from encsearch.search.finalists import BASELINE_LABELS, Finalist
from encsearch.search.report import FinalistRow, SweepSummary, from_json, render, to_json
from encsearch.search.sweep import run_sweep
from encsearch.search.trials import TrialEvent, TrialRecord
from encsearch.tracking.lineage import lineage
from encsearch.tracking.links import children_link, compare_link, run_link, ui_base, ui_command
from encsearch.tracking.mlflow import Tracking, connect, start_run
from encsearch.tracking.uris import without_secrets
from encsearch.workflow.folder import RunSummary, new_folder, write_summary
from encsearch.workflow.progress import Progress
from encsearch.workflow.recorded import (
    CONTEXT_FOLDER,
    TrainingRecorder,
    checkpoint_model,
    recorder_of,
    save_model,
    write_context,
    write_panels,
)

SHEET_IMAGES = 6
REPORT_FILE = "report.html"
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Swept:
    """A finished sweep; `report` is the HTML page."""

    folder: Path
    summary: RunSummary
    records: tuple[TrialRecord, ...]
    confirmation: Confirmation
    report: Path


def sweep(config: Config, out: Path, progress: Progress) -> Swept:
    """Run the recipe's search in a new folder below `out`, confirm the finalists, write the report.

    Raises UserError without a `search:` block, PreflightError before anything is started, and
    TrainingError when nothing could be trained.
    """
    if config.search is None:
        raise UserError(f"recipe {config.name} has no search: block; add one, or use `encsearch train`")
    found = preflight(config, out)
    with ray_session(needs=_largest(config)):
        return _sweep(config, out, progress, connect(), found.fingerprint)


def _sweep(config: Config, out: Path, progress: Progress, tracking: Tracking, fingerprint: str) -> Swept:
    assert config.search is not None
    started = time.monotonic()
    folder = new_folder(out, config.name)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    parent = start_run(
        tracking,
        name=folder.name,
        params=flatten(config),
        tags={**lineage(fingerprint, Path.cwd()), "encsearch.kind": "sweep"},
        artifact_dir=folder / "artifacts",
    )
    progress.say(f"sweep {config.name}: {config.search.num_trials} trials; files in {folder}")
    with recording(parent):
        observer = _Observer(config, tracking, parent.run_id, folder, progress)
        records = run_sweep(config, folder, observer)
        confirmation = confirm(config, records, folder / "finalists", observer)
        parent.log(confirmation.winner.result.best)
        picture = _compare_models(confirmation, folder / "artifacts" / "comparison.png")
        story = _story(config, records, confirmation, observer, picture, time.monotonic() - started)
        (folder / SWEEP_FILE).write_text(to_json(story), encoding="utf-8")
        report = render(story, folder / "artifacts" / REPORT_FILE)
    winner = confirmation.winner
    summary = RunSummary(
        kind="sweep",
        name=config.name,
        metric=config.metric,
        value=winner.value,
        fingerprint=fingerprint,
        store=config.data.store,
        split=config.data.val_split,
        tracking_uri=without_secrets(tracking.uri),
        experiment_id=tracking.experiment_id,
        run_id=observer.run_ids[winner.name],
        bundle=str(Path("finalists") / winner.name / "artifacts" / "bundle"),
        parent_run_id=parent.run_id,
    )
    write_summary(folder, summary)
    return Swept(folder, summary, records, confirmation, report)


def rewrite_report(folder: Path) -> Path:
    """Write the report of a finished sweep anew from its `sweep.json`."""
    try:
        story = from_json((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not the folder of a finished sweep ({SWEEP_FILE} is missing)") from None
    except ValueError as error:
        reason = ", ".join(str(error).splitlines()[:3])
        raise UserError(f"{folder / SWEEP_FILE}: cannot be read ({reason})") from None
    return render(story, folder / "artifacts" / REPORT_FILE)


class _Observer:
    """Records trials and finalists as children of the sweep's run, and passes events on to the person."""

    def __init__(
        self, config: Config, tracking: Tracking, parent_run_id: str, folder: Path, progress: Progress
    ) -> None:
        self.run_ids: dict[str, str] = {}
        self.tracking, self.parent_run_id = tracking, parent_run_id
        self._config, self._folder, self._progress = config, folder, progress
        self._trials: dict[int, TrainingRecorder] = {}

    def open_recorder(self, number: int, config: Config) -> Recorder:
        name = f"trial{number}"
        artifacts = self._folder / "trial-artifacts" / name
        self._trials[number] = self._open(name, "trial", config, artifacts, {"encsearch.trial": str(number)})
        return self._trials[number]

    def trial_ended(self, event: TrialEvent, config: Config, checkpoint: Path | None) -> None:
        recorder = self._trials.pop(event.number)
        recorder.note("encsearch.state", event.state)
        if event.reason:
            recorder.note("encsearch.reason", event.reason)
        if checkpoint:
            write_panels(checkpoint_model(config, checkpoint, {}), recorder.artifacts)

    def follow(self, event: TrialEvent) -> None:
        self._progress.trial(event, self._config)

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        kind = "baseline" if trial is None else "finalist"
        tags = {"encsearch.trial": str(trial)} if trial is not None else {}
        workers, epochs = config.scaling.num_workers, config.train.epochs
        self._progress.say(f"{kind} {name}: {workers} Ray Train workers, {epochs} epochs")
        return self._open(name, kind, config, self._folder / "finalists" / name / "artifacts", tags)

    def finalist_trained(self, finalist: Finalist) -> None:
        artifacts = self._folder / "finalists" / finalist.name / "artifacts"
        best = finalist.result.best
        bundle = checkpoint_model(finalist.config, finalist.result.best_checkpoint, best.metrics)
        save_model(bundle, artifacts / "bundle")
        write_panels(bundle, artifacts)
        write_context(bundle, artifacts)
        self._progress.say(f"{finalist.name}: {finalist.config.metric} {finalist.value:.4f}")

    def finalist_failed(self, name: str, reason: str) -> None:
        self._progress.say(f"{name} failed: {reason}")

    def _open(
        self, name: str, kind: str, config: Config, artifacts: Path, tags: dict[str, str]
    ) -> TrainingRecorder:
        def follow(report: Report) -> None:
            # Trials are followed through the ledger's events.
            if kind != "trial":
                self._progress.epoch(name, report, config)

        recorder = recorder_of(
            config,
            self.tracking,
            name=name,
            kind=kind,
            artifacts=artifacts,
            parent_run_id=self.parent_run_id,
            tags=tags,
            follow=follow,
        )
        self.run_ids[name] = recorder.run_id
        return recorder


def _largest(config: Config) -> ScalingConfig:
    """The workers of a trial or of a finalist, whichever is more."""
    assert config.search is not None
    workers = max(config.scaling.num_workers, config.search.confirm.num_workers or 1)
    return config.scaling.model_copy(update={"num_workers": workers})


def _compare_models(confirmation: Confirmation, target: Path) -> Path:
    """A sheet of the baselines' and the winner's predictions on the same validation images."""
    winner = confirmation.winner
    first_of_each = {_title(f): f for f in reversed((*confirmation.baselines, winner))}
    models = {title: Predictor(_bundle(f)) for title, f in reversed(first_of_each.items())}
    dataset = open_split(winner.config.data.store, winner.config.data.val_split)
    target.parent.mkdir(parents=True, exist_ok=True)
    comparison_sheet(evenly_spaced(dataset, SHEET_IMAGES), dataset.info, models).save(target)
    return target


def _bundle(finalist: Finalist) -> Bundle:
    return checkpoint_model(finalist.config, finalist.result.best_checkpoint, finalist.result.best.metrics)


def _title(finalist: Finalist) -> str:
    return {**BASELINE_LABELS, "encoding": "EncNet"}[finalist.config.model.context]


def _story(
    config: Config,
    records: Sequence[TrialRecord],
    confirmation: Confirmation,
    observer: _Observer,
    picture: Path,
    wall_seconds: float,
) -> SweepSummary:
    assert config.search is not None
    tracking, run_ids = observer.tracking, observer.run_ids
    base = ui_base(tracking.uri)
    children = [run_ids[f"trial{record.number}"] for record in records]
    return SweepSummary(
        name=config.name,
        metric=config.metric,
        space={path: dimension.kind for path, dimension in config.search.space.items()},
        epochs=config.train.epochs,
        trials=tuple(records),
        finalists=tuple(_finalist_row(f) for f in (*confirmation.finalists, *confirmation.baselines)),
        winner=confirmation.winner.trial,
        config_yaml=to_yaml(config),
        mlflow=ui_command(tracking.uri) or "",
        links=(
            (
                "trials and finalists",
                children_link(base, tracking.experiment_id, observer.parent_run_id, config.metric),
            ),
            ("comparison", compare_link(base, tracking.experiment_id, children)),
            ("winner", run_link(base, tracking.experiment_id, run_ids[confirmation.winner.name])),
        ),
        picture=Path(picture.name),  # it lies beside the report
        wall_seconds=wall_seconds,
        context=_context_folder(confirmation.winner.name, picture.parent),
    )


def _context_folder(winner: str, artifacts: Path) -> Path | None:
    """The winner's diagnostics, relative to the report's folder; None for a model without context module."""
    folder = Path("..", "finalists", winner, "artifacts", CONTEXT_FOLDER)
    return folder if (artifacts / folder).is_dir() else None


def _finalist_row(finalist: Finalist) -> FinalistRow:
    return FinalistRow(
        trial=finalist.trial,
        seed=finalist.config.train.seed,
        num_workers=finalist.config.scaling.num_workers,
        value=finalist.value,
        epochs=finalist.result.reports[-1].epoch,
        seconds=finalist.result.seconds,
        class_iou=dict(finalist.result.best.class_iou),
        label="" if finalist.trial is not None else _title(finalist),
    )
