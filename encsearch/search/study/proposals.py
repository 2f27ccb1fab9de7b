"""What a sweep tries next: values by a sampler or around a prior, and never a configuration twice.

Pure: a proposal follows from the trials so far, the seed and the new trial's number. So it is the same after
a kill and a resume as without.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from encsearch.config import Config, Dimension, SearchConfig, find_active, flatten
from encsearch.search.study.samplers import (
    as_seen,
    draw,
    for_each,
    grid_points,
    learnt_from,
    ordered_values,
    sampler_for,
)
from encsearch.search.study.storage import study_of

Values = Mapping[str, Any]
Origin = Literal["prior", "sampler", "uniform", "remaining"]

# A space of at most so many configurations is listed: it may be exhausted, and what remains is known.
MAX_LISTED = 4096
# A proposal that has run is asked anew so often; then one of the remaining configurations is drawn.
ATTEMPTS = 20
# Samplers that may settle on a poor part of the space, and so leave a share to uniform draws.
LEARNING = ("tpe", "gp", "cmaes")
# How strongly the first results count as ties, until there are more of them (see `share_of_prior`).
DOUBT = 8.0
# Standard deviation of a prior as a share of the range, and the share of a word that it believes in.
WIDTH, CENTER_WEIGHT = 0.25, 0.5


@dataclass(frozen=True)
class Draft:
    """Values to try next and where they come from.

    `trial_attributes` and `study_attributes` are what the sampler stores for its next call.
    """

    values: Values
    origin: Origin
    trial_attributes: Mapping[str, Any] = field(default_factory=dict)
    study_attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prior:
    """Where good values are believed to lie: around one of `centers`, each with `widths` by path.

    A width is a standard deviation as a share of the path's range, on its scale. A path that a center lacks
    is drawn uniformly.
    """

    centers: tuple[Values, ...]
    widths: Mapping[str, float] = field(default_factory=dict)


NO_PRIOR = Prior(({},))


def recipe_prior(config: Config, search: SearchConfig) -> Prior:
    """The recipe's own values, or those of `search.prior`, as far as the space spans them."""
    beliefs = search.prior.paths
    center = flatten(config) | {path: belief.at for path, belief in beliefs.items() if belief.at is not None}
    spanned = {path: center[path] for path in search.space if search.space[path].spans(center.get(path))}
    return Prior((spanned,), {path: belief.width for path, belief in beliefs.items()})


def propose(
    search: SearchConfig,
    number: int,
    trials: Sequence[FrozenTrial],
    study_attributes: Mapping[str, Any],
    prior: Prior,
    share: float,
    taken: Collection[Values],
) -> Draft | None:
    """Propose values for the trial `number`, not those in `taken` unless they may be repeated.

    None if the space is exhausted.

    `trials` are those that the sampler learns from; `share` of the proposals come from `prior`.
    """
    if is_exhausted(search, taken):
        return None
    if search.sampler == "grid":
        counts = Counter(map(_key, taken))
        return Draft(min(grid_points(search), key=lambda point: counts[_key(point)]), "sampler")
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((search.seed, number, attempt))
        if prior.centers and rng.random() < share:
            draft = Draft(_draw_from_prior(search.space, prior, rng), "prior")
        elif search.sampler in LEARNING and rng.random() < search.uniform:
            draft = Draft(_draw_from_prior(search.space, NO_PRIOR, rng), "uniform")
        else:
            draft = _ask_sampler(search, number, attempt, trials, study_attributes)
        # Compared one by one, which takes a hundredth of the time of a set that is made anew for each ask.
        if search.repeats != "none" or draft.values not in taken:
            return draft
        # A sampler that counts its points must not give the same one again.
        study_attributes = {**study_attributes, **draft.study_attributes}
    if not _is_listable(search.space):
        return draft
    known = {_key(values) for values in taken}
    remaining = [point for point in list_points(search.space) if _key(point) not in known]
    return Draft(remaining[rng.integers(len(remaining))], "remaining")


def share_of_prior(share: float, prior: Sequence[float], sampler: Sequence[float]) -> float:
    """The share of the proposals that the prior gets, from how its trials score beside the sampler's.

    It falls with the probability that a trial of the prior beats one of the sampler (the statistic of Mann
    and Whitney), as the prior's weight does in PriorBand (Mallik et al., NeurIPS 2023); DOUBT is the number
    of trials that it takes to be believed.
    """
    count = min(len(prior), len(sampler))
    if not count:
        return share
    # A pair is won where the sampler's value is lower, half won by a tie, and never by NaN.
    ascending = sorted(b for b in sampler if not math.isnan(b))
    numbers = [a for a in prior if not math.isnan(a)]
    won = sum(0.5 * (bisect_left(ascending, a) + bisect_right(ascending, a)) for a in numbers)
    wins = won / (len(prior) * len(sampler))
    believed = (count * wins + DOUBT * 0.5) / (count + DOUBT)
    return share * min(1.0, (2 * believed) ** 2)


