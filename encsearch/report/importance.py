"""Which searched path moves the metric, by two evaluators, and how sure that is.

Of a study Optuna rates the trials that ran to the end alone, which early stopping leaves few of; here the
caller gives every trial's value at one common epoch. A share alone says little: fANOVA and PED-ANOVA answer
different questions and may rank the paths otherwise, and with few trials both give shares to noise. So each
share comes with an interval over resampled trials, and with what it is by chance, the values dealt out anew.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from encsearch.config import Dimension

Observation = tuple[Mapping[str, Any], float]
"""A trial's values by path, and the metric."""

Shares = dict[str, float]

RESAMPLES = 20
"""Resamples, and shuffles; of twenty a 90 % interval leaves out the lowest and the highest."""

TREES, TREES_A_RESAMPLE = 64, 16
MIN_TRIALS, MIN_TRIALS_A_PATH = 10, 4

MIN_TOP_TRIALS = 5
"""Of the best part of the trials, which PED-ANOVA looks at; its authors ask for at least these."""


@dataclass(frozen=True)
class PathImportance:
    """A path's share; `low` and `high` are its 90 % interval over resampled trials."""

    path: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """What one evaluator says; the paths by falling share.

    `chance` is the most that any path reached with shuffled values. That one of them is beyond it by chance
    alone has a probability of 1 / (RESAMPLES + 1), for all paths together: a permutation test of the largest
    (Westfall and Young, Resampling-Based Multiple Testing, 1993).
    """

    evaluator: str
    meaning: str
    paths: tuple[PathImportance, ...]
    chance: float

    @property
    def beyond_chance(self) -> tuple[str, ...]:
        """The paths that are beyond chance."""
        return tuple(path.path for path in self.paths if path.share > self.chance)


def importances(
    space: Mapping[str, Dimension], trials: Sequence[Observation], seed: int
) -> tuple[Importances, ...]:
    """By fANOVA and by PED-ANOVA; empty with too few trials to tell, see `trials_needed`.

    Rated are the paths that every trial has, with two values or more: `rated_paths`.

    fANOVA (Hutter et al., ICML 2014): the share of a random forest's variance that a path explains alone;
    what is missing to 1 is joint work of several. PED-ANOVA (Watanabe et al., IJCAI 2023): how far the values
    of the best trials differ from those of all, relative to the sum over the paths.
    """
    paths = rated_paths(space, trials)
    if not paths or len(trials) < trials_needed(len(paths)):
        return ()
    data = _Data({path: _distribution(space[path]) for path in paths}, _coordinates(space, paths, trials))
    values = np.array([value for _, value in trials])
    fanova = _rate("fANOVA", "share of the variance explained by the path alone", data, values, _fanova, seed)
    ped_anova = _rate("PED-ANOVA", "share in what sets the best trials apart", data, values, _ped_anova, seed)
    return (fanova, _relative(ped_anova))


def rated_paths(space: Mapping[str, Dimension], trials: Sequence[Observation]) -> list[str]:
    """Those that can be rated; of a path with a `when`, trials without it would be guessed."""
    return [
        path
        for path in space
        if all(path in values for values, _ in trials) and len({values[path] for values, _ in trials}) > 1
    ]


def trials_needed(num_paths: int) -> int:
    return max(MIN_TRIALS, MIN_TRIALS_A_PATH * num_paths)


@dataclass(frozen=True)
class _Data:
    """The trials in the evaluators' terms; log ranges are given on their log scale.

    Optuna's fANOVA takes means over the plain range, most of which is the uppermost decade of a log range.
    """

    distributions: dict[str, BaseDistribution]
    points: Sequence[dict[str, Any]]


def _rate(
    name: str,
    meaning: str,
    data: _Data,
    values: NDArray[np.float64],
    evaluate: Callable[[optuna.Study, int, int], Shares],
    seed: int,
) -> Importances:
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(values))

    def shares(chosen: NDArray[np.int64], told: NDArray[np.float64], trees: int) -> Shares:
        if np.ptp(told) == 0:  # fANOVA raises an error where there is no variance to share out
            return dict.fromkeys(data.distributions, 0.0)
        return evaluate(_study(data, chosen, told), trees, seed)

    whole = shares(everyone, values, TREES)
    drawn = [rng.integers(len(values), size=len(values)) for _ in range(RESAMPLES)]
    resampled = [shares(chosen, values[chosen], TREES_A_RESAMPLE) for chosen in drawn]
    shuffled = [shares(everyone, rng.permutation(values), TREES_A_RESAMPLE) for _ in range(RESAMPLES)]
    rated = []
    for path in sorted(whole, key=lambda path: -whole[path]):
        spread = sorted(draw[path] for draw in resampled)
        rated.append(PathImportance(path, whole[path], spread[1], spread[-2]))
    return Importances(name, meaning, tuple(rated), max(max(draw.values()) for draw in shuffled))


def _relative(found: Importances) -> Importances:
    """All figures as parts of the sum of the shares; those of resamples and shuffles may be above 1."""
    total = sum(path.share for path in found.paths) or 1.0
    paths = tuple(
        replace(path, share=path.share / total, low=path.low / total, high=path.high / total)
        for path in found.paths
    )
    return replace(found, paths=paths, chance=found.chance / total)


def _fanova(study: optuna.Study, trees: int, seed: int) -> Shares:
    return _shares(study, FanovaImportanceEvaluator(n_trees=trees, seed=seed))


def _ped_anova(study: optuna.Study, trees: int, seed: int) -> Shares:
    """It has neither trees nor randomness."""
    best_part = max(0.1, MIN_TOP_TRIALS / len(study.get_trials(deepcopy=False)))
    return _shares(study, PedAnovaImportanceEvaluator(target_quantile=best_part))


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> Shares:
    """Not normalised: shares of noise that sum to 1 look like those of an effect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    return {path: float(share) for path, share in found.items()}


def _study(data: _Data, chosen: NDArray[np.int64], values: NDArray[np.float64]) -> optuna.Study:
    """A study in memory of the trials `chosen`, which may repeat, with these values."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(
            params=data.points[index], distributions=data.distributions, value=float(value)
        )
        for index, value in zip(chosen, values, strict=True)
    )
    return study


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.values)
    low, high = (_scaled(dimension, value) for value in dimension.values)
    return FloatDistribution(low, high)


def _coordinates(
    space: Mapping[str, Dimension], paths: Sequence[str], trials: Sequence[Observation]
) -> list[dict[str, Any]]:
    return [{path: _scaled(space[path], values[path]) for path in paths} for values, _ in trials]


def _scaled(dimension: Dimension, value: Any) -> Any:
    if dimension.kind == "choice":
        return value
    return math.log10(value) if dimension.kind.startswith("log") else float(value)
