"""The study of a sweep: Optuna's storage is the one source of truth about its trials.

proposal = study.ask()                           # None when there is nothing left to try
study.report(number, epoch, value)               # once an epoch
study.should_stop(number)
study.complete(number) | study.prune(number) | study.fail(number, reason)

One process owns a study, any process may read it. After a kill another one opens it and continues the trials
of `running()`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from encsearch.config import Config, SearchConfig, find_active, flatten
from encsearch.errors import PreflightError
from encsearch.redaction import without_secrets
from encsearch.search.stopping import should_stop
from encsearch.search.study.samplers import distribution, grid_points, sampler_for, suggest
from encsearch.search.study.storage import MEMORY, open_storage
from encsearch.search.trials import PARAMETERS, Trial, TrialState

# User attributes of a trial, as people see them in optuna-dashboard.
REASON, SECONDS, COST, HARDWARE = "reason", "seconds", "cost_seconds", "hardware"
QUEUED, WARM_START, REFUSED, RERUN_OF = "queued", "warm_start", "refused", "rerun_of"
STOPPED = "stopped"

# Zhang et al., CVPR 2018, section 4.1 and table 1.
PAPER = {"model.num_codewords": 32, "loss.se_weight": 0.2}


@dataclass(frozen=True)
class Proposal:
    """A trial's number and its values by config path."""

    number: int
    values: Mapping[str, Any]


