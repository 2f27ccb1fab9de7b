"""What the commands do, as functions for notebooks and programs; `encsearch` offers them by name.

Each calls what the command of its name calls, so a job that one begins the other goes on with. Nothing heavy
is imported before a function needs it.

Where a message names an option of the command line, such as --name, it is the argument of that name.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encsearch.config import Config, load_config, with_overrides
from encsearch.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from encsearch.data.store import Store
    from encsearch.inference.predictor import Picture, Prediction, Predictor
    from encsearch.metrics.summary import Evaluation
    from encsearch.workflow.ablate.run import Ablated
    from encsearch.workflow.job import Progress
    from encsearch.workflow.promote import NewHolder
    from encsearch.workflow.sweep.run import Swept
    from encsearch.workflow.train import Trained

    Model = str | Path | Trained | Swept | Ablated
    """A job or its folder, a bundle's folder, or an address in MLflow; see `load`."""

Recipe = Config | str | Path
"""A recipe: one that is loaded, a YAML file, or the name of one that comes with encsearch."""

Overrides = Mapping[str, Any] | Sequence[str]
"""Changes of a recipe by path: {"optim.lr": 0.01}, or as on the command line ["optim.lr=0.01"]."""

Say = Callable[[str], object]
"""Takes a line of progress: `print`, or the method of a logger."""


def load_recipe(recipe: Recipe, overrides: Overrides = ()) -> Config:
    """Read a recipe and change what `overrides` name.

        config = load_recipe("scenes", {"optim.lr": 0.01, "train.epochs": 3})
        config.train.epochs                                                       # 3

    `overrides` are values by path, or texts as on the command line, ["optim.lr=0.01"]; a later one wins. The
    result is frozen; give it to `load_recipe` again to change it. Raises UserError with one line that names
    the path, the value and what is allowed.
    """
    if isinstance(recipe, Config):
        return with_overrides(recipe, _to_texts(overrides))
    if not isinstance(recipe, str | Path):
        raise UserError(f"a recipe is a Config, a file or a name, but got {type(recipe).__name__}")
    return load_config(recipe, _to_texts(overrides))


def train(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    out: str | Path = "runs",
    name: str | None = None,
    in_process: bool = False,
    progress: Say | None = None,
) -> Trained:
    """Train one configuration, record it in MLflow, and keep the best checkpoint as a model.

        trained = train("scenes", {"data.store": "scenes"}, in_process=True, progress=print)
        trained.summary.value                     # of the recipe's metric, a share in [0, 1]
        [report.metrics["mIoU"] for report in trained.result.reports]       # one report an epoch

    The job's folder, `trained.folder`, is a new one below `out`, called `name` or after the recipe and the
    time; a training of that name goes on, and a finished one is read. Ray trains, on the cluster of
    RAY_ADDRESS or on this machine, or with `in_process` this process does, on one device. MLFLOW_TRACKING_URI
    names the record's store, else it is mlflow.db in the working directory. `progress` takes a line for each
    event, None for none.

    Raises UserError for a wrong recipe, PreflightError before anything is written if it cannot run here, and
    TrainingError if the training fails. After a KeyboardInterrupt `resume` goes on from the newest
    checkpoint.
    """
    config = load_recipe(recipe, overrides)
    with _progress(progress, "checking the recipe and its data") as shown:
        from encsearch.workflow.resume import find_changes
        from encsearch.workflow.train import resume as go_on
        from encsearch.workflow.train import train as run

        place = Path(out).absolute()
        changes = find_changes(place, name, "training", config)
        if name and changes is not None:
            return go_on(place / name, changes, shown)
        return run(config, place, shown, in_process=in_process, name=name)


def sweep(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    out: str | Path = "runs",
    name: str | None = None,
    warm_start_from: str | Path | None = None,
    prior_from: str | Path | None = None,
    progress: Say | None = None,
) -> Swept:
    """Run the recipe's search block on Ray, train the finalists again from scratch, and write the report.

        swept = sweep("scenes", {"data.store": "scenes", "search.budget.trials": 10}, progress=print)
        swept.trials                              # values, curve and state of each
        swept.confirmation.winner                 # what the finalists show, not the best of the search
        swept.report                              # the HTML page

    `out`, `name` and `progress` are as in `train`. `warm_start_from` is the folder of a sweep whose trials
    the sampler learns from, `prior_from` of one, also of other data, whose best trials are the prior. If a
    budget ended the search before its last trial, `ended_by` of the result says which; the result is complete
    all the same.

    Raises UserError for a recipe that is wrong or has no search block, PreflightError before anything is
    written if it cannot run here, and TrainingError if nothing could be trained. `resume` goes on after a
    KeyboardInterrupt.
    """
    config = load_recipe(recipe, overrides)
    with _progress(progress, "checking the recipe and its data") as shown:
        from encsearch.workflow.resume import find_changes
        from encsearch.workflow.sweep.folder import Earlier
        from encsearch.workflow.sweep.run import resume as go_on
        from encsearch.workflow.sweep.run import sweep as run

        place = Path(out).absolute()
        sources = {"--warm-start-from": warm_start_from, "--prior-from": prior_from}
        given = [option for option, source in sources.items() if source]
        changes = find_changes(place, name, "sweep", config, only_new=given)
        if name and changes is not None:
            return go_on(place / name, changes, 0, shown)
        earlier = Earlier(*(Path(source) if source else None for source in sources.values()))
        return run(config, place, shown, earlier=earlier, name=name)


