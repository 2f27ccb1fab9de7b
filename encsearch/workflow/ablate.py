"""`encsearch ablate`: the paper's ablation; one parent run in MLflow, one child a training.

The folder, beside what every job has:

    trainings.jsonl      a line a finished training; what --resume does not train again
    models/              EncNet's weights of every seed and budget, and FCN's of the picture sheet
    parent_run_id        the ablation's own run in MLflow
    trials/              the reports of each training, and the last checkpoint of a running one
    training-artifacts/  the tables of each training
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from encsearch.bundle import read_bundle
from encsearch.config import Config, flatten, load_config, to_yaml
from encsearch.data.store import read_manifest
from encsearch.errors import TrainingError, UserError
from encsearch.experiment import preflight
from encsearch.records import Recorder, Report, recording
from encsearch.redaction import without_secrets
from encsearch.runner.ray_session import ray_session
from encsearch.search.ablation.plan import (
    ENCNET,
    FCN,
    MULTI_SCALE,
    Ablation,
    Result,
    Training,
    budgets,
    figures_of,
    plan_ablation,
)
from encsearch.search.ablation.report import PICTURE_FILE, AblationStory, write_report
from encsearch.search.ablation.rescore import rescore
from encsearch.search.ablation.side_by_side import run_side_by_side
from encsearch.search.trials import TrialEvent
from encsearch.spool import append_line, read_lines
from encsearch.tracking.lineage import lineage
from encsearch.tracking.mlflow import (
    MlflowRecorder,
    Tracking,
    connect,
    continue_run,
    reap_children,
    start_run,
)
from encsearch.workflow.folder import RunSummary, new_folder, write_summary
from encsearch.workflow.gains import write_gains
from encsearch.workflow.progress import Progress
from encsearch.workflow.recorded import checkpoint_model, recorder_of, save_model

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "trainings.jsonl"
PARENT_FILE = "parent_run_id"


@dataclass(frozen=True)
class Ablated:
    """A finished ablation; `report` is the Markdown page."""

    folder: Path
    summary: RunSummary
    story: AblationStory
    report: Path


def planned(config: Config, out: Path) -> Ablation:
    """The trainings of the recipe's ablation, each of which could run here now.

    Raises UserError for a row that is no valid configuration, PreflightError for one that cannot run; both
    name the row.
    """
    ablation = plan_ablation(config)
    preflight(config, out)
    # Only the model differs between rows, in what preflight sees.
    for row, training in {training.row: training for training in ablation.trainings}.items():
        try:
            preflight(training.config, out)
        except UserError as error:
            raise type(error)(f"ablation row {row!r}: {error}") from None
    return ablation


def ablate(config: Config, out: Path, progress: Progress, *, resume: Path | None = None) -> Ablated:
    """Train every row and curve of `config.ablate` side by side, compare their last epochs, write the report.

    In a new folder below `out`, or in `resume`, where an ablation of the same recipe was broken off: what it
    finished is not trained again. Raises UserError or PreflightError before anything is started, and
    TrainingError when no EncNet could be trained; the report of the others is written then.
    """
    ablation = planned(config, out)
    if resume:
        _check_same(config, resume)
    with ray_session(needs=config.scaling):
        return _ablate(config, ablation, out, progress, resume)


def _ablate(
    config: Config, ablation: Ablation, out: Path, progress: Progress, resume: Path | None
) -> Ablated:
    started = time.monotonic()
    tracking = connect()
    folder = resume or new_folder(out, config.name)
    if not resume:
        (folder / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    fingerprint = read_manifest(config.data.store).fingerprint
    parent = _parent_run(config, tracking, folder, fingerprint)
    observer = _Observer(config, ablation, tracking, parent.run_id, folder, progress)
    done = {result.name for result in observer.results}
    missing = [training for training in ablation.trainings if training.name not in done]
    progress.say(
        f"ablation of {config.name}: {len(missing)} of {len(ablation.trainings)} trainings to run; "
        f"files in {folder}"
    )
    with recording(parent):
        if missing:
            run_side_by_side(missing, config.scaling, folder / "trials", observer, fingerprint=fingerprint)
        _add_multi_scale(config, ablation, folder, observer)
        artifacts = folder / "artifacts"
        story = AblationStory(
            name=config.name,
            metric=config.metric,
            store=Path(config.data.store).name,
            split=config.data.val_split,
            seeds=config.ablate.seeds,
            figures=figures_of(ablation, observer.results, config.metric),
            results=tuple(observer.results),
            failures=observer.failures,
            pictures=_compare_pictures(config, ablation, folder, artifacts / PICTURE_FILE),
            wall_seconds=time.monotonic() - started,
        )
        report = write_report(story, artifacts)
        parent.log(_means(story))
        summary = _summary(config, ablation, observer, fingerprint)
    write_summary(folder, summary)
    return Ablated(folder, summary, story, report)


class _Observer:
    """Records trainings as children of the ablation's run, and keeps the results and the weights needed."""

    def __init__(
        self,
        config: Config,
        ablation: Ablation,
        tracking: Tracking,
        parent_run_id: str,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.results = [Result(**line) for line in read_lines(folder / RESULTS_FILE)]
        self.tracking, self.parent_run_id = tracking, parent_run_id
        encnets = [ablation.point(ENCNET, epochs) for epochs in budgets(config)]
        self._kept = {name for point in encnets for name in point.trainings.values()}
        self._kept |= {*_pictured(config, ablation).values()}
        self._folder, self._progress = folder, progress
        self._run_ids: dict[str, str] = {}

    def open_recorder(self, training: Training) -> Recorder:
        config = training.config
        recorder = recorder_of(
            config,
            self.tracking,
            name=training.name,
            kind="ablation-training",
            artifacts=self._folder / "training-artifacts" / training.name,
            parent_run_id=self.parent_run_id,
            tags={
                "encsearch.row": training.row,
                "encsearch.seed": str(config.train.seed),
                "encsearch.budget": str(config.train.epochs),
            },
        )
        self._run_ids[training.name] = recorder.run_id
        return recorder

    def trained(self, training: Training, last: Report, seconds: float, checkpoint: Path) -> None:
        config = training.config
        if training.name in self._kept:
            save_model(
                checkpoint_model(config, checkpoint, last.metrics), _model_folder(self._folder, training.name)
            )
        # Last, since a training with a line here is not trained again.
        self.add(
            Result(
                name=training.name,
                row=training.row,
                seed=config.train.seed,
                epochs=config.train.epochs,
                metrics=last.metrics,
                seconds=seconds,
                run_id=self._run_ids[training.name],
            )
        )

    def add(self, result: Result) -> None:
        append_line(self._folder / RESULTS_FILE, asdict(result))
        self.results.append(result)

    def failed(self, training: Training, reason: str) -> None:
        self.failures[training.name] = reason

    def follow(self, training: Training, event: TrialEvent) -> None:
        self._progress.trial(event, training.config)


def _parent_run(config: Config, tracking: Tracking, folder: Path, fingerprint: str) -> MlflowRecorder:
    """A new run, or the one that the folder's ablation was recorded in so far."""
    note = folder / PARENT_FILE
    artifacts = folder / "artifacts"
    if note.exists():
        run_id = note.read_text(encoding="utf-8").strip()
        parent = continue_run(tracking, run_id, flatten(config), artifacts)
        reap_children(tracking, run_id)
        return parent
    parent = start_run(
        tracking,
        name=folder.name,
        params=flatten(config),
        tags={**lineage(fingerprint, Path.cwd()), "encsearch.kind": "ablation"},
        artifact_dir=artifacts,
    )
    note.write_text(parent.run_id + "\n", encoding="utf-8")
    return parent


def _check_same(config: Config, folder: Path) -> None:
    """Results of another recipe cannot be continued."""
    for name in (CONFIG_FILE, PARENT_FILE):  # every job has the first, an ablation alone the second
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not the folder of an ablation ({name} is missing)")
    before, now = flatten(load_config(folder / CONFIG_FILE)), flatten(config)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{folder}: was begun with {name}={before.get(name)}, but the recipe has {now.get(name)}; "
                "give the same value, or start anew without --resume"
            )


