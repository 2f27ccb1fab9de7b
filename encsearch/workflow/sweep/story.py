"""The story of a finished sweep: `sweep.json`, and the report that is written from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.config import Config, to_yaml
from encsearch.data.store import Store
from encsearch.errors import UserError, one_line
from encsearch.files import read_regular, write_whole
from encsearch.report.summary import FinalistSummary, SweepSummary, from_json, to_json
from encsearch.reports import no_job_error
from encsearch.runner.torch_process import TorchProcess
from encsearch.search.budget.keeper import Keeper
from encsearch.search.confirm.finalists import Finalist, name_context
from encsearch.search.confirm.trainings import Confirmation
from encsearch.search.study.study import Study
from encsearch.search.trials import Trial, flag_trials
from encsearch.text import format_count
from encsearch.tracking.browse.links import children_link, compare_link, is_server, run_link, ui_base
from encsearch.tracking.outbox.sender import TrackingStore
from encsearch.workflow.job import CONTEXT_FOLDER
from encsearch.workflow.sweep.folder import StudyPlace
from encsearch.workflow.sweep.networks import compare_models

REPORT_FILE, SWEEP_FILE, PICTURE_FILE = "report.html", "sweep.json", "comparison.png"
# Number of reported trials that a spent budget left out.
NEXT_TRIALS = 3
# Runs that a link compares; an address has 35 characters for each.
MAX_COMPARED = 500


@dataclass(frozen=True)
class Pages:
    """The sweep's runs in MLflow: `run_ids` by name, as far as the store has them."""

    store: TrackingStore
    run_ids: Mapping[str, str]
    parent: str


def write_story(
    config: Config,
    store: Store,
    place: StudyPlace,
    study: Study,
    confirmation: Confirmation,
    keeper: Keeper,
    pages: Pages,
    folder: Path,
    networks: TorchProcess,
) -> Path:
    """Write `sweep.json`, the picture sheet and the report; returns the report."""
    artifacts = folder / "artifacts"
    compared, split = _find_compared(confirmation), confirmation.winner.config.data.val_split
    networks.call(compare_models, compared, store, split, artifacts / PICTURE_FILE)
    trials = study.trials()
    story = SweepSummary(
        name=config.name,
        metric=config.metric,
        space={path: dimension.kind for path, dimension in study.search.space.items()},
        epochs=config.train.epochs,
        trials=trials,
        finalists=tuple(_row(f) for f in (*confirmation.finalists, *confirmation.baselines)),
        winner=confirmation.winner.trial,
        config_yaml=to_yaml(config),
        mlflow="" if is_server(pages.store.uri) else f"encsearch ui {folder}",
        links=_links(config, confirmation, pages, trials),
        picture=Path(PICTURE_FILE),  # it lies beside the report
        wall_seconds=keeper.elapsed_s,
        context=_context_folder(confirmation.winner.name, artifacts),
        flags=flag_trials(trials),
        forecasts=keeper.points(),
        ended_by=keeper.ended_by,
        next_values=study.would_ask(NEXT_TRIALS) if keeper.ended_by else (),
        warm_started=Path(place.warm_start).name if place.warm_start else None,
        cost_unit="GPU" if config.scaling.gpus_per_worker else "CPU",
    )
    write_whole(folder / SWEEP_FILE, to_json(story))
    return _render(story, artifacts / REPORT_FILE)


def rewrite_report(folder: Path) -> Path:
    """Rewrite the report of a finished sweep from its `sweep.json`."""
    try:
        story = from_json(read_regular(folder / SWEEP_FILE).decode())
    except FileNotFoundError:
        what = f"the folder of a finished sweep ({SWEEP_FILE} is missing)"
        raise no_job_error(folder, what) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SWEEP_FILE}: cannot be read ({one_line(error)})") from None
    return _render(story, folder / "artifacts" / REPORT_FILE)


def _render(story: SweepSummary, path: Path) -> Path:
    # Here, since its pictures need a second of imports, which a sweep would pay before its first trial.
    from encsearch.report.page import render

    return render(story, path)


def _find_compared(confirmation: Confirmation) -> dict[str, tuple[Config, Path]]:
    """The baselines and the winner, as configuration and checkpoint by title."""
    first_of_each = {
        name_context(f.config.model.context): f
        for f in reversed((*confirmation.baselines, confirmation.winner))
    }
    return {title: (f.config, f.result.best_checkpoint) for title, f in reversed(first_of_each.items())}


def _links(
    config: Config, confirmation: Confirmation, pages: Pages, trials: Sequence[Trial]
) -> tuple[tuple[str, str], ...]:
    """MLflow's pages by name; refused trials, and those not sent yet, have no run."""
    experiment, run_ids, winner = pages.store.experiment_id, pages.run_ids, confirmation.winner.name
    if not {pages.parent, winner} <= run_ids.keys():
        return ()
    base = ui_base(pages.store.uri)
    comparison, compared = _compared(trials, run_ids)
    return (
        ("trials and finalists", children_link(base, experiment, run_ids[pages.parent], config.metric)),
        (comparison, compare_link(base, experiment, compared)),
        ("winner", run_link(base, experiment, run_ids[winner])),
    )


def _compared(trials: Sequence[Trial], run_ids: Mapping[str, str]) -> tuple[str, list[str]]:
    """The name of the comparison and its runs: all that MLflow has, or the MAX_COMPARED best of more."""
    known = [trial for trial in trials if f"trial{trial.number}" in run_ids]
    name = "comparison"
    if len(known) > MAX_COMPARED:
        name = f"comparison of the best {MAX_COMPARED} of {format_count(len(known), 'trial')}"
        known = sorted(known, key=lambda t: (t.value is None, -(t.value or 0.0)))[:MAX_COMPARED]
    return name, [run_ids[f"trial{trial.number}"] for trial in known]


def _context_folder(winner: str, artifacts: Path) -> Path | None:
    """The winner's diagnostics, relative to the report's folder; None for a model without context module."""
    folder = Path("..", "finalists", winner, "artifacts", CONTEXT_FOLDER)
    return folder if (artifacts / folder).is_dir() else None


def _row(finalist: Finalist) -> FinalistSummary:
    return FinalistSummary(
        trial=finalist.trial,
        seed=finalist.seed,
        num_workers=finalist.config.scaling.num_workers,
        value=finalist.value,
        epochs=finalist.result.reports[-1].epoch,
        seconds=finalist.result.seconds,
        class_iou=dict(finalist.result.best.class_iou),
        label="" if finalist.trial is not None else name_context(finalist.config.model.context),
        parameters=finalist.parameters,
    )
