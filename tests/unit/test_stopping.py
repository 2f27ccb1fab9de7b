"""Which trials are stopped: decisions on curves alone."""

import random
from collections.abc import Mapping

import pytest

from encsearch.config import SearchConfig
from encsearch.search.stopping import (
    Curve,
    Rungs,
    all_rungs,
    bracket_of,
    checked_epochs,
    find_promotable,
    judge,
)

SPACE = {"optim.lr": {"loguniform": [1e-3, 1e-1]}}


def search(**values: object) -> SearchConfig:
    rungs = {"grace_epochs": 1, "reduction_factor": 3}
    return SearchConfig.model_validate({"space": SPACE, "scheduler": "asha_stop", "asha": rungs, **values})


def should_stop(search: SearchConfig, epochs: int, number: int, curves: Mapping[int, Curve]) -> bool:
    return judge(search, epochs, number, curves) == "stop"


def test_rungs_are_powers_that_leave_a_factor_to_the_full_length() -> None:
    assert all_rungs(search(), 27) == (1, 3, 9)
    assert all_rungs(search(asha={"grace_epochs": 2, "reduction_factor": 2}), 10) == (2, 4)
    assert all_rungs(search(asha={"grace_epochs": 5}), 3) == ()
    assert all_rungs(search(asha={"grace_epochs": 2}), 5) == (2,), "the first is always there"
    assert [all_rungs(search(asha={}), epochs) for epochs in (27, 8, 3)] == [(3,), (1,), (1,)]


def test_asha_keeps_the_best_third_of_those_at_a_rung() -> None:
    curves = {number: {1: value} for number, value in enumerate((0.5, 0.1, 0.9, 0.4, 0.8, 0.3))}

    stopped = [number for number in curves if should_stop(search(), 27, number, curves)]

    assert stopped == [0, 1, 3, 5], "two of six go on"


def test_the_first_at_a_rung_goes_on_and_a_tie_does_too() -> None:
    assert not should_stop(search(), 27, 0, {0: {1: 0.2}})
    assert not should_stop(search(), 27, 1, {0: {1: 0.2}, 1: {1: 0.2}})
    assert should_stop(search(), 27, 1, {0: {1: 0.2}, 1: {1: 0.1}})


def test_nothing_is_stopped_between_rungs_or_after_the_last_epoch() -> None:
    ahead = {1: 0.9, 2: 0.9, 3: 0.9}
    assert not should_stop(search(), 27, 1, {0: ahead, 1: {1: 0.9, 2: 0.0}})
    assert not should_stop(search(), 3, 1, {0: ahead, 1: {1: 0.9, 2: 0.9, 3: 0.0}})
    assert not should_stop(search(scheduler="none"), 27, 1, {0: {1: 0.9}, 1: {1: 0.0}})


def test_hyperband_deals_its_brackets_out_by_their_shares() -> None:
    hyperband = search(scheduler="hyperband")
    brackets = [bracket_of(hyperband, 27, number) for number in range(26)]

    assert brackets[:13] == [0] * 7 + [1] * 3 + [2] * 2 + [3]
    assert brackets[13:] == brackets[:13]
    assert [checked_epochs(hyperband, 27, number) for number in (0, 7, 10, 12)] == [
        (1, 3, 9),
        (3, 9),
        (9,),
        (),
    ]


def test_hyperband_compares_within_a_bracket() -> None:
    """A late bracket is spared the first rung, and an early one is not measured by it."""
    hyperband = search(scheduler="hyperband")
    late = {1: 0.1, 2: 0.1, 3: 0.1}

    assert not should_stop(hyperband, 27, 7, {0: {1: 0.9}, 7: {1: 0.0}})
    assert not should_stop(hyperband, 27, 7, {0: {1: 0.9, 2: 0.9, 3: 0.9}, 7: late})
    assert should_stop(hyperband, 27, 8, {7: {**late, 3: 0.2}, 8: late})


@pytest.mark.parametrize(("value", "stops"), [(0.19, True), (0.21, False)])
def test_the_median_rule_compares_the_best_so_far_with_the_others_means(value: float, stops: bool) -> None:
    median = search(scheduler="median", median={"grace_epochs": 2, "min_trials": 3})
    others = {n: {1: 0.1 * n, 2: 0.1 * n, 3: 1.0} for n in (1, 2, 3)}

    assert should_stop(median, 27, 0, {**others, 0: {1: value, 2: 0.0}}) is stops
    assert not should_stop(median, 27, 0, {**others, 0: {1: value}}), "the grace epochs"
    assert not should_stop(median, 27, 0, {0: {1: value, 2: 0.0}, 1: others[1], 2: others[2]}), "too few"


