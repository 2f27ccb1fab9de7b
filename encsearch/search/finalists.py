"""Which trials are confirmed, with which configuration, and which one wins: pure decisions."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encsearch.config import Config, with_values
from encsearch.runner.result import RunResult
from encsearch.search.trials import TrialRecord

BASELINE_LABELS = {"none": "FCN", "gate": "pooled gate"}


@dataclass(frozen=True)
class Finalist:
    """One training from scratch of a trial's configuration; `trial` is None for a baseline."""

    name: str
    trial: int | None
    config: Config
    result: RunResult

    @property
    def value(self) -> float:
        return self.result.best.metrics[self.config.metric]


def pick_finalists(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The `count` best trials: those that ran furthest first, so that fidelities are not mixed.

    A pruned trial is taken only when fewer than `count` ran to the end.
    """
    scored = [r for r in records if r.value is not None and r.state in ("COMPLETE", "PRUNED")]
    scored.sort(key=lambda r: (-r.epochs, -(r.value or 0.0), r.number))
    return scored[:count]


def finalist_config(config: Config, values: Mapping[str, Any], seed: int) -> Config:
    """The sweep's recipe at the trial's values, with the seed, workers and epochs of a confirmation."""
    assert config.search is not None
    confirm = config.search.confirm
    changed = {
        **values,
        "train.seed": seed,
        "scaling.num_workers": confirm.num_workers or config.scaling.num_workers,
        "train.epochs": confirm.epochs or config.train.epochs,
    }
    return with_values(config.model_copy(update={"search": None}), changed)


def pick_winner(finalists: Sequence[Finalist]) -> Finalist:
    """Of the trial with the best mean over its seeds, the training with the best value."""
    by_trial: dict[int | None, list[Finalist]] = {}
    for finalist in finalists:
        by_trial.setdefault(finalist.trial, []).append(finalist)
    best = max(by_trial.values(), key=lambda group: statistics.fmean(f.value for f in group))
    return max(best, key=lambda finalist: finalist.value)
