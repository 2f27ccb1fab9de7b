"""When a search must end, and what its confirmation may cost."""

import pytest

from encsearch.config import BudgetConfig, ConfirmConfig, ScalingConfig, SearchConfig
from encsearch.search.budget.rules import (
    CONFIRM_STARTUP_S,
    BudgetDecision,
    Cost,
    Needs,
    Pace,
    Spent,
    compute_needs,
    confirm_cost,
    decide,
    pace_of,
    reduce_plan,
    spent_by,
)
from encsearch.search.trials import Trial

HOUR = 3600.0
PLAN = ConfirmConfig(finalists=3, seeds=(1, 2), baselines=("none",))
NEEDS = Needs(PLAN, confirm=Cost(1200, 2400), first_report=Cost(60, 120))


def spent(trials: int = 4, wall_s: float = 0, device_s: float = 0, refused: int = 0) -> Spent:
    return Spent(trials, refused, Cost(wall_s, device_s))


def test_the_search_ends_early_enough_that_the_finalists_still_fit() -> None:
    budget = BudgetConfig(wall=2 * HOUR)

    assert decide(budget, spent(wall_s=2 * HOUR - 1200 - 61), NEEDS) == BudgetDecision(
        True, False, may_repeat=True
    )
    assert decide(budget, spent(wall_s=2 * HOUR - 1200), NEEDS) == BudgetDecision(
        may_start=False,
        must_end=True,
        reason="the wall budget of 2 h is spent: 1 h 40 min of search, 20 min kept for 3 finalists and "
        "1 baseline x 2 seeds",
    )


def test_no_trial_starts_that_could_not_report_but_those_that_run_go_on() -> None:
    decision = decide(BudgetConfig(wall=2 * HOUR), spent(wall_s=2 * HOUR - 1200 - 59), NEEDS)

    assert (decision.may_start, decision.must_end) == (False, False)
    assert decision.reason
    assert decision.reason.startswith("no new trial would report in time")


def test_gpu_hours_count_the_devices_of_all_workers() -> None:
    budget = BudgetConfig(gpu_hours=4)

    before, after = (decide(budget, spent(device_s=s), NEEDS) for s in (4 * HOUR - 2521, 4 * HOUR - 2400))

    assert before == BudgetDecision(True, False, may_repeat=True)
    assert after.must_end
    assert after.reason == (
        "the budget of 4 GPU-hours is spent: 3.333 GPU-hours of search, 0.6667 GPU-hours kept for "
        "3 finalists and 1 baseline x 2 seeds"
    )


def test_before_anything_is_measured_only_the_limit_itself_counts() -> None:
    budget = BudgetConfig(wall=HOUR)

    assert decide(budget, spent(wall_s=HOUR - 1), None).may_start
    assert decide(budget, spent(wall_s=HOUR), None).must_end


def test_the_number_of_trials_stops_new_ones_alone() -> None:
    decision = decide(BudgetConfig(trials=4), spent(trials=4), NEEDS)

    assert (decision.may_start, decision.must_end) == (False, False)
    assert decision.reason == "all 4 trials of the budget have started"


def test_a_space_that_the_limits_refuse_ends_the_search() -> None:
    decision = decide(BudgetConfig(trials=4), spent(trials=1, refused=4), NEEDS)

    assert not decision.may_start
    assert decision.reason
    assert "refused 4 proposals" in decision.reason


def test_refused_and_repeated_trials_are_not_counted_but_a_repeat_costs() -> None:
    trials = [
        trial(0, cost_seconds=10.0),
        trial(1, refused=True),
        trial(2, cost_seconds=7.0, rerun_of=0),
    ]

    assert spent_by(trials, 99.0) == Spent(trials=1, refused=1, cost=Cost(99.0, 17.0))


