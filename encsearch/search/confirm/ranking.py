"""Which confirmed configuration wins, and how sure that is: pure decisions on values by seed."""

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
    """What its trainings from scratch came to; `trial` is None for a baseline. At least one value."""

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

    `best` is the name of the one with the best lower bound, which is not the winner where a smaller one is
    within `standard_error` of it. `freedom` counts the degrees of freedom of the finalists' variance: with
    0, one seed each, there is no interval, bound or standard error, and the best value has won.
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
        """The finalists that cannot be told apart from the winner with 95 %."""
        return tuple(s.name for s in self.standings if s.lead and not s.lead.tells_apart)

    @property
    def optimism(self) -> float | None:
        """By how much the winner's mean is too high on average, at most: if all finalists were equally good.

        It is the largest of their means then.
        """
        return self.standard_error and self.standard_error * largest_of(len(self.standings))


def rank(
    finalists: Sequence[Configuration],
    baselines: Sequence[Configuration] = (),
    minimize: str | None = None,
) -> Ranking:
    """Name the winner of at least one finalist.

    The one with the best lower 95 % bound of its mean leads: fewer seeds or more noise make a bound worse. Of
    those whose bound is within one standard error of its, and which no finalist is told apart from as better,
    the one with the fewest parameters wins: the 1 SE rule (Breiman et al., Classification and Regression
    Trees, 1984, section 3.4.3). With a second objective the finalists are of the Pareto front, where smaller
    ones are worse by choice: the best bound wins, and people choose from the front.

    The winner is named by the finalists alone, whose variance is pooled; baselines are trained after it. The
    intervals of the leads hold together with 95 %, those over finalists and those over baselines. As it is by
    these values that one of them is the winner, every pair counts that could have been compared.
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
    """`order` is by falling bound; of as many parameters the better bound wins."""
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
