"""`encsearch ablate`: the paper's ablation; one parent run in MLflow, one child a training.

Files in the folder, in addition to those of every job:

    trainings.jsonl      one line for each finished training or scoring, which a resume does not run again
    models/              EncNet's weights for every seed and budget, FCN's for the picture sheet, and until
                         they are scored those of FCN and the pooled gate
    record/              the events for MLflow
    trials/              the reports of each training, and the last checkpoint of a running one
    training-artifacts/  the tables of each training
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from encsearch.config import CONFIG_FILE, Config, to_yaml
from encsearch.data.own import with_own_store
from encsearch.data.store import Store
from encsearch.errors import TrainingError, UserError
from encsearch.files import append_line, read_lines, to_object, write_whole
from encsearch.inference.bundle import checkpoint_model, read_bundle, write_bundle
from encsearch.redaction import without_user
from encsearch.report.ablation import PICTURE_FILE, WORDS_FILES, AblationStory, select_series, write_report
from encsearch.reports import (
    REPORTS_FILE,
    RESULTS_FILE,
    Recorder,
    Report,
    RunSummary,
    distinct_reports,
    recording,
)
from encsearch.runner.monitor import say_dashboard
from encsearch.runner.ray_session import ray_session, rehearse_session
from encsearch.search.ablation.plan import (
    ENCNET,
    FCN,
    Ablation,
    AblationResult,
    PlannedScoring,
    PlannedTraining,
    budgets,
    compute_figures,
    plan_ablation,
)
from encsearch.search.ablation.scoring import Scoring, score_side_by_side, score_weights
from encsearch.search.ablation.words import check_scenes, score_words
from encsearch.search.sweep import count_places
from encsearch.search.trials import TrialEvent
from encsearch.search.tune.side_by_side import run_side_by_side
from encsearch.text import format_count
from encsearch.tracking.outbox.record import Record, own_record
from encsearch.tracking.outbox.sender import Sender, TrackingStore, run_sender
from encsearch.tracking.uris import resolve_uri
from encsearch.train.checkpoint_files import drop_checkpoints, find_newest
from encsearch.train.preflight import check_same_data, open_store, preflight
from encsearch.workflow.ablate.gains import write_gains
from encsearch.workflow.job import (
    Progress,
    changed_config,
    keep_code,
    kept_code,
    new_folder,
    report_resume,
    write_summary,
)
from encsearch.workflow.recorder import start_recorder, start_run


@dataclass(frozen=True)
class Ablated:
    """A finished ablation; `report` is the Markdown page."""

    folder: Path
    summary: RunSummary
    story: AblationStory = field(repr=False)
    report: Path


def dry_run(config: Config, out: Path) -> Ablation:
    """Plan the recipe's ablation and check that each training can run here now; nothing is started.

    MLflow is not contacted. Raises what `ablate` does.
    """
    ablation, _ = _planned(with_own_store(config, out), out)
    with rehearse_session(needs=config.scaling):
        return ablation


def ablate(config: Config, out: Path, progress: Progress, *, name: str | None = None) -> Ablated:
    """Train every row and curve of `config.ablate` side by side, compare their last epochs, write the report.

    Files go to a new folder below `out`, called `name`, or after the recipe and the time. Raises UserError or
    PreflightError before anything is started, and TrainingError when no EncNet could be trained, after
    writing the report of the others.
    """
    config = with_own_store(config, out)
    _, store = _planned(config, out)
    with run_sender() as sender, ExitStack() as session:
        session.enter_context(ray_session(needs=config.scaling))
        tracking = sender.store()
        folder = new_folder(out, config.name, name)
        write_whole(folder / CONFIG_FILE, to_yaml(config))
        own = keep_code(config, folder)
        (folder / RESULTS_FILE).touch()  # last: with it the folder is an ablation's
        return _run(config, own, store, folder, sender, tracking, session, progress)


def resume(folder: Path, overrides: Sequence[str], progress: Progress) -> Ablated:
    """Go on with an ablation that was killed or interrupted; its finished trainings are kept.

    Raises UserError for a change that would make it another ablation, and while another process runs it;
    PreflightError when the data has changed.
    """
    recipe = changed_config(folder, overrides)
    config = kept_code(recipe, folder)
    _, store = _planned(config, folder)
    record = Record(folder)
    begun = record.find(record.main) if record.main else None
    if begun and begun.started.dataset:
        check_same_data(config, store, begun.started.dataset.fingerprint)
    with run_sender() as sender, ExitStack() as session:
        session.enter_context(ray_session(needs=config.scaling))
        return _run(recipe, config, store, folder, sender, sender.store(), session, progress)


def _run(
    recipe: Config,
    config: Config,
    store: Store,
    folder: Path,
    sender: Sender,
    tracking: TrackingStore,
    session: ExitStack,
    progress: Progress,
) -> Ablated:
    """Run what is left of an ablation; `config` is the recipe with own parts from the folder."""
    ablation = plan_ablation(config)
    with own_record(folder, sender.root) as record:
        write_whole(folder / CONFIG_FILE, to_yaml(recipe))  # a resume may have changed its scaling
        sender.follow(folder)
        say_dashboard(progress.say)
        observer = _Observer(config, store, ablation, record, folder, progress)
        story, report = _train_and_compare(config, store, ablation, record, observer, session, folder)
    sender.notify("finished", f"report: {report}")
    summary = _summary(config, store, ablation, observer, tracking, sender.run_ids())
    write_summary(folder, summary)
    return Ablated(folder, summary, story, report)


def _planned(config: Config, out: Path) -> tuple[Ablation, Store]:
    """Plan the trainings and open the store.

    Raises UserError for a row without a valid configuration, PreflightError for one that cannot run; both
    name the row.
    """
    ablation = plan_ablation(config)
    store = open_store(config)
    resolve_uri(None)
    preflight(config, store, out)
    if pattern := config.ablate.scene_pattern:
        train, val = (store.split(name).ids() for name in (config.data.train_split, config.data.val_split))
        check_scenes(train, val, pattern)
    # One training for each row: of all that preflight checks, only the model differs between rows.
    for row, training in {training.row: training for training in ablation.trainings}.items():
        try:
            preflight(training.config, store, out)
        except UserError as error:
            raise type(error)(f"ablation row {row!r}: {error}") from None
    return ablation, store


def _train_and_compare(
    config: Config,
    store: Store,
    ablation: Ablation,
    record: Record,
    observer: "_Observer",
    session: ExitStack,
    folder: Path,
) -> tuple[AblationStory, Path]:
    """`session` is Ray's, and is closed before the report is written."""
    started = time.monotonic()
    artifacts = folder / "artifacts"
    parent = start_run(config, store, record, run=observer.parent, kind="ablation", artifacts=artifacts)
    done = {result.name for result in observer.results}
    missing = [training for training in ablation.trainings if training.name not in done]
    observer.say(
        f"ablation of {config.name}: {len(missing)} of {len(ablation.trainings)} trainings to run; "
        f"files in {folder}"
    )
    with recording(parent), report_resume(folder, observer.say):
        observer.settle(ablation)
        if missing:
            trials = folder / "trials"
            room = count_places(config.scaling)
            run_side_by_side(
                missing, config.scaling, trials, observer, fingerprint=store.fingerprint, room=room
            )
        _score_weights(config, store, ablation, folder, observer)
        session.close()
        story = AblationStory(
            name=config.name,
            metric=config.metric,
            store=Path(store.address).name,
            split=config.data.val_split,
            seeds=config.ablate.seeds,
            object_sizes=config.eval.object_sizes,
            figures=compute_figures(ablation, observer.results, config.metric),
            results=tuple(observer.results),
            failures=observer.failures,
            pictures=_compare_pictures(config, store, ablation, folder, artifacts / PICTURE_FILE),
            wall_seconds=time.monotonic() - started,
        )
        report = write_report(story, artifacts)
        parent.summarize(_means(story))
        _trained_encnets(config, ablation, observer)
    return story, report


