"""Optuna's samplers, each made from the study's seed and a trial's number alone.

Because every trial gets a new sampler, it proposes the same values after a kill and a resume as without,
as long as the study holds the same trials.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import product
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from encsearch.config import Dimension, SearchConfig, find_active
from encsearch.errors import UserError, one_line
from encsearch.parts import PartName, is_part, make_part
from encsearch.search.study.storage import study_of

# Trials that TPE learns from at most, the best among them, which are as many as it takes for good ones.
MAX_LEARNT, MAX_BEST = 1000, 25
CHECKED_TRIALS = 4


def sampler_for(search: SearchConfig, number: int, attempt: int = 0) -> BaseSampler:
    """The sampler that proposes the trial `number`, or does so again at a further attempt."""
    with warnings.catch_warnings():
        # Groups of TPE and the quasi-random sampler are experimental in Optuna 5.0.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _sampler(search, number, attempt)


def suggest(trial: Trial, space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Read the trial's fixed values into the study; paths whose condition fails are left out."""
    return for_each(space, lambda path: _suggest(trial, path, distribution(space[path])))


def draw(trial: Trial, space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Draw a trial's values in a study of `as_seen` trials."""

    def one(path: str) -> Any:
        drawn = _suggest(trial, path, _seen_distribution(space[path]))
        return ordered_values(space[path])[drawn] if _is_ranked(space[path]) else drawn

    return for_each(space, one)


def for_each(space: Mapping[str, Dimension], one: Callable[[str], Any]) -> dict[str, Any]:
    """The value of each active path; conditions come after what they name."""
    values: dict[str, Any] = {}
    for path in sorted(space, key=lambda path: bool(space[path].when)):
        if path in find_active(space, values):
            values[path] = one(path)
    return {path: values[path] for path in space if path in values}


def learnt_from(search: SearchConfig, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """The trials that the sampler is given, in their order: all, but for TPE in a long search.

    TPE (Optuna 5.0) compares the MAX_BEST best trials, whatever their number, with all others, which takes
    time in proportion to them. Beyond MAX_LEARNT it is given the best and the newest.
    """
    if search.sampler != "tpe" or search.minimize or len(trials) <= MAX_LEARNT:
        return trials
    best = {trial.number for trial in nsmallest(MAX_BEST, trials, key=_standing)}
    first_new = trials[-(MAX_LEARNT - MAX_BEST)].number
    return [trial for trial in trials if trial.number >= first_new or trial.number in best]


def as_seen(trials: Iterable[FrozenTrial], space: Mapping[str, Dimension]) -> Iterator[FrozenTrial]:
    """The trials as a sampler learns from them: numbers of a choice are replaced by their ranks.

    So what a sampler learns of one number says something of its neighbours, which it cannot of a category.
    """
    ranks = {
        path: {value: rank for rank, value in enumerate(ordered_values(dimension))}
        for path, dimension in space.items()
        if _is_ranked(dimension)
    }
    distributions = {path: _seen_distribution(dimension) for path, dimension in space.items()}
    for trial in trials:
        seen = copy.copy(trial)
        seen.params = {
            path: ranks[path][value] if path in ranks else value for path, value in trial.params.items()
        }
        seen.distributions = {path: distributions[path] for path in trial.params}
        yield seen


def ordered_values(dimension: Dimension) -> list[Any]:
    """The numbers of a choice, ascending."""
    return sorted(set(dimension.values))


def grid_points(search: SearchConfig) -> Iterator[dict[str, Any]]:
    """Every point of a space of choices, in an order that depends on the seed alone."""
    paths = list(search.space)
    points = list(product(*(search.space[path].values for path in paths)))
    for place in np.random.default_rng(search.seed).permutation(len(points)):
        yield dict(zip(paths, points[place], strict=True))


def distribution(dimension: Dimension) -> BaseDistribution:
    """The dimension in Optuna's terms."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.values)
    low, high = dimension.values
    log = dimension.kind.startswith("log")
    if dimension.kind.endswith("integer"):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _sampler(search: SearchConfig, number: int, attempt: int) -> BaseSampler:
    entropy = [search.seed, number, attempt] if attempt else [search.seed, number]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    startup = search.startup_trials
    if is_part(search.sampler):
        return _own_sampler(search.sampler, search, seed)
    match search.sampler:
        case "tpe":
            # Groups: paths with a condition are modelled together with the paths that they occur with.
            conditional = any(dimension.when for dimension in search.space.values())
            return TPESampler(
                n_startup_trials=startup,
                seed=seed,
                multivariate=True,
                group=conditional,
                constant_liar=True,  # keeps away from trials that run
            )
        case "gp":
            return GPSampler(n_startup_trials=startup, seed=seed)
        case "cmaes":
            return CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
        case "qmc":
            # All trials share one sequence; the study counts its points. Words are drawn at random.
            return QMCSampler(
                seed=search.seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=seed),
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
        case "random" | "grid":
            # The points of a grid are queued one by one, see `grid_points`.
            return RandomSampler(seed=seed)


def _own_sampler(name: PartName, search: SearchConfig, seed: int) -> BaseSampler:
    """Part(seed=, **args), made anew for each trial; see `check_sampler`."""
    made = make_part("sampler", name, search.args.get(name, {}), seed=seed)
    if not isinstance(made, BaseSampler):
        raise UserError(
            f"sampler {name}: must make an optuna.samplers.BaseSampler, but got {type(made).__name__}"
        )
    return made


def check_sampler(search: SearchConfig) -> None:
    """Try an own sampler: twice the same proposals of one seed, so that a resumed sweep goes on as it would.

    Raises UserError.
    """
    if not is_part(search.sampler):
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    proposals = []
    for _ in range(2):
        study = study_of(())
        found = []
        for number in range(CHECKED_TRIALS):
            study.sampler = sampler_for(search, number)
            trial = study.ask()
            try:
                found.append(draw(trial, search.space))
            except Exception as error:
                raise UserError(
                    f"sampler {search.sampler}: fails on trial {number} of search.space ({one_line(error)})"
                ) from None
            study.tell(trial, 1 / (1 + number))
        proposals.append(found)
    if proposals[0] != proposals[1]:
        raise UserError(
            f"sampler {search.sampler}: proposes other values at the second time with the same seed and "
            "trials; draw all random numbers from `seed`"
        )


def _standing(trial: FrozenTrial) -> tuple[float, ...]:
    """Sorts as TPE ranks: complete trials by value, then pruned ones by their last epoch and value there."""
    if trial.state == TrialState.COMPLETE:
        return 0, -cast(float, trial.value)
    curve = trial.intermediate_values
    if trial.state != TrialState.PRUNED or not curve:
        return (2,)
    epoch = max(curve)
    return 1, -epoch, math.inf if math.isnan(curve[epoch]) else -curve[epoch]


def _is_ranked(dimension: Dimension) -> bool:
    return dimension.kind == "choice" and dimension.is_ordered


def _seen_distribution(dimension: Dimension) -> BaseDistribution:
    if _is_ranked(dimension):
        return IntDistribution(0, len(ordered_values(dimension)) - 1)
    return distribution(dimension)


def _suggest(trial: Trial, path: str, drawn: BaseDistribution) -> Any:
    if isinstance(drawn, CategoricalDistribution):
        return trial.suggest_categorical(path, drawn.choices)
    if isinstance(drawn, IntDistribution):
        return trial.suggest_int(path, drawn.low, drawn.high, log=drawn.log)
    assert isinstance(drawn, FloatDistribution)
    return trial.suggest_float(path, drawn.low, drawn.high, log=drawn.log)
