"""The confirmation: the best configurations are trained again from scratch, which alone decides the winner.

A sweep's own maximum is the best of many noisy values and so too high. A finalist's value is not selected
before it is trained; the winner's value is selected among few (`Ranking.optimism`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from encsearch.config import Config, ConfirmConfig, with_values
from encsearch.errors import TrainingError
from encsearch.files import append_line, read_lines
from encsearch.reports import Recorder, TrainingResult, recording
from encsearch.runner.ray_train import run_ray_train
from encsearch.search.confirm.finalists import (
    Finalist,
    finalist_config,
    from_line,
    group_trainings,
    name_context,
    pick_finalists,
    representative,
    to_line,
)
from encsearch.search.confirm.ranking import Ranking, rank
from encsearch.search.trials import Trial
from encsearch.train.experiment import count_parameters

# One line for each finished training, which is not trained again.
FINALISTS_FILE = "finalists.jsonl"


class ConfirmObserver(Protocol):
    """The sweep owner's reactions to its finalists; not called for trainings that were finished before."""

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        """A training starts, or continues after a kill; its recorder is closed with its true status."""
        ...

    def finalist_trained(self, finalist: Finalist) -> None:
        """A training has ended; its recorder is still open. Called again if a kill came before its return."""
        ...

    def finalist_failed(self, name: str, reason: str) -> None:
        """A training failed; its recorder is closed, and the others continue."""
        ...


@dataclass(frozen=True)
class Confirmation:
    """All trainings after the search; `winner` is the one whose weights represent the winning trial."""

    finalists: tuple[Finalist, ...]
    baselines: tuple[Finalist, ...]
    winner: Finalist
    ranking: Ranking


def confirm(
    config: Config,
    plan: ConfirmConfig,
    trials: Sequence[Trial],
    folder: Path,
    observer: ConfirmObserver,
    *,
    num_classes: int,
    minimize: str | None = None,
    excluded: Collection[int] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Confirmation:
    """Train every finalist, then the baselines at the winner's values, with every seed of `plan`.

    `minimize` is the search's second objective; trials in `excluded` are not picked. Ray Train runs one
    training after the other, each in its own folder below `folder`. A second call with the same folder trains
    only what has no line there, failed trainings included; a killed training continues from its last
    checkpoint. Lines of trials that are no longer picked stay and are not ranked. A training that fails is
    reported and left out. Raises TrainingError when no trial can be picked or no finalist is left.
    """
    picked = pick_finalists(trials, plan.finalists, excluded)
    if not picked:
        raise TrainingError(
            f"none of {len(trials)} trials can be confirmed: {len(excluded)} are left out because they "
            "ran on other hardware (search.flagged), the others have no value"
        )
    wanted = [
        PlannedFinalist(
            f"trial{r.number}-seed{seed}", r.number, finalist_config(config, r.values, seed, plan)
        )
        for r in picked
        for seed in plan.seeds
    ]
    trained = _train_missing(wanted, num_classes, folder, observer, progress)
    if not trained:
        raise TrainingError(f"all of {len(wanted)} finalists failed, though their trials did not")
    won = rank(group_trainings(trained), minimize=minimize).winner.configuration.trial
    winner = representative([finalist for finalist in trained if finalist.trial == won])
    baselines = _train_missing(
        _baselines(winner, plan), num_classes, folder, observer, lambda count: progress(len(wanted) + count)
    )
    ranking = rank(group_trainings(trained), group_trainings(baselines), minimize)
    return Confirmation(trained, baselines, winner, ranking)


@dataclass(frozen=True)
class PlannedFinalist:
    """A training that the confirmation needs; `name` identifies its folder and its line."""

    name: str
    trial: int | None
    config: Config


def _baselines(winner: Finalist, plan: ConfirmConfig) -> list[PlannedFinalist]:
    """List the baselines, named after the winner whose values they use: extending a sweep may change it."""
    return [
        PlannedFinalist(
            f"trial{winner.trial}-{name_context(context).replace(' ', '-')}-seed{seed}",
            None,
            with_values(winner.config, {"model.context": context, "train.seed": seed}),
        )
        for context in plan.baselines
        for seed in plan.seeds
    ]


def _train_missing(
    wanted: Sequence[PlannedFinalist],
    num_classes: int,
    folder: Path,
    observer: ConfirmObserver,
    progress: Callable[[int], None],
) -> tuple[Finalist, ...]:
    lines = {line["name"]: line for line in read_lines(folder / FINALISTS_FILE)}
    found: list[Finalist | None] = []
    for count, one in enumerate(wanted, start=1):
        if one.name in lines:
            found.append(from_line(lines[one.name], one.config, folder))
            continue
        found.append(_train(one, num_classes, folder, observer))
        progress(count)
    return tuple(finalist for finalist in found if finalist)


def _train(
    wanted: PlannedFinalist, num_classes: int, folder: Path, observer: ConfirmObserver
) -> Finalist | None:
    recorder = observer.open_finalist(wanted.name, wanted.trial, wanted.config)
    try:
        with recording(recorder):
            result = run_ray_train(wanted.config, folder / wanted.name, recorder)
            parameters = count_parameters(wanted.config.model, num_classes)
            finalist = Finalist(wanted.name, wanted.trial, wanted.config, _whole(result), parameters)
            observer.finalist_trained(finalist)
    except TrainingError as error:
        observer.finalist_failed(wanted.name, str(error))
        return None
    # The line comes last: after a kill before it, nothing is trained again, but the observer is called again.
    append_line(folder / FINALISTS_FILE, to_line(finalist, folder))
    return finalist


def _whole(result: TrainingResult) -> TrainingResult:
    """Add the epochs before a kill: a training that continued after one was timed only from there."""
    epochs_s = sum(report.seconds for report in result.reports)
    return replace(result, seconds=max(result.seconds, epochs_s))
