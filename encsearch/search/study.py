"""The study of a sweep: Optuna's journal file is the one source of truth about its trials.

number, values = study.ask()
study.report(number, epoch, value)        # once an epoch
study.complete(number) | study.prune(number) | study.fail(number, reason)
"""

import math
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from encsearch.config import Dimension, SearchConfig
from encsearch.search.trials import TrialRecord, TrialState


class Study:
    """Ask and tell over a persistent Optuna study; one driver owns it, any process may read the file."""

    def __init__(self, folder: Path, name: str, search: SearchConfig) -> None:
        """Open the study in `folder`, or create it there and queue `search.enqueue` once."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self._search = search
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
            study_name=name,
            direction="maximize",
            sampler=_sampler(search),
            load_if_exists=True,
        )
        self._open: dict[int, optuna.Trial] = {}
        if not self._study.get_trials(deepcopy=False):
            for point in search.enqueue:
                self._study.enqueue_trial(dict(point))

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The number of a new trial and its values by config path."""
        trial = self._study.ask({path: _distribution(d) for path, d in self._search.space.items()})
        self._open[trial.number] = trial
        return trial.number, dict(trial.params)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the metric of one epoch; an epoch that was stored before is left as it is."""
        self._open[number].report(value, epoch)

    def complete(self, number: int) -> None:
        """The trial ran all its epochs; its value is that of its best one."""
        self._study.tell(number, self._best(number))

    def prune(self, number: int) -> None:
        """The scheduler stopped the trial: its curve is kept, and it is not taken for a finished one."""
        self._study.tell(number, state=OptunaState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        self._open[number].set_user_attr("reason", reason)
        self._study.tell(number, state=OptunaState.FAIL)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials that were started, by number."""
        trials = self._study.get_trials(deepcopy=False)
        return tuple(_record(t) for t in trials if t.state != OptunaState.WAITING)

    def _best(self, number: int) -> float:
        curve = self._study.get_trials(deepcopy=False)[number].intermediate_values
        return max(curve.values())


def _sampler(search: SearchConfig) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=search.seed)
    return optuna.samplers.TPESampler(n_startup_trials=search.startup_trials, seed=search.seed)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.values)
    low, high = dimension.values
    log = dimension.kind.startswith("log")
    if dimension.kind.endswith("integer"):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _record(trial: FrozenTrial) -> TrialRecord:
    curve = tuple(sorted((e, v) for e, v in trial.intermediate_values.items() if math.isfinite(v)))
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return TrialRecord(
        number=trial.number,
        values=dict(trial.params),
        state=cast(TrialState, trial.state.name),
        value=max((v for _, v in curve), default=None),
        curve=curve,
        seconds=seconds,
        reason=trial.user_attrs.get("reason"),
    )