class Study:
    """One Optuna study: it proposes trials and records their results.

    `search` is the search configuration, `epochs` the length of a full trial. Ending a trial twice changes
    nothing, nor does reporting an epoch again.
    """

    def __init__(self, place: str, name: str, search: SearchConfig, epochs: int) -> None:
        """Open the study `name` at `place` (see `open_storage`), or create it."""
        self.search, self._epochs = search, epochs
        self._storage = open_storage(place)
        directions = [StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * bool(search.minimize)
        self._study = optuna.create_study(
            storage=self._storage, study_name=name, directions=directions, load_if_exists=True
        )
        trials = self._study.get_trials(deepcopy=False)
        self._ids = {trial.number: trial._trial_id for trial in trials}
        self._curves = {t.number: dict(t.intermediate_values) for t in trials if t.intermediate_values}

    def queue(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Try these points first; a point that was queued before, by its place in the list, is skipped."""
        trials = self._study.get_trials(deepcopy=False)
        queued = {trial.user_attrs.get(QUEUED) for trial in trials}
        for place, point in enumerate(points):
            if place not in queued:
                self._study.enqueue_trial(dict(point), user_attrs={QUEUED: place})

    def repeat(self, number: int) -> None:
        """Queue the trial's values again, once."""
        trials = self._study.get_trials(deepcopy=False)
        if all(trial.user_attrs.get(RERUN_OF) != number for trial in trials):
            self._study.enqueue_trial(dict(trials[number].params), user_attrs={RERUN_OF: number})

    def learn(self, source: str, trials: Sequence[Trial]) -> None:
        """Import another study's ended trials for the sampler and the rungs, each trial once.

        They are not among `trials()`. Their values must lie in this study's space. With two objectives,
        stopped trials are left out.
        """
        states = ("COMPLETE",) if self.search.minimize else ("COMPLETE", "PRUNED")
        known = {trial.user_attrs.get(WARM_START) for trial in self._study.get_trials(deepcopy=False)}
        for trial in trials:
            name = f"{source} trial {trial.number}"
            if name not in known and trial.state in states:
                self._study.add_trial(_foreign(trial, name, self.search))
        frozen = self._study.get_trials(deepcopy=False)
        self._curves = {t.number: dict(t.intermediate_values) for t in frozen if t.intermediate_values}
        self._study.set_user_attr(WARM_START, sum(WARM_START in t.user_attrs for t in frozen))

    @property
    def num_learnt(self) -> int | None:
        """Number of trials imported from another study; None before `learn` has ended."""
        number: int | None = self._study.user_attrs.get(WARM_START)
        return number

    def ask(self) -> Proposal | None:
        """Propose a new trial; None when a grid is exhausted."""
        if self.search.sampler == "grid" and not self._waiting():
            point = self._next_of_grid()
            if point is None:
                return None
            self._study.enqueue_trial(point)
        waiting = self._waiting()
        number = waiting[0].number if waiting else len(self._study.get_trials(deepcopy=False))
        self._study.sampler = sampler_for(self.search, number)
        return self._open(self._study.ask())

    def running(self) -> tuple[Proposal, ...]:
        """The trials that an earlier process left open, with their values.

        If a kill came before a trial had all its values, it gets the values that it would have got.
        """
        left = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        return tuple(self._go_on(trial) for trial in left)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the metric of one epoch; an epoch that is stored already does not change."""
        curve = self._curves.setdefault(number, {})
        if epoch not in curve:
            self._storage.set_trial_intermediate_value(self._ids[number], epoch, value)
            curve[epoch] = value

    def curve(self, number: int) -> Mapping[int, float]:
        """The reported metrics so far, by epoch."""
        return self._curves.get(number, {})

    def should_stop(self, number: int) -> bool:
        """Whether the scheduler ends the trial after its last report."""
        return should_stop(self.search, self._epochs, number, self._curves)

    def note(self, number: int, **attributes: Any) -> None:
        """Set user attributes of the trial."""
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._ids[number], name, value)

    def complete(self, number: int) -> None:
        """End a trial that ran all its epochs, with the value of its best epoch and the minimized one."""
        values = [max(self._curves[number].values())]
        if self.search.minimize:
            values.append(self._attributes(number)[self.search.minimize])
        self._study.tell(number, values, skip_if_finished=True)

    def prune(self, number: int, reason: str | None = None) -> None:
        """End a trial that was stopped early; its curve is kept.

        With two objectives Optuna stores it as failed, since TPE (5.0) cannot rank pruned trials by curve.
        """
        if not self.search.minimize:
            self._end(number, OptunaState.PRUNED, reason)
        elif self.is_open(number):
            self.note(number, **{STOPPED: True})
            self._end(number, OptunaState.FAIL, reason)

    def fail(self, number: int, reason: str) -> None:
        self._end(number, OptunaState.FAIL, reason)

    def refuse(self, number: int, reason: str, excess: float) -> None:
        """End a trial that exceeds a limit by the share `excess`, untrained; the sampler learns from it."""
        if not self.is_open(number):
            return
        optuna.Trial(self._study, self._ids[number]).set_constraint("limit", excess)
        self.note(number, **{REFUSED: True})
        self._end(number, OptunaState.PRUNED, reason)

    def hardware(self, number: int) -> tuple[str, ...]:
        """The hardware that the trial has run on so far."""
        return tuple(self._attributes(number).get(HARDWARE, ()))

    def num_repeats_waiting(self) -> int:
        """Number of trials that `repeat` queued and that have not started yet."""
        return sum(RERUN_OF in trial.user_attrs for trial in self._waiting())

    def is_exhausted(self) -> bool:
        """Whether every point of a grid has been proposed."""
        return self.search.sampler == "grid" and not self._waiting() and self._next_of_grid() is None

    def is_open(self, number: int) -> bool:
        return not self._storage.get_trial(self._ids[number]).state.is_finished()

    def trials(self) -> tuple[Trial, ...]:
        """All trials of this sweep that were started, by number."""
        return _trials(self._study, self.search)

    def would_ask(self, count: int) -> tuple[Mapping[str, Any], ...]:
        """The values that the next `count` trials would get now; nothing is stored."""
        copy = Study(MEMORY, "copy", self.search, self._epochs)
        copy._study.add_trials(self._study.get_trials())
        # Some samplers keep their counters there.
        for name, value in self._storage.get_study_system_attrs(self._study._study_id).items():
            copy._storage.set_study_system_attr(copy._study._study_id, name, value)
        copy._ids = {trial.number: trial._trial_id for trial in copy._study.get_trials(deepcopy=False)}
        proposals = [copy.ask() for _ in range(count)]
        return tuple(proposal.values for proposal in proposals if proposal)

    def _go_on(self, stored: FrozenTrial) -> Proposal:
        if set(stored.params) == set(find_active(self.search.space, stored.params)):
            # Asked again, a sampler that counts would count the trial twice.
            self._ids[stored.number] = stored._trial_id
            paths = [path for path in self.search.space if path in stored.params]
            return Proposal(stored.number, {path: stored.params[path] for path in paths})
        self._study.sampler = sampler_for(self.search, stored.number)
        trial = optuna.Trial(self._study, stored._trial_id)
        given = {**trial.relative_params, **stored.system_attrs.get("fixed_params", {})}
        for path in (path for path in stored.params if path not in given):
            # Repeats the draws from before the kill, so that the random numbers after them are the same.
            self._study.sampler.sample_independent(self._study, stored, path, stored.distributions[path])
        return self._open(trial)

    def _open(self, trial: optuna.Trial) -> Proposal:
        self._ids[trial.number] = trial._trial_id
        return Proposal(trial.number, suggest(trial, self.search.space))

    def _waiting(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    def _next_of_grid(self) -> dict[str, Any] | None:
        """The first point that no started or queued trial of this sweep has."""
        trials = [t for t in self._study.get_trials(deepcopy=False) if WARM_START not in t.user_attrs]
        taken = [trial.params or trial.system_attrs.get("fixed_params") for trial in trials]
        return next((point for point in grid_points(self.search) if point not in taken), None)

    def _attributes(self, number: int) -> dict[str, Any]:
        attributes: dict[str, Any] = self._storage.get_trial(self._ids[number]).user_attrs
        return attributes

    def _end(self, number: int, state: OptunaState, reason: str | None) -> None:
        if reason and self.is_open(number):
            self.note(number, **{REASON: reason})
        self._study.tell(number, state=state, skip_if_finished=True)


def trials_at(place: str, name: str, search: SearchConfig) -> tuple[Trial, ...]:
    """Read the trials of a study that another process may own; nothing is written.

    Raises PreflightError when the study does not exist.
    """
    storage = open_storage(place)
    try:
        return _trials(optuna.load_study(study_name=name, storage=storage), search)
    except KeyError:
        raise PreflightError(f"{without_secrets(place)} has no study {name}") from None


def _trials(study: optuna.Study, search: SearchConfig) -> tuple[Trial, ...]:
    return tuple(
        _make_trial(trial, search)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != OptunaState.WAITING and WARM_START not in trial.user_attrs
    )


def _make_trial(trial: FrozenTrial, search: SearchConfig) -> Trial:
    curve = tuple(sorted((e, v) for e, v in trial.intermediate_values.items() if math.isfinite(v)))
    attributes = trial.user_attrs
    is_stopped = trial.state == OptunaState.FAIL and STOPPED in attributes
    return Trial(
        number=trial.number,
        values=dict(trial.params),
        state=cast(TrialState, "PRUNED" if is_stopped else trial.state.name),
        value=max((v for _, v in curve), default=None),
        curve=curve,
        seconds=attributes.get(SECONDS, 0.0),
        reason=attributes.get(REASON),
        cost_seconds=attributes.get(COST, 0.0),
        hardware=tuple(attributes.get(HARDWARE, ())),
        parameters=attributes.get(PARAMETERS),
        minimized=attributes.get(search.minimize) if search.minimize else None,
        refused=attributes.get(REFUSED, False),
        rerun_of=attributes.get(RERUN_OF),
    )


def _foreign(trial: Trial, name: str, search: SearchConfig) -> FrozenTrial:
    """Convert a trial of another study for this one."""
    space = {path: search.space[path] for path in trial.values}
    is_complete = trial.state == "COMPLETE"
    objectives = [trial.value, trial.minimized] if search.minimize else [trial.value]
    return create_trial(
        state=OptunaState.COMPLETE if is_complete else OptunaState.PRUNED,
        params=dict(trial.values),
        distributions={path: distribution(dimension) for path, dimension in space.items()},
        values=[float(value) for value in objectives if value is not None] if is_complete else None,
        intermediate_values=dict(trial.curve),
        user_attrs={WARM_START: name},
    )


def known_points(config: Config, search: SearchConfig) -> tuple[Mapping[str, Any], ...]:
    """The paper's K and SE-weight with the recipe's other values, then `search.enqueue`, without repeats.

    If the space does not hold the paper's value, the recipe's is used; if it does not hold that either, the
    sampler draws one.
    """
    recipe, space = flatten(config), search.space
    first = {
        path: value
        for path in space
        for value in [
            v for v in (PAPER.get(path), recipe.get(path)) if v is not None and space[path].holds(v)
        ][:1]
    }
    points: list[Mapping[str, Any]] = [first]
    for point in search.enqueue:
        if point not in points:
            points.append(point)
    return tuple(points)
