"""The confirmation: the best configurations are trained again from scratch, which alone decides the winner.

A sweep's own maximum is the best of many noisy values and so too high. A finalist's value is not selected
before it is trained; the winner's value is selected among few (`Ranking.optimism`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from encsearch.config import Config, ConfirmConfig, with_values
from encsearch.data.store import Store
from encsearch.errors import TrainingError
from encsearch.files import append_line, read_lines, to_object
from encsearch.reports import (
    REPORTS_FILE,
    Recorder,
    Report,
    TrainingResult,
    best_report,
    distinct_reports,
)
from encsearch.search.confirm.finalists import (
    Finalist,
    FinalistLine,
    finalist_config,
    from_line,
    group_trainings,
    name_configuration,
    name_context,
    pick_finalists,
    representative,
    to_line,
)
from encsearch.search.confirm.ranking import Ranking, Standing, rank
from encsearch.search.ledger import Network
from encsearch.search.trials import Trial, TrialEvent
from encsearch.search.tune.side_by_side import run_side_by_side
from encsearch.train.checkpoint_files import find_best

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

    def trainings_of(self, standing: Standing) -> tuple[Finalist, ...]:
        """All seeds of a configuration."""
        everyone = (*self.finalists, *self.baselines)
        return tuple(one for one in everyone if name_configuration(one) == standing.name)


def confirm(
    config: Config,
    plan: ConfirmConfig,
    trials: Sequence[Trial],
    folder: Path,
    observer: ConfirmObserver,
    *,
    store: Store,
    network: Callable[[Config], Network],
    room: int,
    minimize: str | None = None,
    excluded: Collection[int] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Confirmation:
    """Train every finalist, then the baselines at the winner's values, with every seed of `plan`.

    `network` measures the size of a network, `minimize` is the search's second objective; trials in
    `excluded` are not picked. `room` trainings run at once, each in its own folder below `folder`. A second
    call with the same folder trains only what has no line there, failed trainings included; a killed training
    continues from its last checkpoint. Lines of trials that are no longer picked, or of another
    `plan.epochs`, stay and are not ranked. A training that fails is reported and left out. Raises
    TrainingError when no trial can be picked or no finalist is left.
    """
    picked = pick_finalists(trials, plan.finalists, excluded)
    if not picked:
        raise TrainingError(
            f"none of {len(trials)} trials can be confirmed: {len(excluded)} are left out because they "
            "ran on other hardware (search.flagged), the others have no value"
        )
    wanted = [
        PlannedFinalist(
            f"trial{r.number}-seed{seed}{_length(config, plan)}",
            r.number,
            finalist_config(config, r.values, seed, plan),
        )
        for r in picked
        for seed in plan.seeds
    ]
    trained = _train_missing(wanted, store, network, room, folder, observer, progress)
    if not trained:
        raise TrainingError(f"all of {len(wanted)} finalists failed, though their trials did not")
    won = rank(group_trainings(trained), minimize=minimize).winner.configuration.trial
    winner = representative([finalist for finalist in trained if finalist.trial == won])

    def progress_after(count: int) -> None:
        progress(len(wanted) + count)

    baselines = _train_missing(
        _baselines(config, winner, plan), store, network, room, folder, observer, progress_after
    )
    ranking = rank(group_trainings(trained), group_trainings(baselines), minimize)
    return Confirmation(trained, baselines, winner, ranking)


@dataclass(frozen=True)
class PlannedFinalist:
    """A training that the confirmation needs; `name` identifies its folder and its line."""

    name: str
    trial: int | None
    config: Config

    @property
    def row(self) -> str:
        return self.name


def _length(config: Config, plan: ConfirmConfig) -> str:
    """The part of a name that keeps trainings of another length than the trials' apart."""
    return f"-{plan.epochs}epochs" if plan.epochs not in (None, config.train.epochs) else ""


def _baselines(config: Config, winner: Finalist, plan: ConfirmConfig) -> list[PlannedFinalist]:
    """List the baselines, named after the winner whose values they use: extending a sweep may change it."""
    length = _length(config, plan)
    return [
        PlannedFinalist(
            f"trial{winner.trial}-{name_context(context).replace(' ', '-')}-seed{seed}{length}",
            None,
            with_values(winner.config, {"model.context": context, "train.seed": seed}),
        )
        for context in plan.baselines
        for seed in plan.seeds
    ]


def _train_missing(
    wanted: Sequence[PlannedFinalist],
    store: Store,
    network: Callable[[Config], Network],
    room: int,
    folder: Path,
    observer: ConfirmObserver,
    progress: Callable[[int], None],
) -> tuple[Finalist, ...]:
    """Train what has no line, and return all that did not fail, in the order of `wanted`."""
    path = folder / FINALISTS_FILE
    found = [to_object(FinalistLine, line, path) for line in read_lines(path)]
    lines = {line.name: line for line in found}
    done = [one for one in wanted if one.name in lines]
    known = {one.name: from_line(lines[one.name], one.config, folder) for one in done}
    missing = [one for one in wanted if one.name not in known]
    if missing:
        trainings = _Trainings(known, network, folder, observer, progress)
        run_side_by_side(
            missing,
            missing[0].config.scaling,
            folder,
            trainings,
            fingerprint=store.fingerprint,
            room=room,
            keeps_best=True,
        )
    return tuple(known[one.name] for one in wanted if one.name in known)


class _Trainings:
    """Adds each training that ends to `known`, with a line in the folder."""

    def __init__(
        self,
        known: dict[str, Finalist],
        network: Callable[[Config], Network],
        folder: Path,
        observer: ConfirmObserver,
        progress: Callable[[int], None],
    ) -> None:
        self._known, self._network, self._folder = known, network, folder
        self._observer, self._progress = observer, progress

    def open_recorder(self, training: PlannedFinalist) -> Recorder:
        return self._observer.open_finalist(training.name, training.trial, training.config)

    def trained(self, training: PlannedFinalist, last: Report, seconds: float, folder: Path) -> None:
        config = training.config
        reports = tuple(distinct_reports(folder / REPORTS_FILE))
        best = best_report(reports, config.metric)
        result = TrainingResult(reports, best, find_best(folder), seconds)
        parameters = self._network(config).parameters
        finalist = Finalist(training.name, training.trial, config, result, parameters)
        self._observer.finalist_trained(finalist)
        self._known[training.name] = finalist

    def recorded(self, training: PlannedFinalist) -> None:
        """The line comes last: after a kill before it the observer is called again, but nothing trains."""
        append_line(self._folder / FINALISTS_FILE, asdict(to_line(self._known[training.name], self._folder)))
        self._progress(len(self._known))

    def failed(self, training: PlannedFinalist, reason: str) -> None:
        self._observer.finalist_failed(training.name, reason)

    def follow(self, training: PlannedFinalist, event: TrialEvent) -> None:
        """Nothing: its recorder shows the progress of a finalist."""
