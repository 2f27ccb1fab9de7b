"""Means over seeds and their confidence intervals: Student's t, for trainings that differ only by the seed.

A configuration has two or three seeds, too few to estimate its variance. The configurations of one recipe are
therefore assumed to have the same variance, which is estimated from all of them together: `pooled` over
configurations, `blocked` over configurations and seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

import numpy as np
from scipy.integrate import quad
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval by Student's t, which is None where the variance is unknown.

    `values` has one value for each seed; it is empty for a difference of means that share no seed.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def tells_apart(self) -> bool:
        """Whether the interval of this difference excludes 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Spread:
    """A standard deviation and its degrees of freedom, at least 1."""

    deviation: float
    freedom: int

    def error(self, count: int) -> float:
        """Standard error of the mean of `count` values."""
        return self.deviation / math.sqrt(count)


def estimate(values: Sequence[float], spread: Spread | None = None) -> Estimate:
    """Mean and interval of at least one value; without `spread` the variance comes from the values."""
    spread = spread or pooled([values])
    mean = fmean(values)
    if spread is None:
        return Estimate(tuple(values), mean, None)
    return _estimate(values, mean, _half_width(spread.error(len(values)), spread.freedom))


def lower_bound(values: Sequence[float], spread: Spread) -> float:
    """One-sided 95 % lower confidence bound of the mean."""
    return fmean(values) - float(student_t.ppf(CONFIDENCE, spread.freedom)) * spread.error(len(values))


def pooled(groups: Sequence[Sequence[float]]) -> Spread | None:
    """Standard deviation within groups of equal variance; None if no group has two values.

    sum((n - 1) s ** 2) / sum(n - 1), the residual mean square of a one-way analysis of variance
    (Montgomery, Design and Analysis of Experiments, chapter 3).
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1)
    return Spread(math.sqrt(squares / freedom), freedom)


def blocked(groups: Sequence[Mapping[int, float]]) -> Spread | None:
    """Residual standard deviation when every group and every seed has an effect of its own.

    `groups` are values by seed; some may be missing. The residual mean square of a randomized block design
    (Montgomery, chapter 4), by least squares; None without a degree of freedom.
    """
    seeds = sorted({seed for group in groups for seed in group})
    cells = [(row, seed) for row, group in enumerate(groups) for seed in group]
    design = np.zeros((len(cells), len(groups) + len(seeds)))
    for cell, (row, seed) in enumerate(cells):
        design[cell, [row, len(groups) + seeds.index(seed)]] = 1
    values = np.array([groups[row][seed] for row, seed in cells])
    effects, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)
    if not freedom:
        return None
    return Spread(float(np.linalg.norm(values - design @ effects)) / math.sqrt(freedom), freedom)


def difference(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    among: Sequence[Mapping[int, float]],
    comparisons: int = 1,
) -> Estimate:
    """`ours` minus `theirs`, two of the groups `among` whose variance is assumed equal; values by seed.

    Values are paired by common seed, which removes an effect that a seed has on all groups alike: with two
    groups it is the paired t-test, with more groups the variance is better known. Without a common seed, or
    where pairing leaves no degree of freedom, it is the difference of the means. All `comparisons` intervals
    hold together with 95 % (Bonferroni; Dunn, JASA 1961).
    """
    gains = [ours[seed] - theirs[seed] for seed in sorted(ours) if seed in theirs]
    gain = fmean(gains) if gains else fmean(ours.values()) - fmean(theirs.values())
    if gains and (spread := blocked(among)):
        # Each gain has the noise of two trainings.
        error = math.sqrt(2) * spread.error(len(gains))
    elif spread := pooled([tuple(group.values()) for group in among]):
        error = math.hypot(spread.error(len(ours)), spread.error(len(theirs)))
    else:
        return Estimate(tuple(gains), gain, None)
    return _estimate(gains, gain, _half_width(error, spread.freedom, comparisons))


def largest_of(count: int) -> float:
    """Mean of the largest of `count` standard normal values (David and Nagaraja, Order Statistics, 3.1)."""
    normal = NormalDist()
    mean, _ = quad(lambda x: x * count * normal.pdf(x) * normal.cdf(x) ** (count - 1), -math.inf, math.inf)
    return float(mean)


def _half_width(error: float, freedom: int, comparisons: int = 1) -> float:
    return float(student_t.isf((1 - CONFIDENCE) / 2 / comparisons, freedom)) * error


def _estimate(values: Sequence[float], mean: float, half: float) -> Estimate:
    return Estimate(tuple(values), mean, (mean - half, mean + half))