class _Observer:
    """Records trainings as children of the ablation's run, and keeps the results and the weights needed."""

    def __init__(
        self,
        config: Config,
        store: Store,
        ablation: Ablation,
        record: Record,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.results = [
            to_object(AblationResult, line, folder / RESULTS_FILE)
            for line in read_lines(folder / RESULTS_FILE)
        ]
        # The folder may have been moved since.
        self.parent = record.main or folder.name
        scored = {scoring.training for scoring in ablation.scorings if scoring.training}
        self._needed = _kept(config, ablation) | scored
        self._store, self._record, self._folder, self._progress = store, record, folder, progress

    def open_recorder(self, training: PlannedTraining) -> Recorder:
        config = training.config
        return start_recorder(
            config,
            self._store,
            self._record,
            run=training.name,
            kind="ablation-training",
            artifacts=self._folder / "training-artifacts" / training.name,
            parent=self.parent,
            tags={
                "encsearch.row": training.row,
                "encsearch.seed": str(config.train.seed),
                "encsearch.budget": str(config.train.epochs),
            },
        )

    def settle(self, ablation: Ablation) -> None:
        """Close the runs of finished trainings that a kill left open."""
        done = {result.name for result in self.results}
        for training in ablation.trainings:
            state = self._record.find(training.name)
            if training.name in done and state and state.status != "FINISHED":
                place = self._folder / "trials" / training.name
                recorder = self.open_recorder(training)
                for report in distinct_reports(place / REPORTS_FILE):
                    recorder.log(report)
                recorder.close("FINISHED")
                drop_checkpoints(place)

    def trained(self, training: PlannedTraining, last: Report, seconds: float, folder: Path) -> None:
        config = training.config
        if training.name in self._needed:
            checkpoint = find_newest(folder)
            assert checkpoint is not None, training.name
            bundle = checkpoint_model(config, self._store, checkpoint, last)
            write_bundle(bundle, _model_folder(self._folder, training.name))
        # The line comes last, since a training with a line is not trained again.
        self.add(
            AblationResult(
                name=training.name,
                row=training.row,
                seed=config.train.seed,
                epochs=config.train.epochs,
                metrics=last.metrics,
                seconds=seconds,
            )
        )

    def add(self, result: AblationResult) -> None:
        append_line(self._folder / RESULTS_FILE, asdict(result))
        self.results.append(result)

    def recorded(self, training: PlannedTraining) -> None:
        """Nothing is left to do, see `settle`."""

    def failed(self, training: PlannedTraining, reason: str) -> None:
        self.failures[training.name] = reason

    def follow(self, training: PlannedTraining, event: TrialEvent) -> None:
        self._progress.trial(event, training.config)

    def say(self, line: str) -> None:
        self._progress.say(line)


def _score_weights(
    config: Config, store: Store, ablation: Ablation, folder: Path, observer: _Observer
) -> None:
    """Run the scorings whose training has a result, and drop the weights that only they needed."""
    found = {result.name for result in observer.results}
    planned = {
        s.name: s
        for s in ablation.scorings
        if s.name not in found and (not s.training or s.training in found)
    }
    for name, scoring in list(planned.items()):
        if scoring.training and not _model_folder(folder, scoring.training).exists():
            # An earlier version of encsearch has trained it, and kept fewer weights.
            observer.failures[name] = f"the weights of {scoring.training} were not kept"
            del planned[name]
    if planned:
        observer.say(f"{format_count(len(planned), 'scoring')} of the trained weights to run")
    scorings = {name: _scoring(config, store, scoring, folder) for name, scoring in planned.items()}
    for done in score_side_by_side(scorings, config.scaling):
        if done.failure:
            observer.failures[done.name] = done.failure
            continue
        of = planned[done.name]
        observer.add(AblationResult(done.name, of.row, of.seed, of.epochs, done.metrics, done.seconds))
    scored = {result.name for result in observer.results}
    missing = {scoring.training for scoring in ablation.scorings if scoring.name not in scored}
    for training in {scoring.training for scoring in ablation.scorings} - missing - _kept(config, ablation):
        if training:
            shutil.rmtree(_model_folder(folder, training), ignore_errors=True)


def _scoring(config: Config, store: Store, planned: PlannedScoring, folder: Path) -> Scoring:
    """What a worker of Ray runs; its paths are absolute, because it has a working directory of its own."""
    model = _model_folder(folder, planned.training).absolute() if planned.training else None
    data = config.data.model_copy(update={"store": store.address})
    scenes = config.ablate.scene_pattern
    match planned.kind:
        case "multi-scale" | "whole":
            assert model, planned.name
            changed: dict[str, object] = {"background": None}
            if planned.kind == "multi-scale":
                changed |= {"scales": config.ablate.scales, "flip": True}
                scenes = None
            return partial(
                score_weights, model, store.address, config.eval.model_copy(update=changed), scenes
            )
        case "patches" | "features" as source:
            is_shown = (planned.seed, planned.num_words) == (config.ablate.seeds[0], config.ablate.words[0])
            is_shown &= planned.epochs in (0, budgets(config)[-1])
            picture = (folder / "artifacts" / WORDS_FILES[source]).absolute() if is_shown else None
            return partial(score_words, data, model, planned.num_words, planned.seed, scenes, picture)


def _kept(config: Config, ablation: Ablation) -> set[str]:
    """The trainings whose weights stay in the folder."""
    encnets = [ablation.point(ENCNET, epochs) for epochs in budgets(config)]
    kept = {name for point in encnets for name in point.trainings.values()}
    return kept | {*_pictured(config, ablation).values()}


def _pictured(config: Config, ablation: Ablation) -> dict[str, str]:
    """The trainings of the picture sheet, by row: the first seed's at the longest budget."""
    seed, epochs = config.ablate.seeds[0], budgets(config)[-1]
    return {row: ablation.point(row, epochs).trainings[seed] for row in (FCN, ENCNET)}


def _compare_pictures(config: Config, store: Store, ablation: Ablation, folder: Path, target: Path) -> str:
    """Draw the sheet if both models were trained; return its caption, or why there is none."""
    names = _pictured(config, ablation)
    models = {row: _model_folder(folder, name) for row, name in names.items()}
    missing = [names[row] for row, model in models.items() if not model.exists()]
    if missing:
        return f"No pictures: {' and '.join(missing)} failed."
    ours, theirs = ("EncNet", read_bundle(models[ENCNET])), (FCN, read_bundle(models[FCN]))
    write_gains(ours, theirs, store.split(config.data.val_split), target)
    seed, epochs = config.ablate.seeds[0], budgets(config)[-1]
    return (
        f'FCN and EncNet ("{ENCNET}") after {format_count(epochs, "epoch")}, seed {seed}. The validation '
        "images are chosen by rule: those with the largest, the median and the worst gain of EncNet over FCN "
        "in the mIoU of the single image; the gain is printed beside each row, in points."
    )


def _means(story: AblationStory) -> Report:
    """The means over seeds as the metrics of the ablation's own run."""
    means = {
        f"{f.point.label}, {f.point.epochs} epochs": f.estimates[story.metric].mean
        for f in select_series(story, "rows", "codewords", "se_weights")
    }
    return Report(epoch=0, step=0, seconds=story.wall_seconds, metrics=means)


def _trained_encnets(config: Config, ablation: Ablation, observer: _Observer) -> list[AblationResult]:
    """EncNet's results at the longest budget, one for each seed. Raises TrainingError when there are none."""
    encnet = ablation.point(ENCNET, budgets(config)[-1])
    found = {result.name: result for result in observer.results}
    trained = [found[name] for name in encnet.trainings.values() if name in found]
    if not trained:
        reasons = {observer.failures[name] for name in encnet.trainings.values()}
        raise TrainingError(
            f'all of {len(encnet.trainings)} trainings of "{ENCNET}" failed: {"; ".join(sorted(reasons))}'
        )
    return trained


def _summary(
    config: Config,
    store: Store,
    ablation: Ablation,
    observer: _Observer,
    tracking: TrackingStore,
    run_ids: Mapping[str, str],
) -> RunSummary:
    trained = _trained_encnets(config, ablation, observer)
    return RunSummary(
        kind="ablation",
        name=config.name,
        metric=config.metric,
        value=fmean(result.metrics[config.metric] for result in trained),
        fingerprint=store.fingerprint,
        store=config.data.store,
        split=config.data.val_split,
        tracking_uri=without_user(tracking.uri),
        experiment_id=tracking.experiment_id,
        run=trained[0].name,
        run_id=run_ids.get(trained[0].name),
        bundle=str(_model_folder(Path(), trained[0].name)),
        parent_run=observer.parent,
        parent_run_id=run_ids.get(observer.parent),
    )


def _model_folder(folder: Path, training: str) -> Path:
    return folder / "models" / training