def _add_multi_scale(config: Config, ablation: Ablation, folder: Path, observer: _Observer) -> None:
    """Score EncNet's weights of the last epoch at several scales and mirrored, as rows of their own."""
    found = {result.name: result for result in observer.results}
    models = {
        name: _model_folder(folder, training)
        for name, training in ablation.rescored.items()
        if training in found and name not in found
    }
    changed = {"scales": config.ablate.scales, "flip": True, "background": None}
    settings = config.eval.model_copy(update=changed)
    for scored in rescore(models, Path(config.data.store), settings, config.scaling):
        if scored.failure:
            observer.failures[scored.name] = scored.failure
            continue
        trained = found[ablation.rescored[scored.name]]
        observer.add(
            replace(
                trained,
                name=scored.name,
                row=MULTI_SCALE,
                metrics=scored.metrics,
                seconds=scored.seconds,
            )
        )


def _pictured(config: Config, ablation: Ablation) -> dict[str, str]:
    """The trainings of the picture sheet, by row: the first seed's at the longest budget."""
    seed, epochs = config.ablate.seeds[0], budgets(config)[-1]
    return {row: ablation.point(row, epochs).trainings[seed] for row in (FCN, ENCNET)}


def _compare_pictures(config: Config, ablation: Ablation, folder: Path, target: Path) -> str:
    """Draw the sheet if both models were trained; its caption, or why there is none."""
    names = _pictured(config, ablation)
    models = {row: _model_folder(folder, name) for row, name in names.items()}
    missing = [names[row] for row, model in models.items() if not model.exists()]
    if missing:
        return f"No pictures: {' and '.join(missing)} came to nothing."
    write_gains(("EncNet", read_bundle(models[ENCNET])), (FCN, read_bundle(models[FCN])), target)
    seed, epochs = config.ablate.seeds[0], budgets(config)[-1]
    return (
        f'FCN and EncNet ("{ENCNET}") after {epochs} epochs, seed {seed}. The validation images are chosen '
        "by rule: those with the largest, the median and the worst gain of EncNet over FCN in the mIoU of "
        "the single image; the gain is printed beside each row, in percent."
    )


