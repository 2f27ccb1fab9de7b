"""The best configurations are trained again from scratch; the winner is named by those trainings alone.

A sweep's own maximum is the best of many noisy figures and so too high; a finalist's figure is not selected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from encsearch.config import Config, with_values
from encsearch.errors import TrainingError
from encsearch.records import Recorder, recording
from encsearch.runner.ray_train import run_ray_train
from encsearch.search.finalists import (
    BASELINE_LABELS,
    Finalist,
    finalist_config,
    pick_finalists,
    pick_winner,
)
from encsearch.search.trials import TrialRecord


class ConfirmObserver(Protocol):
    """What the sweep's owner does about its finalists."""

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        """A training starts; its recorder is closed with its true status."""
        ...

    def finalist_trained(self, finalist: Finalist) -> None:
        """A training has ended; its recorder is still open."""
        ...

    def finalist_failed(self, name: str, reason: str) -> None:
        """A training came to nothing; its recorder is closed, and the others go on."""
        ...


@dataclass(frozen=True)
class Confirmation:
    """All trainings after the search, and the finalist that won."""

    finalists: tuple[Finalist, ...]
    baselines: tuple[Finalist, ...]
    winner: Finalist


def confirm(
    config: Config, records: Sequence[TrialRecord], folder: Path, observer: ConfirmObserver
) -> Confirmation:
    """Train every finalist, then the baselines at the winner's values, with every confirmation seed.

    By Ray Train, one training after the other, each in its own folder below `folder`. One that fails is told
    and left out. Raises TrainingError when no finalist is left.
    """
    assert config.search is not None
    plan = config.search.confirm
    finalists = [
        _train(
            f"trial{record.number}-seed{seed}",
            record.number,
            finalist_config(config, record.values, seed),
            folder,
            observer,
        )
        for record in pick_finalists(records, plan.finalists)
        for seed in plan.seeds
    ]
    trained = [finalist for finalist in finalists if finalist]
    if not trained:
        raise TrainingError(f"all of {len(finalists)} finalists failed, though their trials did not")
    best = pick_winner(trained)
    baselines = [
        _train(
            f"{BASELINE_LABELS[context].replace(' ', '-')}-seed{seed}",
            None,
            with_values(best.config, {"model.context": context, "train.seed": seed}),
            folder,
            observer,
        )
        for context in plan.baselines
        for seed in plan.seeds
    ]
    return Confirmation(tuple(trained), tuple(filter(None, baselines)), best)


def _train(
    name: str, trial: int | None, config: Config, folder: Path, observer: ConfirmObserver
) -> Finalist | None:
    recorder = observer.open_finalist(name, trial, config)
    try:
        with recording(recorder):
            finalist = Finalist(name, trial, config, run_ray_train(config, folder / name, recorder))
            observer.finalist_trained(finalist)
    except TrainingError as error:
        observer.finalist_failed(name, str(error))
        return None
    return finalist
