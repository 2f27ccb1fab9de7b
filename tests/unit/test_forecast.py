"""The simulation of the rest of a sweep, and how its forecasts are judged afterwards."""

import math
import random
import warnings
from typing import Any, get_args

import pytest

from encsearch.config import BudgetConfig, ScalingConfig, Scheduler, SearchConfig
from encsearch.search.budget.forecast import Forecast, ForecastPoint, backtest, forecast
from encsearch.search.budget.rehearsal import rehearse
from encsearch.search.budget.rules import CONFIRM_STARTUP_S, Pace
from encsearch.search.trials import Trial

SURE = Pace((10.0,), startup_s=5.0, doubt=0.0, confirm_doubt=0.0)
ONE = ScalingConfig()
# Of one training after the search, at that pace and four epochs.
CONFIRM_S = CONFIRM_STARTUP_S + 4 * 10


def search_of(**fields: Any) -> SearchConfig:
    space = {"optim.lr": {"loguniform": [0.001, 0.1]}}
    known = {"space": space, "scheduler": "none", "confirm": {"finalists": 1, "seeds": [1]}}
    return SearchConfig.model_validate({**known, **fields})


def whole(search: SearchConfig, pace: Pace = SURE, epochs: int = 4, at_once: int = 2) -> Forecast:
    return forecast(search, ONE, epochs, (), pace, elapsed_s=0, at_once=at_once)


def trial(number: int, curve: list[float], **fields: Any) -> Trial:
    known: dict[str, Any] = {
        "values": {},
        "state": "COMPLETE",
        "value": max(curve, default=None),
        "seconds": 0.0,
    }
    points = tuple(enumerate(curve, start=1))
    return Trial(number=number, curve=points, **{**known, **fields})


def test_without_stopping_and_spread_it_is_the_sum() -> None:
    found = whole(search_of(budget={"trials": 6}))

    assert found.wall_s.low == found.wall_s.high == pytest.approx(3 * (5 + 4 * 10) + CONFIRM_S)
    assert found.device_s.median == pytest.approx(6 * (5 + 4 * 10) + CONFIRM_S)
    assert (found.trials.median, found.epochs.median) == (6, 24)


def test_the_same_arguments_give_the_same_forecast() -> None:
    search = search_of(budget={"trials": 30}, scheduler="asha")
    pace = Pace((8.0, 12.0), 5.0, 0.2, confirm_doubt=0.0)

    assert whole(search, pace, epochs=27) == whole(search, pace, epochs=27)


def test_early_stopping_saves_epochs_and_asha_the_most() -> None:
    told = {
        name: whole(search_of(budget={"trials": 40}, scheduler=name), epochs=27).epochs
        for name in get_args(Scheduler)
    }

    assert told["none"].low == 40 * 27
    assert told["median"].high < 0.8 * told["none"].low
    assert told["hyperband"].high < 0.8 * told["none"].low
    assert told["asha"].high < told["hyperband"].low


def test_the_interval_holds_the_pace_that_was_doubted() -> None:
    wall = whole(search_of(budget={"trials": 10}), Pace((10.0,), 5.0, 0.2, confirm_doubt=0.0)).wall_s

    # 80 % of a normal distribution lie within 1.28 standard deviations.
    assert wall.high / wall.median == pytest.approx(math.exp(1.28 * 0.2), rel=0.08)
    assert wall.low / wall.median == pytest.approx(math.exp(-1.28 * 0.2), rel=0.08)


def test_trials_that_run_have_their_rest_to_do_and_ended_ones_nothing() -> None:
    search = search_of(budget={"trials": 3})
    trials = [trial(0, [0.1] * 4), trial(1, [0.1] * 3, state="RUNNING"), trial(2, [0.1], state="RUNNING")]

    found = forecast(search, ONE, 4, trials, SURE, elapsed_s=100, at_once=2)

    assert (found.trials.high, found.epochs.high) == (0, 4)
    assert found.wall_s.median == pytest.approx(2.5 * 10 + CONFIRM_S)


def test_after_the_search_only_the_confirmation_is_left() -> None:
    search = search_of(budget={"trials": 1}, confirm={"finalists": 1, "seeds": [1, 2, 3]})

    left = [
        forecast(search, ONE, 4, [trial(0, [0.1] * 4)], SURE, elapsed_s=0, at_once=2, num_confirmed=n).wall_s
        for n in range(4)
    ]

    assert [interval.median for interval in left] == pytest.approx([2 * CONFIRM_S, CONFIRM_S, CONFIRM_S, 0])


def test_what_a_confirmation_takes_is_doubted_beside() -> None:
    sure, unsure = (
        whole(search_of(budget={"trials": 2}), Pace((10.0,), 5.0, 0.0, confirm_doubt=doubt)).wall_s
        for doubt in (0, 1)
    )

    assert sure.low == sure.high
    assert unsure.high - 45 > 2 * CONFIRM_S
    assert unsure.low - 45 < CONFIRM_S / 2


def test_a_wall_budget_cuts_the_search_but_not_its_finalists() -> None:
    found = whole(search_of(budget={"trials": 100, "wall": 400}))

    assert found.wall_s.high == pytest.approx(400)
    assert found.trials.high == 2 * math.ceil((400 - CONFIRM_S) / 45)
    assert found.epochs.high < 4 * found.trials.high


