"""Means over seeds and how sure they are."""

import math

import numpy as np
import pytest
from scipy import stats

from encsearch.search.statistics import Spread, blocked, difference, estimate, largest_of, lower_bound, pooled

# Values by seed. Seed 2 is lucky for all; b is 0.01 better than a with every seed, but for 0.001.
A = {1: 0.50, 2: 0.60, 3: 0.52}
B = {1: 0.51, 2: 0.611, 3: 0.53}
C = {1: 0.40, 2: 0.49, 3: 0.43}


def test_the_interval_is_students() -> None:
    """Of 1, 2, 3: mean 2, standard error 0.57735, t of 2 degrees of freedom 4.30265."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.interval == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert not found.tells_apart
    assert estimate([1.0, 1.1, 1.2]).tells_apart
    assert estimate([-1.0, -1.1, -1.2]).tells_apart


def test_one_value_gives_no_interval_and_tells_nothing_apart() -> None:
    found = estimate([0.5])
    assert (found.mean, found.interval, found.tells_apart) == (0.5, None, False)


def test_groups_lend_each_other_their_variance() -> None:
    """(1 * 0.02 + 2 * 0.01) / 3; the single value has none of its own and gets an interval."""
    spread = pooled([[0.1, 0.3], [0.5, 0.6, 0.7], [0.9]])
    assert spread == Spread(pytest.approx((0.04 / 3) ** 0.5), 3)
    half = stats.t.ppf(0.975, 3) * spread.deviation
    assert estimate([0.9], spread).interval == pytest.approx((0.9 - half, 0.9 + half))


def test_single_values_have_no_spread() -> None:
    assert pooled([[0.1], [0.2]]) is None
    assert blocked([{1: 0.1}, {1: 0.2}]) is None
    assert difference({1: 0.2}, {1: 0.1}, [{1: 0.2}, {1: 0.1}]).interval is None


def test_the_lower_bound_is_one_sided_and_falls_with_fewer_values() -> None:
    spread = Spread(0.02, 4)
    assert lower_bound([0.7, 0.7], spread) == pytest.approx(0.7 - 2.13185 * 0.02 / 2**0.5, abs=1e-6)
    assert lower_bound([0.7], spread) < lower_bound([0.7, 0.7], spread)


def test_with_two_groups_the_difference_is_the_paired_t_test() -> None:
    expected = stats.ttest_rel(list(B.values()), list(A.values())).confidence_interval()
    found = difference(B, A, [A, B])
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.tells_apart


def test_what_a_seed_does_to_all_alike_does_not_count() -> None:
    lucky = [{seed: value + 0.3 * (seed == 2) for seed, value in group.items()} for group in (A, B, C)]
    found = difference(lucky[1], lucky[0], lucky)
    assert found.mean == pytest.approx(difference(B, A, [A, B, C]).mean)
    assert found.interval == pytest.approx(difference(B, A, [A, B, C]).interval)
    assert blocked(lucky).freedom == 4


def test_a_missing_seed_costs_a_pair_and_a_degree_of_freedom() -> None:
    short = {1: 0.51, 3: 0.53}
    assert blocked([A, short, C]).freedom == 3
    found = difference(short, A, [A, short, C])
    assert found.values == pytest.approx((0.01, 0.01))


def test_without_a_common_seed_the_means_are_compared() -> None:
    found = difference({1: 0.6, 2: 0.7}, {3: 0.1, 4: 0.2}, [{1: 0.6, 2: 0.7}, {3: 0.1, 4: 0.2}])
    expected = stats.ttest_ind([0.6, 0.7], [0.1, 0.2]).confidence_interval()
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.values == ()


def test_where_pairing_leaves_no_freedom_the_means_are_compared() -> None:
    found = difference({1: 0.6, 2: 0.7}, {1: 0.1}, [{1: 0.6, 2: 0.7}, {1: 0.1}])
    half = stats.t.ppf(0.975, 1) * pooled([[0.6, 0.7]]).deviation * 1.5**0.5
    assert found.interval == pytest.approx((0.5 - half, 0.5 + half))


def test_the_largest_of_some_normal_values() -> None:
    assert [largest_of(n) for n in (1, 2, 3)] == pytest.approx([0, math.pi**-0.5, 1.5 * math.pi**-0.5])


def test_of_many_intervals_all_hold_together() -> None:
    """Four equal configurations, seeds that matter: 95 % each is too little for three intervals at once."""
    rng = np.random.default_rng(0)
    missed = {1: 0, 3: 0}
    for _ in range(400):
        of_seed = rng.normal(0, 0.05, 3)
        groups = [dict(enumerate(of_seed + rng.normal(0, 0.01, 3))) for _ in range(4)]
        for comparisons in missed:
            told = [difference(groups[0], other, groups, comparisons).tells_apart for other in groups[1:]]
            missed[comparisons] += any(told)
    assert missed[1] > 30
    assert missed[3] <= 25