def _means(story: AblationStory) -> Report:
    """The means over seeds as the metrics of the ablation's own run."""
    means = {
        f"{f.point.label}, {f.point.epochs} epochs": f.estimates[story.metric].mean for f in story.figures
    }
    return Report(epoch=0, step=0, seconds=story.wall_seconds, metrics=means)


def _summary(config: Config, ablation: Ablation, observer: _Observer, fingerprint: str) -> RunSummary:
    """Its model is EncNet's of the first seed that was trained at the longest budget."""
    encnet = ablation.point(ENCNET, budgets(config)[-1])
    found = {result.name: result for result in observer.results}
    trained = [found[name] for name in encnet.trainings.values() if name in found]
    if not trained:
        reasons = {observer.failures[name] for name in encnet.trainings.values()}
        raise TrainingError(
            f'all of {len(encnet.trainings)} trainings of "{ENCNET}" failed: {"; ".join(sorted(reasons))}'
        )
    return RunSummary(
        kind="ablation",
        name=config.name,
        metric=config.metric,
        value=fmean(result.metrics[config.metric] for result in trained),
        fingerprint=fingerprint,
        store=config.data.store,
        split=config.data.val_split,
        tracking_uri=without_secrets(observer.tracking.uri),
        experiment_id=observer.tracking.experiment_id,
        run_id=trained[0].run_id,
        bundle=str(_model_folder(Path(), trained[0].name)),
        parent_run_id=observer.parent_run_id,
    )


def _model_folder(folder: Path, training: str) -> Path:
    return folder / "models" / training
