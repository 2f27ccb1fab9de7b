"""The recording of a training in MLflow: its reports, and the artifacts that explain its best epoch."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from encsearch.config import Config, flatten, to_yaml
from encsearch.data.datasets import SHOWN_IMAGES, Sample, evenly_spaced
from encsearch.data.store import Store
from encsearch.reports import INIT_FILE, Report, Status, best_report
from encsearch.runner.monitor import publish_report
from encsearch.tracking.lineage import (
    code_tags,
    data_tags,
    describe_dataset,
    describe_run,
    lineage,
    machine_tags,
    write_diff,
)
from encsearch.tracking.outbox.record import Record, RunRecord
from encsearch.tracking.run_files import (
    IMAGES_TAG,
    TABLE_TAG,
    write_artifacts,
    write_panels,
    write_predictions,
    write_texts,
)

REASON_TAG = "encsearch.reason"  # why a training ended before its last epoch
INIT_TAG = "encsearch.init_from"  # what it took of the model that it began with

# Not for trials and the trainings of an ablation, which are too many.
PICTURED = ("training", "finalist", "baseline")

# Sections of a recipe that say nothing of how a model is trained, and the kind of run that is about one.
OF_OTHERS = ("search", "ablate", "eval", "promote", "code")
OF_KIND = {"sweep": "search", "ablation": "ablate"}

Follow = Callable[[Report], None]
"""Called with each report after it was recorded, to show progress."""


def follow_nothing(report: Report) -> None:
    """For trainings that are followed elsewhere."""


class TrainingRecorder:
    """A `Recorder` that stores a report's files at once, and the best epoch's tables at the end."""

    def __init__(
        self,
        inner: RunRecord,
        config: Config,
        store: Store,
        artifacts: Path,
        follow: Follow,
        *,
        pictured: bool,
    ) -> None:
        """With `pictured`, the predictions in the reports are drawn, which takes 0.1 s a sheet."""
        self.run = inner.run
        self.artifacts = artifacts
        self._inner, self._config, self._store = inner, config, store
        self._follow, self._pictured = follow, pictured
        self._reports: list[Report] = []

    def log(self, report: Report) -> None:
        """Record and show a report; of one that a resumed training repeats only the scores are kept."""
        is_new = report.epoch > self._inner.last_epoch
        if is_new:
            self._store_files(report)
        self._reports.append(report)
        self._inner.log(report)
        if is_new:
            self._follow(report)

    def note(self, tag: str, text: str) -> None:
        """Add a tag to the run."""
        self._inner.note({tag: text})

    def draw_panels(self) -> None:
        """Draw the newest predictions in the reports, for a training whose model is not kept."""
        newest = next((report for report in reversed(self._reports) if report.label_maps), None)
        if newest:
            write_panels(self.artifacts, newest, self._samples(), self._store.info)

    def close(self, status: Status) -> None:
        try:
            if self._reports:
                best = best_report(tuple(self._reports), self._config.metric)
                write_artifacts(self.artifacts, best, self._store.info.classes, to_yaml(self._config))
        finally:
            self._inner.close(status)

    def _store_files(self, report: Report) -> None:
        """Store the predictions at once, to be watched; all of `artifacts` is stored at the end."""
        write_texts(self.artifacts, report)
        tags = machine_tags(report) | ({REASON_TAG: report.ends} if report.ends else {})
        if origin := report.texts.get(INIT_FILE):
            tags[INIT_TAG] = origin.strip()
        if tags:
            self._inner.note(tags)
        if self._pictured and report.label_maps:
            for picture in write_predictions(self.artifacts, report, self._samples(), self._store.info):
                self._inner.file(picture, str(picture.parent.relative_to(self.artifacts)))

    def _samples(self) -> list[Sample]:
        return evenly_spaced(self._store.split(self._config.data.val_split), SHOWN_IMAGES)


def start_recorder(
    config: Config,
    store: Store,
    record: Record,
    *,
    run: str,
    kind: str,
    artifacts: Path,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    follow: Follow = follow_nothing,
) -> TrainingRecorder:
    """Start or continue the MLflow run of one training, with its resolved config as params and its lineage.

    `run` and `parent` are names of runs in the job's record, `artifacts` is a folder below the job's.
    """
    inner = start_run(
        config,
        store,
        record,
        run=run,
        kind=kind,
        artifacts=artifacts,
        parent=parent,
        tags={**TABLE_TAG, **IMAGES_TAG, **(tags or {})},
    )

    def publish_and_follow(report: Report) -> None:
        publish_report(record.job_folder.absolute().name, run, report)
        follow(report)

    return TrainingRecorder(inner, config, store, artifacts, publish_and_follow, pictured=kind in PICTURED)


def start_run(
    config: Config,
    store: Store,
    record: Record,
    *,
    run: str,
    kind: str,
    artifacts: Path,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunRecord:
    """Start or continue a run of any kind, with the params and tags that every run of encsearch has."""
    if parent is None:
        # Once for each job: its trainings run the same code.
        write_diff(record.root, artifacts)
    return record.start(
        run,
        params=_params(config, kind),
        tags={
            **_lineage(record.root),
            **data_tags(store.manifest),
            **code_tags(config),
            **describe_run(config, store.manifest, kind),
            "encsearch.kind": kind,
            **(tags or {}),
        },
        parent=parent,
        dataset=describe_dataset(config.data, store),
        artifacts=artifacts,
    )


def _params(config: Config, kind: str) -> dict[str, str | int | float | bool | None]:
    """The leaves of the sections that make the run what it is; `config.yaml` has them all."""
    own = OF_KIND.get(kind)
    return {
        path: value
        for path, value in flatten(config).items()
        if (section := path.partition(".")[0]) == own or section not in OF_OTHERS
    }


@cache
def _lineage(root: Path) -> dict[str, str]:
    """Collect the lineage once for each job: git takes longer than a short trial's epoch."""
    return lineage(root)
