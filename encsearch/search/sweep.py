"""Ray Tune runs the trials that the study proposes; the ledger hears what became of them."""

import logging
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from encsearch.config import Config
from encsearch.errors import TrainingError
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.finalists import pick_finalists
from encsearch.search.ledger import Ledger, SweepObserver
from encsearch.search.study import Study
from encsearch.search.trial import Trial, trial_resources
from encsearch.search.trials import TrialRecord

# A trial whose process is lost starts again from its last checkpoint this often.
TRIAL_RESTARTS = 2


def run_sweep(config: Config, folder: Path, observer: SweepObserver) -> tuple[TrialRecord, ...]:
    """Run `config.search` on the connected Ray and return all trials, each in a terminal state.

    `folder` gets `study.journal`, and `trials/` with the last checkpoint of each.
    Raises TrainingError when every trial failed.
    """
    search = config.search
    assert search is not None
    study = Study(folder, config.name, search)
    ledger = Ledger(config, study, observer)
    room = trainings_at_once(config.scaling, ray.cluster_resources())
    tuner = tune.Tuner(
        tune.with_resources(Trial, trial_resources(config.scaling)),
        tune_config=tune.TuneConfig(
            num_samples=search.num_trials,
            # A trial is asked for only when there is room for it, so that it knows all results so far.
            search_alg=ConcurrencyLimiter(
                _StudySearcher(ledger), max_concurrent=min(room, search.max_concurrent or room)
            ),
            scheduler=_scheduler(config),
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(folder.absolute()),
            callbacks=[_TellLedger(ledger)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1),
        ),
    )
    # Tune prints every failed trial's stack; people get one line from the ledger.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    finally:
        ledger.end_all("the sweep ended before the trial did")
    records = study.records()
    if not pick_finalists(records, 1):
        reasons = sorted({str(record.reason) for record in records})
        raise TrainingError(f"all of {len(records)} trials failed: {'; '.join(reasons)}")
    return records


def _scheduler(config: Config) -> TrialScheduler:
    search = config.search
    assert search is not None
    if search.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric=config.metric,
        mode="max",
        max_t=config.train.epochs,
        grace_period=min(search.asha.grace_epochs, config.train.epochs),
        reduction_factor=search.asha.reduction_factor,
    )


def _trial_folder(trial: TuneTrial) -> str:
    return str(trial.trial_id)


class _HoldsLedger:
    """Tune pickles its searcher and callbacks for a restore of its own, which the study makes needless."""

    _ledger: Ledger

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_ledger"}


class _StudySearcher(_HoldsLedger, Searcher):
    """Tune's question for a new trial, passed on to the study.

    Ray's own OptunaSearch stores a trial that the scheduler stopped as complete, with its partial value.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(metric=ledger.config.metric, mode="max")
        self._ledger = ledger

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return self._ledger.propose(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the callback below hears of the same event, with the trial's error and checkpoint."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk after every tell."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk after every tell."""


class _TellLedger(_HoldsLedger, tune.Callback):
    """Tune's events, passed on to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ledger.started(trial.trial_id)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        self._ledger.reported(trial.trial_id, result)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        failure = trial.last_result.get("failure")
        checkpoint = Path(trial.checkpoint.path) if trial.checkpoint and not failure else None
        self._ledger.ended(trial.trial_id, failure, checkpoint)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = str(trial.get_error() or "unknown reason").strip().splitlines()
        self._ledger.ended(trial.trial_id, f"the trial's process failed: {lines[-1].strip()}", None)
