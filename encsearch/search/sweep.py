"""The search of a sweep: the study proposes trials, Ray Tune runs them, the ledger records them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from encsearch.config import Config, ScalingConfig, SearchConfig
from encsearch.data.store import Store
from encsearch.errors import TrainingError
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.ledger import Ledger, Limiter, Network, SweepObserver
from encsearch.search.study.study import Study, known_points
from encsearch.search.trials import Trial
from encsearch.search.tune.driver import run_board
from encsearch.text import format_count


def run_sweep(
    config: Config,
    store: Store,
    study: Study,
    folder: Path,
    observer: SweepObserver,
    limiter: Limiter,
    network: Callable[[Config], Network],
) -> tuple[Trial, ...]:
    """Run the study's search on the connected Ray and return all trials, each in a terminal state.

    `folder` gets `trials/` with the reports of each; `network` measures the size of a trial's network. Trials
    that an earlier process left open continue. If this process is interrupted, its trials stay open for the
    next one. Raises TrainingError when every trial failed, or `search.budget.max_failed` in a row with one
    reason.
    """
    search = study.search
    # No more points than the budget has trials: a point left waiting would run before a repeated trial.
    study.queue(known_points(config, search)[: search.budget.trials])
    ledger = Ledger(
        config,
        study,
        observer,
        limiter,
        folder=folder,
        fingerprint=store.fingerprint,
        room=trials_at_once(search, config.scaling),
        network=network,
    )
    try:
        run_board(ledger, config.scaling, folder / "tune")
    except BaseException:
        ledger.leave_all()
        raise
    if ledger.gives_up_on:
        ledger.leave_all()
        failed = format_count(search.budget.max_failed, "trial")
        raise TrainingError(
            f"{failed} in a row failed with one reason ({ledger.gives_up_on}); mend it and go on with "
            f"`encsearch resume {folder}`, or raise search.budget.max_failed"
        )
    ledger.end_all("the budget was spent")
    trials = study.trials()
    _check_any_left(trials, limiter)
    return trials


def trials_at_once(search: SearchConfig, scaling: ScalingConfig) -> int:
    """Number of trials that fit on the connected cluster, at most `search.max_concurrent`."""
    room = count_places(scaling)
    return min(room, search.max_concurrent or room)


def count_places(scaling: ScalingConfig) -> int:
    """Number of trainings of `scaling` that fit on the connected cluster."""
    return trainings_at_once(scaling, ray.cluster_resources())


def _check_any_left(trials: Sequence[Trial], limiter: Limiter) -> None:
    """Raise TrainingError when there is nothing to confirm."""
    if any(trial.curve for trial in trials if trial.state != "FAIL"):
        return
    reasons = "; ".join(sorted({str(trial.reason) for trial in trials}))
    if trials and all(trial.refused for trial in trials):
        raise TrainingError(f"search.limits refused all of {len(trials)} proposals: {reasons}")
    if limiter.must_end():
        raise TrainingError("search.budget was spent before any trial reported; increase it")
    raise TrainingError(f"all of {len(trials)} trials failed: {reasons}")