def list_points(space: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    """Every configuration of a space without real ranges; paths whose condition fails are absent."""
    seen = set()
    for values in product(*(_list_values(dimension) for dimension in space.values())):
        point = dict(zip(space, values, strict=True))
        active = {path: point[path] for path in find_active(space, point)}
        if _key(active) not in seen:
            seen.add(_key(active))
            yield active


def count_points(space: Mapping[str, Dimension]) -> float:
    """Number of configurations; infinite for a space that is too large to be listed."""
    return sum(1 for _ in list_points(space)) if _is_listable(space) else math.inf


def is_exhausted(search: SearchConfig, taken: Collection[Values]) -> bool:
    """Whether no configuration is left; never known of a space that is too large to be listed."""
    if not can_be_exhausted(search):
        return False
    known = {_key(values) for values in taken}
    points = grid_points(search) if search.sampler == "grid" else list_points(search.space)
    return all(_key(point) in known for point in points)


def can_be_exhausted(search: SearchConfig) -> bool:
    return search.repeats != "seeds" and (search.sampler == "grid" or _is_listable(search.space))


def _ask_sampler(
    search: SearchConfig,
    number: int,
    attempt: int,
    trials: Sequence[FrozenTrial],
    study_attributes: Mapping[str, Any],
) -> Draft:
    """Ask in a copy of the study in which the trials are `as_seen`."""
    directions = [StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * bool(search.minimize)
    study = study_of(as_seen(learnt_from(search, trials), search.space), directions)
    study.sampler = sampler_for(search, number, attempt)
    storage = study._storage
    # Some samplers keep counters there.
    for name, value in study_attributes.items():
        storage.set_study_system_attr(study._study_id, name, value)
    trial = study.ask()
    values = draw(trial, search.space)
    return Draft(
        values,
        "sampler",
        storage.get_trial(trial._trial_id).system_attrs,
        storage.get_study_system_attrs(study._study_id),
    )


def _draw_from_prior(space: Mapping[str, Dimension], prior: Prior, rng: np.random.Generator) -> Values:
    center = prior.centers[rng.integers(len(prior.centers))]

    def one(path: str) -> Any:
        return _draw_near(space[path], center.get(path), prior.widths.get(path, WIDTH), rng)

    return for_each(space, one)


def _draw_near(dimension: Dimension, at: Any, width: float, rng: np.random.Generator) -> Any:
    """Draw from a Gaussian around `at`, cut off at the ends of the path; uniformly if `at` is None."""
    if not dimension.is_ordered:
        is_center = at is not None and rng.random() < CENTER_WEIGHT
        return at if is_center else dimension.values[rng.integers(len(dimension.values))]
    if dimension.kind == "choice":
        values = ordered_values(dimension)
        place = None if at is None else float(np.interp(at, values, range(len(values))))
        return values[_draw_whole(0, len(values) - 1, place, width, rng)]
    low, high = dimension.values
    if dimension.kind == "integer":
        return _draw_whole(low, high, at, width, rng)
    if dimension.kind == "uniform":
        return _draw_real(low, high, at, width, rng)
    place = None if at is None else math.log(at)
    if dimension.kind == "loginteger":
        drawn = math.exp(_draw_real(math.log(low - 0.5), math.log(high + 0.5), place, width, rng))
        return min(max(round(drawn), low), high)
    return min(max(math.exp(_draw_real(math.log(low), math.log(high), place, width, rng)), low), high)


def _draw_whole(low: int, high: int, at: float | None, width: float, rng: np.random.Generator) -> int:
    """Every number stands for the range that is rounded to it."""
    return min(max(round(_draw_real(low - 0.5, high + 0.5, at, width, rng)), low), high)


def _draw_real(low: float, high: float, at: float | None, width: float, rng: np.random.Generator) -> float:
    if at is None:
        return float(rng.uniform(low, high))
    while True:
        drawn = rng.normal(at, width * (high - low))
        if low <= drawn <= high:
            return float(drawn)


def _is_listable(space: Mapping[str, Dimension]) -> bool:
    sizes = [_size(dimension) for dimension in space.values()]
    return math.prod(sizes) <= MAX_LISTED


def _size(dimension: Dimension) -> float:
    if dimension.kind == "choice":
        return len(dimension.values)
    low, high = dimension.values
    return high - low + 1 if dimension.kind.endswith("integer") else math.inf


def _list_values(dimension: Dimension) -> Sequence[Any]:
    if dimension.kind == "choice":
        return dimension.values
    low, high = dimension.values
    return range(low, high + 1)


def _key(values: Values) -> frozenset[tuple[str, Any]]:
    return frozenset(values.items())
