"""The winner among the confirmed configurations, and its confidence: pure decisions on values by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from encsearch.search.statistics import (
    Estimate,
    Spread,
    difference,
    estimate,
    largest_of,
    lower_bound,
    pooled,
)


@dataclass(frozen=True)
class Configuration:
    """A configuration's values by seed, at least one, from scratch; `trial` is None for a baseline."""

    name: str
    trial: int | None
    values: Mapping[int, float]
    parameters: int


@dataclass(frozen=True)
class Standing:
    """A configuration among the others.

    `mean` has the interval of the pooled variance, `lower_bound` is its one-sided counterpart. `lead` is the
    winner minus this one, paired by seed; None for the winner.
    """

    configuration: Configuration
    mean: Estimate
    lower_bound: float | None
    lead: Estimate | None

    @property
    def name(self) -> str:
        return self.configuration.name


@dataclass(frozen=True)
class Ranking:
    """The finalists, the winner first and the others by falling lower bound, and the baselines.

    `best` is the name of the finalist with the best lower bound; the winner is another one if a smaller
    finalist is within `standard_error` of it. `freedom` counts the degrees of freedom of the finalists'
    variance: with 0, one seed each, there is no interval, bound or standard error, and the best value wins.
    """

    standings: tuple[Standing, ...]
    baselines: tuple[Standing, ...]
    best: str
    standard_error: float | None
    freedom: int
    minimize: str | None

    @property
    def winner(self) -> Standing:
        return self.standings[0]

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The finalists that cannot be told apart from the winner with 95 % confidence."""
        return tuple(s.name for s in self.standings if s.lead and not s.lead.tells_apart)

    @property
    def optimism(self) -> float | None:
        """By how much the winner's mean is too high on average, at most: if all finalists are equally good.

        The winner's mean is then the largest of their means.
        """
        return self.standard_error and self.standard_error * largest_of(len(self.standings))


def rank(
    finalists: Sequence[Configuration],
    baselines: Sequence[Configuration] = (),
    minimize: str | None = None,
) -> Ranking:
    """Name the winner of at least one finalist.

    The finalist with the best lower 95 % bound of its mean leads: fewer seeds or more noise make a bound
    worse. Among the finalists whose bound is within one standard error of the leader's, and that no other
    finalist is significantly better than, the one with the fewest parameters wins: the 1 SE rule (Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3). With a second objective the finalists come
    from the Pareto front, where smaller ones have a worse metric by design: the best bound wins, and people
    choose from the front.

    The finalists alone decide the winner, with a pooled variance; baselines are trained after that. The
    intervals of the leads hold together with 95 %, over finalists and over baselines separately. Because the
    same values decide the winner, every pair that could have been compared counts.
    """
    spread = pooled([tuple(finalist.values.values()) for finalist in finalists])
    order = sorted(finalists, key=lambda finalist: -_merit(finalist, spread))
    best = order[0]
    winner = best if spread is None or minimize else _smallest_as_good(order, spread)
    others = [finalist for finalist in order if finalist is not winner]
    everyone = [*finalists, *baselines]
    num_pairs = math.comb(len(finalists), 2)
    num_against = len(finalists) * len(baselines)
    common = pooled([tuple(configuration.values.values()) for configuration in everyone])
    return Ranking(
        standings=(
            _standing(winner, spread, None),
            *(_standing(o, spread, _lead(winner, o, finalists, num_pairs)) for o in others),
        ),
        baselines=tuple(_standing(b, common, _lead(winner, b, everyone, num_against)) for b in baselines),
        best=best.name,
        standard_error=spread.error(len(best.values)) if spread else None,
        freedom=spread.freedom if spread else 0,
        minimize=minimize,
    )


def _merit(configuration: Configuration, spread: Spread | None) -> float:
    values = tuple(configuration.values.values())
    return lower_bound(values, spread) if spread else estimate(values).mean


def _smallest_as_good(order: Sequence[Configuration], spread: Spread) -> Configuration:
    """Find the smallest finalist as good as the best. `order` is by falling bound, which also breaks ties."""
    best = order[0]
    floor = _merit(best, spread) - spread.error(len(best.values))

    def is_as_good(one: Configuration) -> bool:
        leads = (_lead(other, one, order, math.comb(len(order), 2)) for other in order if other is not one)
        return _merit(one, spread) >= floor and not any(x.tells_apart and x.mean > 0 for x in leads)

    return min((one for one in order if one is best or is_as_good(one)), key=lambda one: one.parameters)


def _lead(
    ours: Configuration, theirs: Configuration, among: Sequence[Configuration], comparisons: int
) -> Estimate:
    return difference(ours.values, theirs.values, [one.values for one in among], comparisons)


def _standing(configuration: Configuration, spread: Spread | None, lead: Estimate | None) -> Standing:
    values = tuple(configuration.values.values())
    bound = lower_bound(values, spread) if spread else None
    return Standing(configuration, estimate(values, spread), bound, lead)