def resume(
    folder: str | Path,
    overrides: Overrides = (),
    *,
    extend: int = 0,
    progress: Say | None = None,
) -> Trained | Swept | Ablated:
    """Go on with a training, sweep or ablation that was killed or interrupted.

        resume(swept.folder, extend=10)           # ten more trials of a finished sweep

    Finished trainings are not run again, others go on from their checkpoints. `overrides` may change where a
    job runs and what a sweep may cost, not what is compared. Raises UserError for a folder without a job, for
    another change, and while another process runs the job; PreflightError when the data has changed;
    TrainingError.
    """
    with _progress(progress, "reading the job and checking its data") as shown:
        from encsearch.workflow.resume import resume as run

        return run(Path(folder).absolute(), _to_texts(overrides), shown, extend=extend)


def evaluate(
    model: Model,
    store: Store | str | Path | None = None,
    split: str = "val",
    overrides: Overrides = (),
    *,
    device: str = "auto",
    batch_size: int | None = None,
) -> Evaluation:
    """Score a model on every sample of a split: mIoU, pixAcc, by class, by size of object, at boundaries.

        scores = evaluate(trained, split="test", overrides={"eval.flip": True})
        scores.mean_iou, scores.class_iou["knife"]          # shares in [0, 1]

    `model` is what `load` takes, `store` by default the one that it was trained on. `overrides` change the
    eval section of its recipe. `batch_size` is in images, by default train.val_batch_size, and changes no
    score.

    Raises UserError for a model, store, split or path that does not exist, for a store of other classes and
    for a split without labels; PreflightError for a device that is not here.
    """
    from encsearch.data.store import Store
    from encsearch.inference.evaluation import score_bundle
    from encsearch.tracking.registry.fetch import fetch_bundle

    bundle = fetch_bundle(_to_source(model), _to_texts(overrides))
    opened = store if isinstance(store, Store) else Store(store or bundle.config.data.store)
    return score_bundle(bundle, opened, split, device=device, batch_size=batch_size)


def load(model: Model, device: str = "auto", overrides: Overrides = (), *, batch_size: int = 8) -> Predictor:
    """Load a model, ready to predict again and again.

        predictor = load("models:/encnet-camvid@champion")
        label_maps = predictor.predict(["a.png", "b.png"])      # a list of (H, W) uint8
        for prediction in predictor.segment(many):              # one batch in memory at a time
            ...

    `model` is a job or its folder, which stands for the job's best model, a bundle's folder, or of MLflow's
    registry "models:/NAME@ALIAS", "models:/NAME/VERSION" or "runs:/RUN_ID/PATH". An unfinished training gives
    its best checkpoint. `device` is "cpu", "cuda", "cuda:1" or "auto", which is a GPU if there is one.
    `overrides` change the eval section of its recipe. At most `batch_size` images go through the network
    together.

    Raises UserError for a model that does not exist and a device that models do not run on, PreflightError
    for a device or an MLflow store that is not there.
    """
    from encsearch.tracking.registry.fetch import load as run

    return run(_to_source(model), device, _to_texts(overrides), batch_size)


def predict(
    model: Model,
    images: Picture | Iterable[Picture],
    overrides: Overrides = (),
    *,
    device: str = "auto",
    batch_size: int = 8,
) -> list[Prediction]:
    """Segment images: for each its label map, and which classes are anywhere in it.

        first, second = predict(trained, ["a.png", pixels])
        first.labels                              # (H, W) uint8, class numbers
        first.presence["knife"]                   # a probability; presence is None without a context module

    An image is a file, or (H, W, 3) uint8 RGB; sizes are free and may differ. The other arguments are as in
    `load`, which is for more images than fit in memory. Raises what `load` does, and UserError for what is no
    such image.
    """
    return list(load(model, device, overrides, batch_size=batch_size).segment(images))