def at_rung(*values: float) -> dict[int, Curve]:
    return {number: {1: value} for number, value in enumerate(values)}


def judge_paused(search: SearchConfig, number: int, curves: Mapping[int, Curve], paused: set[int]) -> str:
    return judge(search, 27, number, curves, Rungs(search, 27, curves, paused))


def test_a_trial_pauses_at_its_rung_until_it_is_in_the_best_third_there() -> None:
    pausing = search(scheduler="asha")
    assert judge_paused(pausing, 1, at_rung(0.5, 0.9), {0}) == "pause", "one of two is no third"
    assert judge_paused(pausing, 2, at_rung(0.5, 0.9, 0.1), {0, 1}) == "pause", "another goes on"
    assert judge_paused(pausing, 2, at_rung(0.5, 0.6, 0.9), {0, 1}) == "continue"
    assert find_promotable(pausing, 27, at_rung(0.5, 0.9, 0.1), {0, 1, 2}) == 1
    assert find_promotable(pausing, 27, {**at_rung(0.5, 0.9, 0.1), 1: {1: 0.9, 2: 0.9}}, {0, 2}) is None, (
        "who went on still has the place"
    )


def test_the_highest_rung_comes_first_then_the_best_and_of_equals_the_earlier() -> None:
    pausing = search(scheduler="asha")
    far = {number: {1: 0.9, 3: 0.2 + number / 10} for number in (10, 11, 12)}
    assert find_promotable(pausing, 27, {**at_rung(0.95, 0.1), **far}, {0, 1, 10, 11, 12}) == 12
    assert find_promotable(pausing, 27, at_rung(*[0.5] * 6), set(range(6))) == 0


def test_at_the_end_of_a_search_the_best_goes_on_however_few_there_are() -> None:
    pausing = search(scheduler="asha")
    assert find_promotable(pausing, 27, at_rung(0.5, 0.9), {0, 1}) is None
    assert find_promotable(pausing, 27, at_rung(0.5, 0.9), {0, 1}, keep_one=True) == 1
    ended = {**at_rung(0.5), 1: {1: 0.9, 3: 0.9, 9: 0.9, 27: 0.9}}
    assert find_promotable(pausing, 27, ended, {0}, keep_one=True) is None, "the best has gone on before"


def test_rungs_that_are_kept_in_step_say_what_the_curves_say() -> None:
    pausing, rng = search(scheduler="asha"), random.Random(0)
    kept, curves, paused = Rungs(pausing, 27), dict[int, dict[int, float]](), set[int]()
    for _ in range(600):
        if paused and rng.random() < 0.3:
            number = rng.choice(sorted(paused))
            paused.remove(number)
            kept.go_on(number, curves[number])
        else:
            number = rng.choice([len(curves), *(n for n in curves if n not in paused and len(curves[n]) < 9)])
            curve = curves.setdefault(number, {})
            curve[len(curve) + 1] = rng.choice([0.1, 0.2, 0.5, rng.random()])
            kept.report(number, len(curve), curve[len(curve)])
            if len(curve) in (1, 3, 9) and rng.random() < 0.7:
                paused.add(number)
                kept.pause(number, curve)
        for keep_one in (False, True):
            assert kept.find_promotable(keep_one=keep_one) == by_definition(curves, paused, keep_one)
            assert find_promotable(pausing, 27, curves, paused, keep_one=keep_one) == by_definition(
                curves, paused, keep_one
            )


def by_definition(curves: Mapping[int, Curve], paused: set[int], keep_one: bool) -> int | None:
    """Li et al., MLSys 2020, algorithm 2, written out for the rungs 9, 3 and 1."""
    for rung in (9, 3, 1):
        waiting = {number for number in paused if max(curves[number]) == rung}
        reached = sorted((-curve[rung], number) for number, curve in curves.items() if rung in curve)
        for _, number in reached[: max(int(keep_one and bool(waiting)), len(reached) // 3)]:
            if number in waiting:
                return number
    return None
