"""The study of a sweep: Optuna's storage is the one source of truth about its trials.

proposal = study.ask()                           # None when there is nothing left to try
study.report(number, epoch, value)               # once an epoch
study.judge(number)                              # continue, pause or stop
study.pause(number); study.promote()             # a paused trial that goes on, or None
study.complete(number) | study.prune(number) | study.fail(number, reason)

One process owns a study, any process may read it. After a kill another one opens it and continues the trials
of `running()`; those of `paused()` wait to be promoted. Optuna has no such state: in its storage they run.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from encsearch.config import Config, SearchConfig, find_active, flatten
from encsearch.errors import PreflightError
from encsearch.redaction import without_secrets
from encsearch.search.stopping import Rungs, Verdict, checked_epochs, find_promotable, judge
from encsearch.search.study.proposals import (
    Prior,
    can_be_exhausted,
    is_exhausted,
    propose,
    share_of_prior,
)
from encsearch.search.study.samplers import distribution, suggest
from encsearch.search.study.storage import MEMORY, open_storage
from encsearch.search.trials import PARAMETERS, Trial, TrialState

# User attributes of a trial, as people see them in optuna-dashboard.
REASON, SECONDS, COST, HARDWARE = "reason", "seconds", "cost_seconds", "hardware"
QUEUED, WARM_START, REFUSED, RERUN_OF = "queued", "warm_start", "refused", "rerun_of"
STOPPED, PAUSED, ORIGIN, REPEAT = "stopped", "paused", "origin", "repeat"
_OF_OTHERS = frozenset((WARM_START, RERUN_OF))
# Of the study.
PRIOR = "prior"

# Zhang et al., CVPR 2018, section 4.1 and table 1.
PAPER = {"model.num_codewords": 32, "loss.se_weight": 0.2}


@dataclass(frozen=True)
class Proposal:
    """A trial's number and its values by config path; `repeat` counts the earlier trials with them."""

    number: int
    values: Mapping[str, Any]
    repeat: int = 0


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
        self._read()

    def _read(self) -> None:
        trials = self._study.get_trials(deepcopy=False)
        self._ids = {trial.number: trial._trial_id for trial in trials}
        self._curves = {t.number: dict(t.intermediate_values) for t in trials if t.intermediate_values}
        is_open = OptunaState.RUNNING
        self._paused = {t.number for t in trials if t.state == is_open and self._is_at_rung(t.number)}
        self._rungs = Rungs(self.search, self._epochs, self._curves, self._paused)
        self._settled: dict[int, Trial] = {}  # ended and paused ones, until they change

    @property
    def prior(self) -> Prior | None:
        """Where a share of the proposals is drawn from; None before `believe`."""
        stored = self._study.user_attrs.get(PRIOR)
        return Prior(**stored) if stored else None

    def believe(self, prior: Prior) -> None:
        """Set the prior, which a study has for all its life."""
        if self.prior is None:
            self._study.set_user_attr(PRIOR, asdict(prior))

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
            same_seed = trials[number].user_attrs.get(REPEAT, 0)
            attributes = {RERUN_OF: number, REPEAT: same_seed}
            self._study.enqueue_trial(dict(trials[number].params), user_attrs=attributes)

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
        self._read()
        frozen = self._study.get_trials(deepcopy=False)
        self._study.set_user_attr(WARM_START, sum(WARM_START in t.user_attrs for t in frozen))

    @property
    def num_learnt(self) -> int | None:
        """Number of trials imported from another study; None before `learn` has ended."""
        number: int | None = self._study.user_attrs.get(WARM_START)
        return number

    def ask(self) -> Proposal | None:
        """Propose a new trial; None when the space is exhausted."""
        if not self._waiting() and not self._queue_proposal():
            return None
        self._study.sampler = self._fill_in(self._waiting()[0].number)
        return self._open(self._study.ask())

    def running(self) -> tuple[Proposal, ...]:
        """The trials that an earlier process left open, with their values; not the paused ones.

        If a kill came before a trial had all its values, it gets the values that it would have got.
        """
        left = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        return tuple(self._go_on(trial) for trial in left if trial.number not in self._paused)

    def paused(self) -> tuple[Proposal, ...]:
        """The trials that wait at a rung, also if a kill came between their report and `pause`."""
        trials = self._study.get_trials(deepcopy=False)
        return tuple(self._go_on(trials[number]) for number in sorted(self._paused))

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the metric of one epoch; an epoch that is stored already does not change."""
        curve = self._curves.setdefault(number, {})
        if epoch not in curve:
            self._storage.set_trial_intermediate_value(self._ids[number], epoch, value)
            curve[epoch] = value
            self._rungs.report(number, epoch, value)
            self._settled.pop(number, None)

    def curve(self, number: int) -> Mapping[int, float]:
        """The reported metrics so far, by epoch."""
        return self._curves.get(number, {})

    def judge(self, number: int) -> Verdict:
        """What the scheduler makes of the trial after its last report."""
        return judge(self.search, self._epochs, number, self._curves, self._rungs)

    def pause(self, number: int) -> None:
        self.note(number, **{PAUSED: True})
        self._paused.add(number)
        self._rungs.pause(number, self._curves[number])

    def can_promote(self, *, keep_one: bool) -> bool:
        """Whether `promote` would return a trial."""
        return self._promotable(keep_one) is not None

    def promote(self, *, keep_one: bool) -> int | None:
        """Choose the paused trial that goes on; None if there is none, see `find_promotable`."""
        number = self._promotable(keep_one)
        if number is not None:
            self.note(number, **{PAUSED: False})
            self._paused.remove(number)
            self._rungs.go_on(number, self._curves[number])
        return number

    def note(self, number: int, **attributes: Any) -> None:
        """Set user attributes of the trial."""
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._ids[number], name, value)
        self._settled.pop(number, None)

    def complete(self, number: int) -> None:
        """End a trial that ran all its epochs, with the value of its best epoch and the minimized one."""
        values = [max(self._curves[number].values())]
        if self.search.minimize:
            values.append(self._attributes(number)[self.search.minimize])
        self._study.tell(number, values, skip_if_finished=True)
        self._settled.pop(number, None)

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
        """Whether every configuration of the space has been proposed."""
        if not can_be_exhausted(self.search) or self._waiting():
            return False
        return is_exhausted(self.search, self._taken())

    def is_open(self, number: int) -> bool:
        return not self._storage.get_trial(self._ids[number]).state.is_finished()

    def trials(self) -> tuple[Trial, ...]:
        """All trials of this sweep that were started, by number."""
        return _trials(self._study, self.search, self._settled)

    def would_ask(self, count: int) -> tuple[Mapping[str, Any], ...]:
        """The values that the next `count` trials would get now; nothing is stored."""
        ahead = Study(MEMORY, "copy", self.search, self._epochs)
        ahead._study.add_trials(self._study.get_trials())
        for name, value in self._study.user_attrs.items():
            ahead._study.set_user_attr(name, value)
        for name, value in self._system_attributes().items():
            ahead._storage.set_study_system_attr(ahead._study._study_id, name, value)
        ahead._read()
        proposals = [ahead.ask() for _ in range(count)]
        return tuple(proposal.values for proposal in proposals if proposal)

    def _queue_proposal(self) -> bool:
        """Queue what the search tries next; False if the space is exhausted."""
        trials, taken = self._study.get_trials(deepcopy=False), self._taken()
        draft = propose(
            self.search,
            len(trials),
            [self._as_ended(trial) for trial in trials],
            self._system_attributes(),
            self.prior or Prior(()),
            self._share_of_prior(trials),
            taken,
        )
        if draft is None:
            return False
        repeat = taken.count(draft.values)
        # In one step: a kill leaves a whole proposal or none.
        self._study.add_trial(
            create_trial(
                state=OptunaState.WAITING,
                system_attrs={**draft.trial_attributes, "fixed_params": dict(draft.values)},
                user_attrs={ORIGIN: draft.origin, REPEAT: repeat},
            )
        )
        # After a kill here the sampler gives the same point once more, which is taken by then.
        for name, value in draft.study_attributes.items():
            self._storage.set_study_system_attr(self._study._study_id, name, value)
        return True

    def _share_of_prior(self, trials: Sequence[FrozenTrial]) -> float:
        """By the values at the first epoch at which trials are compared."""
        epoch = next(iter(checked_epochs(self.search, self._epochs, 0)), self._epochs)
        scores: dict[str, list[float]] = {"prior": [], "sampler": []}
        for trial in trials:
            origin = trial.user_attrs.get(ORIGIN)
            if origin in scores and epoch in trial.intermediate_values:
                scores[origin].append(trial.intermediate_values[epoch])
        return share_of_prior(self.search.prior.share, scores["prior"], scores["sampler"])

    def _as_ended(self, trial: FrozenTrial) -> FrozenTrial:
        """A paused trial as samplers learn from it: by the curve that it has."""
        if trial.number not in self._paused:
            return trial
        ended = copy.copy(trial)
        ended.state, ended.datetime_complete = OptunaState.PRUNED, trial.datetime_start
        return ended

    def _promotable(self, keep_one: bool) -> int | None:
        if not keep_one:
            return self._rungs.find_promotable()
        # One that failed, or that another sweep trained, would keep the place of the last one of this.
        own = {trial.number for trial in self.trials() if trial.state != "FAIL"}
        curves = {number: curve for number, curve in self._curves.items() if number in own}
        return find_promotable(self.search, self._epochs, curves, self._paused, keep_one=True)

    def _is_at_rung(self, number: int) -> bool:
        epoch = max(self.curve(number), default=0)
        return self.search.scheduler == "asha" and epoch in checked_epochs(self.search, self._epochs, number)

    def _taken(self) -> list[Mapping[str, Any]]:
        """The values of all started or queued trials of this sweep, without repeats of flagged ones."""
        return [
            trial.params or trial.system_attrs.get("fixed_params", {})
            for trial in self._study.get_trials(deepcopy=False)
            if _OF_OTHERS.isdisjoint(trial.user_attrs)
        ]

    def _system_attributes(self) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(self._study._study_id)

    def _go_on(self, stored: FrozenTrial) -> Proposal:
        if set(stored.params) == set(find_active(self.search.space, stored.params)):
            self._ids[stored.number] = stored._trial_id
            paths = [path for path in self.search.space if path in stored.params]
            values = {path: stored.params[path] for path in paths}
            return Proposal(stored.number, values, stored.user_attrs.get(REPEAT, 0))
        self._study.sampler = self._fill_in(stored.number)
        trial = optuna.Trial(self._study, stored._trial_id)
        given = stored.system_attrs.get("fixed_params", {})
        for path in (path for path in stored.params if path not in given):
            # Repeats the draws from before the kill, so that the random numbers after them are the same.
            self._study.sampler.sample_independent(self._study, stored, path, stored.distributions[path])
        return self._open(trial)

    def _open(self, trial: optuna.Trial) -> Proposal:
        self._ids[trial.number] = trial._trial_id
        return Proposal(trial.number, suggest(trial, self.search.space), trial.user_attrs.get(REPEAT, 0))

    def _fill_in(self, number: int) -> RandomSampler:
        """Draws what a queued point leaves open."""
        entropy = np.random.SeedSequence([self.search.seed, number])
        return RandomSampler(seed=int(entropy.generate_state(1)[0]))

    def _waiting(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    def _attributes(self, number: int) -> dict[str, Any]:
        attributes: dict[str, Any] = self._storage.get_trial(self._ids[number]).user_attrs
        return attributes

    def _end(self, number: int, state: OptunaState, reason: str | None) -> None:
        if reason and self.is_open(number):
            self.note(number, **{REASON: reason})
        self._study.tell(number, state=state, skip_if_finished=True)
        self._settled.pop(number, None)


def trials_at(place: str, name: str, search: SearchConfig) -> tuple[Trial, ...]:
    """Read the trials of a study that another process may own; nothing is written.

    Raises PreflightError when the study does not exist.
    """
    storage = open_storage(place)
    try:
        return _trials(optuna.load_study(study_name=name, storage=storage), search, {})
    except KeyError:
        raise PreflightError(f"{without_secrets(place)} has no study {name}") from None


def known_points(config: Config, search: SearchConfig) -> tuple[Mapping[str, Any], ...]:
    """The paper's K and SE-weight with the recipe's other values, then `search.enqueue`, without repeats.

    A point of some paths whose values are all those of an earlier point is a repeat, too.

    If the space does not hold the paper's value, the recipe's is used; if it does not hold that either, one
    is drawn. A whole point loses the paths whose condition fails there, so that it does not seem another.
    """
    recipe, space = flatten(config), search.space
    first = {
        path: value
        for path in space
        for value in [
            v for v in (PAPER.get(path), recipe.get(path)) if v is not None and space[path].holds(v)
        ][:1]
    }
    points: list[Mapping[str, Any]] = []
    for point in (first, *search.enqueue):
        kept = find_active(space, point) if point.keys() == space.keys() else point
        active = {path: point[path] for path in kept}
        if not any(active.items() <= earlier.items() for earlier in points):
            points.append(active)
    return tuple(points)


def _trials(study: optuna.Study, search: SearchConfig, settled: dict[int, Trial]) -> tuple[Trial, ...]:
    """`settled` are ended and paused trials that were made before, by number; new ones are added."""
    found = []
    for stored in study.get_trials(deepcopy=False):
        trial = settled.get(stored.number)
        if trial is None:
            if stored.state == OptunaState.WAITING or WARM_START in stored.user_attrs:
                continue
            trial = _make_trial(stored, search)
            if trial.state != "RUNNING":
                settled[trial.number] = trial
        found.append(trial)
    return tuple(found)


def _make_trial(trial: FrozenTrial, search: SearchConfig) -> Trial:
    curve = tuple(sorted((e, v) for e, v in trial.intermediate_values.items() if math.isfinite(v)))
    attributes = trial.user_attrs
    is_stopped = trial.state == OptunaState.FAIL and STOPPED in attributes
    is_paused = trial.state == OptunaState.RUNNING and attributes.get(PAUSED, False)
    return Trial(
        number=trial.number,
        values=dict(trial.params),
        state=cast(TrialState, "PRUNED" if is_stopped else "PAUSED" if is_paused else trial.state.name),
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
        origin=attributes.get(ORIGIN),
        repeat=attributes.get(REPEAT, 0),
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
