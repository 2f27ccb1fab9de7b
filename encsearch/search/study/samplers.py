"""Optuna's samplers, each made from the study's seed and a trial's number alone.

Because every trial gets a new sampler, it proposes the same values after a kill and a resume as without,
as long as the study holds the same trials.
"""

import warnings
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from encsearch.config import Dimension, SearchConfig, find_active


def sampler_for(search: SearchConfig, number: int) -> BaseSampler:
    """The sampler that proposes the trial `number`."""
    with warnings.catch_warnings():
        # Groups of TPE and the quasi-random sampler are experimental in Optuna 5.0.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _sampler(search, number)


def suggest(trial: Trial, space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Draw the trial's values, or read the existing ones; paths whose condition fails are left out."""
    values: dict[str, Any] = {}
    for path in sorted(
        space, key=lambda path: bool(space[path].when)
    ):  # conditions come after what they name
        if path in find_active(space, values):
            values[path] = _suggest(trial, path, space[path])
    return {path: values[path] for path in space if path in values}


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


def _sampler(search: SearchConfig, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    startup = search.startup_trials
    match search.sampler:
        case "tpe":
            # Groups: paths with a condition are modelled together with the paths that they occur with.
            conditional = any(dimension.when for dimension in search.space.values())
            return TPESampler(n_startup_trials=startup, seed=seed, multivariate=True, group=conditional)
        case "gp":
            return GPSampler(n_startup_trials=startup, seed=seed)
        case "cmaes":
            return CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
        case "qmc":
            # All trials share one sequence; the study counts its points. Choices are drawn at random.
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


def _suggest(trial: Trial, path: str, dimension: Dimension) -> Any:
    drawn = distribution(dimension)
    if isinstance(drawn, CategoricalDistribution):
        return trial.suggest_categorical(path, drawn.choices)
    if isinstance(drawn, IntDistribution):
        return trial.suggest_int(path, drawn.low, drawn.high, log=drawn.log)
    assert isinstance(drawn, FloatDistribution)
    return trial.suggest_float(path, drawn.low, drawn.high, log=drawn.log)
