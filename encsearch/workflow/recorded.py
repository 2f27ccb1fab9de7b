"""A training on its way into MLflow: its reports, and the artifacts that explain its best epoch."""

from collections.abc import Callable, Mapping
from pathlib import Path

from encsearch.bundle import Bundle, write_bundle
from encsearch.config import Config, flatten, to_yaml
from encsearch.data.store import open_split, read_manifest
from encsearch.model.encnet import EncNet
from encsearch.panels import comparison_sheet, evenly_spaced
from encsearch.predict import Predictor
from encsearch.records import Report, Status
from encsearch.runner.result import best_report
from encsearch.tracking.artifacts import write_artifacts
from encsearch.tracking.lineage import lineage
from encsearch.tracking.mlflow import MlflowRecorder, Tracking, continue_training, start_run
from encsearch.train.checkpoint import load_weights

PANEL_IMAGES = 4
CONTEXT_FOLDER = "context"
# The context module is diagnosed on so many validation images, fewer if they are large: 4 Mpx in all, and so
# a second or two with a small network; never under the least number.
MAX_DIAGNOSED, MIN_DIAGNOSED, DIAGNOSED_PIXELS = 64, 8, 2**22

Follow = Callable[[Report], None]
"""Called with each report after it was recorded, to show progress."""


def follow_nothing(report: Report) -> None:
    """For trainings that are followed elsewhere."""


class TrainingRecorder:
    """A `Recorder` that adds the best epoch's tables when it is closed; see `recorder_of`."""

    def __init__(
        self,
        inner: MlflowRecorder,
        config: Config,
        classes: tuple[str, ...],
        artifacts: Path,
        follow: Follow,
    ) -> None:
        self.run_id = inner.run_id
        self.artifacts = artifacts
        self._inner, self._config, self._classes, self._follow = inner, config, classes, follow
        self._reports: list[Report] = []

    def log(self, report: Report) -> None:
        self._reports.append(report)
        self._inner.log(report)
        self._follow(report)

    def note(self, tag: str, text: str) -> None:
        """Add a tag to the run."""
        self._inner.note(tag, text)

    def close(self, status: Status) -> None:
        try:
            if self._reports:
                best = best_report(tuple(self._reports), self._config.metric)
                write_artifacts(self.artifacts, best, self._classes, to_yaml(self._config))
        finally:
            self._inner.close(status)


def recorder_of(
    config: Config,
    tracking: Tracking,
    *,
    name: str,
    kind: str,
    artifacts: Path,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    follow: Follow = follow_nothing,
    run_id: str | None = None,
) -> TrainingRecorder:
    """Start the MLflow run of one training: its resolved config as params, its lineage as tags.

    With `run_id` that run goes on.
    """
    manifest = read_manifest(config.data.store)
    if run_id:
        inner = continue_training(tracking, run_id, flatten(config), artifacts)
        return TrainingRecorder(inner, config, manifest.info.classes, artifacts, follow)
    inner = start_run(
        tracking,
        name=name,
        params=flatten(config),
        tags={**lineage(manifest.fingerprint, Path.cwd()), "encsearch.kind": kind, **(tags or {})},
        artifact_dir=artifacts,
        parent_run_id=parent_run_id,
    )
    return TrainingRecorder(inner, config, manifest.info.classes, artifacts, follow)


def checkpoint_model(config: Config, checkpoint: Path, metrics: Mapping[str, float]) -> Bundle:
    """The model of a checkpoint that was trained with `config`."""
    manifest = read_manifest(config.data.store)
    shape = config.model.model_copy(update={"weights": None})
    model = EncNet.from_config(shape, len(manifest.info.classes))
    load_weights(model, checkpoint)
    return Bundle(model.eval(), config, manifest.info, manifest.fingerprint, metrics)


def save_model(bundle: Bundle, folder: Path) -> Path:
    write_bundle(
        folder,
        bundle.model,
        bundle.config,
        bundle.info,
        fingerprint=bundle.fingerprint,
        metrics=bundle.metrics,
    )
    return folder


def write_panels(bundle: Bundle, artifacts: Path) -> None:
    """`panels.png`: the same validation images in every run, their truth and this model's prediction."""
    dataset = open_split(bundle.config.data.store, bundle.config.data.val_split)
    samples = evenly_spaced(dataset, PANEL_IMAGES)
    artifacts.mkdir(parents=True, exist_ok=True)
    comparison_sheet(samples, bundle.info, {"prediction": Predictor(bundle)}).save(artifacts / "panels.png")


def write_context(bundle: Bundle, artifacts: Path) -> None:
    """`context/`: what the context module does on validation images; nothing for a model without one."""
    from encsearch.diagnostics.artifacts import write_diagnostics

    dataset = open_split(bundle.config.data.store, bundle.config.data.val_split)
    affordable = DIAGNOSED_PIXELS // dataset[0].mask.size
    samples = evenly_spaced(dataset, min(max(affordable, MIN_DIAGNOSED), MAX_DIAGNOSED))
    write_diagnostics(bundle, samples, artifacts / CONTEXT_FOLDER)