@pytest.mark.parametrize("budget", [{"trials": 5000}, {"trials": 10**9, "wall": 20_000 * 45 + CONFIRM_S}])
def test_a_number_of_trials_that_nobody_could_play_is_forecast_too(budget: dict[str, Any]) -> None:
    found = whole(search_of(budget=budget), at_once=20)

    num_trials = 5000 if "wall" not in budget else 20 * 20_000
    assert found.trials.median == pytest.approx(num_trials, rel=0.01)
    assert found.epochs.median == pytest.approx(4 * num_trials, rel=0.01)
    assert found.wall_s.median == pytest.approx(num_trials / 20 * 45 + CONFIRM_S, rel=0.01)


def test_gpu_hours_cut_the_search_too() -> None:
    search = search_of(budget={"trials": 100, "gpu_hours": 1})
    scaling = ScalingConfig(num_workers=2, gpus_per_worker=1)

    found = forecast(search, scaling, 4, (), SURE, elapsed_s=0, at_once=2)

    assert found.device_s.high == pytest.approx(3600, rel=1e-3)
    assert found.wall_s.high == pytest.approx((3600 - 2 * CONFIRM_S) / 4 + CONFIRM_S, rel=1e-3)


def test_a_grid_ends_with_its_points() -> None:
    search = search_of(space={"model.num_codewords": {"choice": [4, 8, 16]}}, sampler="grid")

    assert whole(search).trials.median == 3


def test_real_curves_decide_what_is_stopped() -> None:
    """The median rule stops none where all rise alike: the best of each is above the means of the others."""
    search = search_of(budget={"trials": 40}, scheduler="median", median={"min_trials": 3})
    apart = [trial(n, [0.1 * n + 0.01 * e for e in range(10)]) for n in range(8)]
    alike = [trial(n, [0.5 + 0.01 * e for e in range(10)]) for n in range(8)]

    epochs = [
        sum(rehearse(search, 10, trials, num_new=32, at_once=2, seed=0).started) for trials in (apart, alike)
    ]

    assert epochs[0] < 0.8 * 320
    assert epochs[1] == 320


def test_a_running_trial_among_the_worst_is_not_expected_to_end() -> None:
    search = search_of(budget={"trials": 9}, scheduler="asha", asha={"grace_epochs": 3})
    ended = [trial(n, [0.5, 0.6, 0.7 + 0.01 * n, 0.8]) for n in range(8)]

    rests = [
        rehearse(search, 9, [*ended, trial(8, [v, v], state="RUNNING")], num_new=0, at_once=1, seed=0).running
        for v in (0.1, 0.9)
    ]

    assert rests == [(1,), (7,)]


def test_the_backtest_takes_the_forecast_of_that_time() -> None:
    points = [
        ForecastPoint(0, 50, 150, 300),
        ForecastPoint(20, 80, 120, 160),
        ForecastPoint(49, 101, 110, 130),
        ForecastPoint(70, 95, 99, 105),
    ]

    found = backtest(points, ended_s=100)

    assert found
    assert [share for share, _ in found.errors] == [0, 0.25, 0.5, 0.75]
    assert [error for _, error in found.errors] == pytest.approx([0.5, 0.2, 0.1, -0.01])
    assert found.held == 0.75
    assert backtest([], 100) is None


def test_a_forecast_of_a_simulated_sweep_holds_its_end() -> None:
    """Sweeps whose epochs take what a forecast was told end within its interval about as often as it says."""
    rng = random.Random(0)
    search, pace = search_of(budget={"trials": 20}), Pace((8.0, 10.0, 12.0), 2.0, 0.1, confirm_doubt=0.0)
    told = whole(search, pace, at_once=1).wall_s

    ends = []
    for _ in range(200):
        common = math.exp(rng.gauss(0, 0.1))
        epochs_s = [4 * rng.uniform(8, 12) for _ in range(21)]  # the last one confirms
        ends.append(CONFIRM_STARTUP_S + common * (20 * 2 + sum(epochs_s)))

    assert 0.7 < sum(told.low <= end <= told.high for end in ends) / 200 < 0.9


def test_paused_trials_may_be_promoted_or_take_no_time() -> None:
    """Two of four wait at the rung after epoch 1; no division by their zero seconds may be warned of."""
    search = search_of(
        budget={"trials": 4}, scheduler="asha", asha={"grace_epochs": 1, "reduction_factor": 2}
    )
    trials = [
        trial(0, [0.1], state="PAUSED", seconds=10.0),
        trial(1, [0.2], state="PAUSED", seconds=10.0),
        trial(2, [0.9, 0.9, 0.9, 0.9], seconds=40.0),
        trial(3, [0.8, 0.8, 0.8, 0.8], seconds=40.0),
    ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = forecast(search, ONE, 4, trials, SURE, elapsed_s=0, at_once=1)

    assert (found.trials.median, found.epochs.median) == (0, 0), "the best half has gone on before"
    fewer = search.model_copy(update={"budget": BudgetConfig(trials=2)})
    left = forecast(fewer, ONE, 4, trials[:2], SURE, elapsed_s=0, at_once=1)
    assert left.epochs.median == 3, "the better one of two goes on to the end"
