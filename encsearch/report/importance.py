"""The importance of the searched paths for the metric, by two evaluators, with its uncertainty.

Optuna rates only trials that ran to the end, and early stopping leaves few of them; here the caller gives
every trial's value at one common epoch. A share alone says little: fANOVA and PED-ANOVA answer different
questions and may rank the paths differently, and with few trials both give shares to noise. So each share
comes with an interval over resampled trials, and with the share that shuffled values reach by chance.
"""

import copy
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
from optuna.trial import FrozenTrial, create_trial

from encsearch.config import Dimension
from encsearch.search.study.storage import study_of

Observation = tuple[Mapping[str, Any], float]
"""A trial's values by path, and the metric."""

Shares = dict[str, float]

RESAMPLES = 20
"""Number of resamples, and of shuffles; with twenty, a 90 % interval drops the lowest and the highest."""

TREES, TREES_A_RESAMPLE = 64, 16
DEPTH = 8
"""Of a tree, whose cost grows with the square of its leaves; deeper ones give the same shares to 0.04."""

MAX_RESAMPLED = 200
"""Trials of a resample or shuffle at most; in a longer sweep interval and chance are then too wide, not too
narrow."""

MIN_TRIALS, MIN_TRIALS_A_PATH = 10, 4

MIN_TOP_TRIALS = 5
"""Minimum size of the best part of the trials, which PED-ANOVA examines, as its authors require."""


@dataclass(frozen=True)
class PathImportance:
    """A path's share; `low` and `high` are its 90 % interval over resampled trials."""

    path: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """The result of one evaluator; the paths by falling share.

    `chance` is the largest share of any path with shuffled values. By chance alone, a path exceeds it with a
    probability of 1 / (RESAMPLES + 1), for all paths together: a permutation test of the largest
    (Westfall and Young, Resampling-Based Multiple Testing, 1993).
    """

    evaluator: str
    meaning: str
    paths: tuple[PathImportance, ...]
    chance: float

    @property
    def beyond_chance(self) -> tuple[str, ...]:
        """The paths whose share exceeds chance."""
        return tuple(path.path for path in self.paths if path.share > self.chance)


def importances(
    space: Mapping[str, Dimension], trials: Sequence[Observation], seed: int
) -> tuple[Importances, ...]:
    """Rate the paths by fANOVA and by PED-ANOVA; empty with too few trials, see `trials_needed`.

    Only paths that every trial has, with two values or more, are rated: `rated_paths`.

    fANOVA (Hutter et al., ICML 2014): the share of a random forest's variance that a path explains alone;
    the rest to 1 comes from several paths together. PED-ANOVA (Watanabe et al., IJCAI 2023): how far the
    values of the best trials differ from those of all, relative to the sum over the paths.
    """
    paths = rated_paths(space, trials)
    if not paths or len(trials) < trials_needed(len(paths)):
        return ()
    distributions = {path: _distribution(space[path]) for path in paths}
    points = _coordinates(space, paths, trials)
    frozen = [create_trial(params=point, distributions=distributions, value=0.0) for point in points]
    data = _Data(distributions, frozen)
    values = np.array([value for _, value in trials])
    fanova = _rate("fANOVA", "share of the variance explained by the path alone", data, values, _fanova, seed)
    ped_anova = _rate("PED-ANOVA", "share in what sets the best trials apart", data, values, _ped_anova, seed)
    return (fanova, _relative(ped_anova))


def rated_paths(space: Mapping[str, Dimension], trials: Sequence[Observation]) -> list[str]:
    """The paths that can be rated; a path with a `when` would need guesses for the trials without it."""
    return [
        path
        for path in space
        if all(path in values for values, _ in trials) and len({values[path] for values, _ in trials}) > 1
    ]


def trials_needed(num_paths: int) -> int:
    return max(MIN_TRIALS, MIN_TRIALS_A_PATH * num_paths)


@dataclass(frozen=True)
class _Data:
    """The trials in Optuna's terms; log ranges are given on their log scale.

    Optuna's fANOVA averages over the plain range, where the uppermost decade of a log range dominates.
    """

    distributions: dict[str, BaseDistribution]
    trials: Sequence[FrozenTrial]


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

    def shares(chosen: NDArray[np.int64], metrics: NDArray[np.float64], trees: int) -> Shares:
        if np.ptp(metrics) == 0:  # fANOVA raises an error where there is no variance to share out
            return dict.fromkeys(data.distributions, 0.0)
        return evaluate(_study(data, chosen, metrics), trees, seed)

    whole = shares(everyone, values, TREES)
    size = min(len(values), MAX_RESAMPLED)
    drawn = [rng.integers(len(values), size=size) for _ in range(RESAMPLES)]
    resampled = [shares(chosen, values[chosen], TREES_A_RESAMPLE) for chosen in drawn]
    shuffles = [(rng.permutation(everyone)[:size], rng.permutation(values)[:size]) for _ in range(RESAMPLES)]
    shuffled = [shares(chosen, metrics, TREES_A_RESAMPLE) for chosen, metrics in shuffles]
    rated = []
    for path in sorted(whole, key=lambda path: -whole[path]):
        spread = sorted(draw[path] for draw in resampled)
        rated.append(PathImportance(path, whole[path], spread[1], spread[-2]))
    return Importances(name, meaning, tuple(rated), max(max(draw.values()) for draw in shuffled))


def _relative(found: Importances) -> Importances:
    """Divide all figures by the sum of the shares; those of resamples and shuffles may exceed 1."""
    total = sum(path.share for path in found.paths) or 1.0
    paths = tuple(
        replace(path, share=path.share / total, low=path.low / total, high=path.high / total)
        for path in found.paths
    )
    return replace(found, paths=paths, chance=found.chance / total)


def _fanova(study: optuna.Study, trees: int, seed: int) -> Shares:
    return _shares(study, FanovaImportanceEvaluator(n_trees=trees, max_depth=DEPTH, seed=seed))


def _ped_anova(study: optuna.Study, trees: int, seed: int) -> Shares:
    """PED-ANOVA has neither trees nor randomness."""
    best_part = max(0.1, MIN_TOP_TRIALS / len(study.get_trials(deepcopy=False)))
    return _shares(study, PedAnovaImportanceEvaluator(target_quantile=best_part))


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> Shares:
    """Not normalised: shares of noise that sum to 1 look like those of an effect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    return {path: float(share) for path, share in found.items()}


def _study(data: _Data, chosen: NDArray[np.int64], values: NDArray[np.float64]) -> optuna.Study:
    """Make a study in memory from the trials `chosen`, which may repeat, with these values."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = [copy.copy(data.trials[index]) for index in chosen]
    for trial, value in zip(trials, values, strict=True):
        trial.value = float(value)
    return study_of(trials)


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