def promote(
    source: Model,
    overrides: Overrides = (),
    *,
    alias: str | None = None,
    store: Store | str | Path | None = None,
    device: str = "auto",
) -> NewHolder:
    """Register the best model of a job and move an alias to it, if the gate of its recipe lets it pass.

        promoted = promote(swept)
        load(promoted.uri)                        # "models:/encnet-scenes@champion"

    `source` is a job, its folder, or the id of a run in MLflow. Candidate and present holder are scored on
    the same images: the validation split of `store`, by default the one that the candidate was trained on.
    `alias` is by default the recipe's promote.alias; `overrides` change its promote section.

    Raises GateRefusedError, a UserError, with all reasons if the candidate is not better, UserError for a
    wrong source or changed data, and PreflightError for a device or an MLflow store that is not there.
    """
    from encsearch.workflow.promote import promote as run

    address = getattr(store, "address", store)
    return run(
        _to_source(source),
        alias=alias,
        store=None if address is None else str(address),
        device=device,
        overrides=_to_texts(overrides),
    )


def runs(
    filter: str = "",
    *,
    kind: str | None = None,
    sweep: Swept | str | Path | None = None,
    status: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> DataFrame:
    """The runs in MLflow as a table: one row a run, the newest first.

        runs()[["name", "kind", "status", "metrics.best/mIoU"]]
        runs(sweep=swept).plot.scatter("params.optim.lr", "metrics.best/mIoU")
        runs("metrics.`best/mIoU` > 0.5", kind="trial", sort="best/mIoU", limit=10)

    The columns are `run_id`, `name`, `kind`, `status`, `start_time` and `end_time` (UTC), `seconds` and
    `parent_run_id`, then `metrics.NAME` (the newest values), `params.PATH` (numbers where all are) and
    `tags.NAME`. Without arguments the rows are the experiment's jobs: trainings, sweeps, ablations. `kind` is
    one of training, sweep, trial, finalist, baseline, configuration, or all. `sweep` is a sweep, its folder
    or its run: its trials and what it confirmed, the best first. `status` is RUNNING, FINISHED, FAILED or
    KILLED, `sort` the name of a metric, param or attribute, the greatest first, or NAME:asc. `filter` is in
    MLflow's language. MLFLOW_TRACKING_URI names the store, else it is mlflow.db in the working directory;
    MLFLOW_EXPERIMENT_NAME names the experiment.

    Raises UserError for a wrong filter, an unknown run or experiment, PreflightError for a store that is not
    there.
    """
    from encsearch.tracking.browse.rows import Query, to_frame
    from encsearch.workflow.runs import list_runs

    listed = list_runs(
        Query(filter, kind, None, status, sort, limit), None if sweep is None else _to_source(sweep)
    )
    return to_frame([row for table in listed.tables for row in table])


def open_store(path: str | Path) -> Store:
    """Open a data set that `encsearch data` has written: a folder, or an address of object storage.

        store = open_store("data/camvid")
        store.info.classes                        # names, in the order of the class numbers
        sample = store.split("val")[0]            # sample.image (H, W, 3) and sample.mask (H, W), uint8
        store.stats("train").classes              # pixels and images of each class

    Only the manifest is read; a split is verified when it is first used. Raises UserError for a store that is
    missing or damaged, and `split` for one that it lacks.
    """
    from encsearch.data.store import Store

    return Store(path)


def _to_texts(overrides: Overrides) -> tuple[str, ...]:
    """The overrides as the command line has them."""
    if isinstance(overrides, Mapping):
        return tuple(f"{path}={json.dumps(value, default=_plain)}" for path, value in overrides.items())
    texts = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UserError('overrides are a mapping, as {"optim.lr": 0.01}, or texts, as ["optim.lr=0.01"]')
    return tuple(texts)


def _plain(value: Any) -> Any:
    """A number of NumPy, or a path."""
    return value.item() if hasattr(value, "item") else str(value)


def _to_source(model: Model) -> str:
    source = getattr(model, "folder", model)
    if not isinstance(source, str | Path):
        raise UserError(f"a model is a job, a folder or an address, but got {type(model).__name__}")
    return str(source)


def _progress(say: Say | None, phase: str) -> AbstractContextManager[Progress]:
    # In a notebook Ray 2.60 and Optuna 5 would say that ipywidgets is missing, whose bars nobody draws here.
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        from encsearch.workflow.progress import line_progress

    if say is not None and not callable(say):
        raise UserError(f"progress is a function that takes a line, such as print, but got {say!r}")
    return line_progress(say or _say_nothing, phase)


def _say_nothing(line: str) -> None:
    """For a job without progress."""