@pytest.mark.parametrize(
    ("room", "finalists", "baselines", "seeds"),
    [
        (8, 3, ("none",), (1, 2)),
        (7, 2, ("none",), (1, 2)),
        (4, 1, ("none",), (1, 2)),
        (3, 1, (), (1, 2)),
        (1, 1, (), (1,)),
        (0, 1, (), (1,)),
    ],
)
def test_a_confirmation_that_is_too_dear_loses_its_seeds_last(
    room: int, finalists: int, baselines: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    plan, line = reduce_plan(PLAN, each=Cost(100, 0), left=Cost(100.0 * room, float("inf")))

    assert (plan.finalists, plan.baselines, plan.seeds) == (finalists, baselines, seeds)
    assert (line is None) == (room == 8)


def test_what_was_cut_is_said_with_the_numbers() -> None:
    by_time = reduce_plan(PLAN, each=Cost(600, 600), left=Cost(2400, float("inf")))[1]
    by_devices = reduce_plan(PLAN, each=Cost(600, 1800), left=Cost(2400, 1800))[1]

    asked = "instead of 3 finalists and 1 baseline x 2 seeds"
    assert by_time == (
        f"confirming 1 finalist and 1 baseline x 2 seeds {asked}: it may take 40 min, "
        "and one training takes 10 min"
    )
    assert by_devices == (
        f"confirming 1 finalist x 1 seed {asked}: it may take 0.5 GPU-hours, and one training takes "
        "0.5 GPU-hours"
    )


def test_the_reserve_is_finalists_and_baselines_one_after_the_other() -> None:
    search = sweep_of(BudgetConfig(wall=10 * HOUR), ConfirmConfig(finalists=2, seeds=(1, 2), epochs=10))
    pace = Pace((20.0,), startup_s=5.0, doubt=0.1, confirm_doubt=0.0)

    needs = compute_needs(search, ScalingConfig(num_workers=2, gpus_per_worker=1), 30, pace, at_once=1)

    each_s = CONFIRM_STARTUP_S + 10 * 20.0
    assert needs.confirm == Cost(4 * each_s, 2 * 4 * each_s)
    assert needs.first_report == Cost(25, 50)
    assert needs.reduced is None


def test_finalists_run_side_by_side_where_there_is_room() -> None:
    search = sweep_of(
        BudgetConfig(wall=10 * HOUR), ConfirmConfig(finalists=2, seeds=(1, 2, 3), epochs=10, num_workers=2)
    )
    pace = Pace((20.0,), startup_s=5.0, doubt=0.1, confirm_doubt=0.0)

    alone, beside = (compute_needs(search, ScalingConfig(), 30, pace, at_once=n).confirm for n in (2, 8))

    assert beside.wall_s == pytest.approx(alone.wall_s / 3), "two turns of four instead of six"
    assert beside.device_s == alone.device_s


def test_the_reserve_has_a_margin_of_one_standard_deviation() -> None:
    """Finalists may take longer than their trials let expect, and are not cut then."""
    search = sweep_of(BudgetConfig(wall=10 * HOUR), ConfirmConfig(seeds=(1, 2), epochs=10))
    sure, unsure = (Pace((20.0,), startup_s=5.0, doubt=0.1, confirm_doubt=doubt) for doubt in (0.0, 0.35))

    kept = [compute_needs(search, ScalingConfig(), 30, pace, 1).confirm.wall_s for pace in (sure, unsure)]

    assert kept[1] / kept[0] == pytest.approx(1.42, abs=0.01)


def test_it_claims_half_of_the_budget_at_most() -> None:
    search = sweep_of(BudgetConfig(wall=1000), ConfirmConfig(finalists=3, seeds=(1, 2), epochs=10))

    needs = compute_needs(
        search, ScalingConfig(), 30, Pace((8.0,), startup_s=0, doubt=0.1, confirm_doubt=0.0), at_once=1
    )

    assert needs.plan.num_trainings == 4
    assert needs.confirm.wall_s <= 500
    assert needs.reduced
    assert "instead of 3 finalists x 2 seeds" in needs.reduced


def test_more_workers_are_not_trusted_to_be_as_many_times_as_fast() -> None:
    confirm = ConfirmConfig(num_workers=4, epochs=1)

    wall = {
        n: confirm_cost(confirm, ScalingConfig(num_workers=n), 1, 80.0).wall_s - CONFIRM_STARTUP_S
        for n in (1, 4, 8)
    }

    assert wall == {1: 25.0, 4: 80.0, 8: 160.0}


def test_the_pace_is_that_of_every_trial_that_has_reported() -> None:
    trials = [
        trial(0, seconds=30.0, curve=((1, 0.1), (2, 0.2), (3, 0.3))),
        trial(1, seconds=20.0, curve=((1, 0.1),), state="RUNNING"),
        trial(2),
    ]

    pace = pace_of(trials, startup_s=2.0)

    assert pace_of(trials[2:], startup_s=2.0) is None
    assert pace
    assert (pace.epoch_s, pace.startup_s, pace.quantile(0.5)) == ((10.0, 20.0), 2.0, 15.0)
    assert pace.doubt > 0.3


def sweep_of(budget: BudgetConfig, confirm: ConfirmConfig) -> SearchConfig:
    return SearchConfig.model_validate(
        {"space": {"optim.lr": {"uniform": [0.1, 0.2]}}, "budget": budget, "confirm": confirm}
    )


def trial(number: int, **fields: object) -> Trial:
    known = {"values": {}, "state": "COMPLETE", "value": None, "curve": (), "seconds": 0.0}
    return Trial(number=number, **{**known, **fields})  # type: ignore[arg-type]
