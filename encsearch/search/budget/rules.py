"""Pure decisions when a search must end, so that its finalists can still be confirmed within the budget."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encsearch.config import BudgetConfig, ConfirmConfig, ScalingConfig, SearchConfig
from encsearch.search.trials import Trial
from encsearch.text import format_cost, format_count, format_duration, format_list

# A machine's speed drifts: a pace that many trials agree on may still be off by this share.
DRIFT = 0.05
# Eight confirmations of four sweeps took 0.75 to 2.2 times as long as their trials suggested: with other
# numbers of workers, alone instead of side by side, and one on a machine that was busy otherwise.
CONFIRM_DOUBT = 0.35
# Startup of the finalists' processes (Ray 2.60, two cores); only the first one of each place waits for it.
CONFIRM_STARTUP_S = 5
# Expected share of several workers' added speed; the speed of two depends on network and machine.
PARALLEL_EFFICIENCY = 0.8
# Before the search has begun to learn, the confirmation may not claim more than this share of the budget.
MAX_CONFIRM_SHARE = 0.5
# Quantile of the trials' pace for finalists, which may be among the larger networks.
CAUTIOUS = 0.9


@dataclass(frozen=True)
class Pace:
    """The time that trials take.

    epoch_s    seconds an epoch, validation included, ascending: one figure for every trial that was measured;
               they represent the networks to come, whichever searched value makes them slow or fast
    startup_s  seconds from a free place to a trial's first step
    doubt      standard deviation, as a share, of an error that all figures have in common
    confirm_doubt  the same for an additional error of the trainings after the search
    """

    epoch_s: tuple[float, ...]
    startup_s: float
    doubt: float
    confirm_doubt: float

    def quantile(self, share: float) -> float:
        """Seconds an epoch that `share` of the trials do not exceed, interpolated."""
        place = share * (len(self.epoch_s) - 1)
        low, high = math.floor(place), math.ceil(place)
        return self.epoch_s[low] + (place - low) * (self.epoch_s[high] - self.epoch_s[low])


def pace_of(trials: Sequence[Trial], startup_s: float) -> Pace | None:
    """The pace of the trials so far, running ones included; None before the first report."""
    epoch_s = sorted(r.seconds / r.epochs for r in trials if r.epochs and r.seconds)
    if not epoch_s:
        return None
    mean = statistics.fmean(epoch_s)
    # A single trial gives no deviation; it may be as unusual as its own length.
    error = statistics.stdev(epoch_s) / mean / math.sqrt(len(epoch_s)) if len(epoch_s) > 1 else 1 / 3
    return Pace(tuple(epoch_s), startup_s, max(error, DRIFT), CONFIRM_DOUBT)


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and seconds of all devices together: GPUs, or CPUs where no GPU is booked."""

    wall_s: float
    device_s: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_s + other.wall_s, self.device_s + other.device_s)

    def times(self, count: float) -> "Cost":
        return Cost(count * self.wall_s, count * self.device_s)


@dataclass(frozen=True)
class Spent:
    """What the search has used so far.

    `trials` were trained or are being trained. `refused` ones exceeded a limit, cost nothing and are counted
    separately; a repeated flagged trial is counted once.
    """

    trials: int
    refused: int
    cost: Cost


@dataclass(frozen=True)
class Needs:
    """The cost reserved for the confirmation by `plan`; `reduced` describes what was cut from the recipe's.

    `first_report` is the cost of a new trial until its first report, the least that makes it worth starting.
    """

    plan: ConfirmConfig
    confirm: Cost
    first_report: Cost
    reduced: str | None = None


@dataclass(frozen=True)
class BudgetDecision:
    """Whether another trial may start, whether the running ones must end now, and the reason.

    `may_repeat`: whether there is time for a repeat, which does not count towards the number of trials.
    """

    may_start: bool
    must_end: bool
    reason: str | None = None
    may_repeat: bool = False


def decide(budget: BudgetConfig, spent: Spent, needs: Needs | None) -> BudgetDecision:
    """Decide what the budget allows now; `needs` is None until something was measured.

    The clock and the GPU-hours end running trials, the number of trials does not. A search also ends when its
    limits refuse as many proposals as it may train: they leave hardly anything of its space.
    """
    kept = needs.confirm if needs else Cost(0, 0)
    if reason := _describe_exceeded(budget, spent.cost + kept, spent.cost, needs):
        return BudgetDecision(may_start=False, must_end=True, reason=reason)
    late = needs and _describe_exceeded(budget, spent.cost + kept + needs.first_report, spent.cost, needs)
    if spent.trials >= budget.trials:
        reason = f"all {format_count(budget.trials)} trials of the budget have started"
        if late:
            reason = f"no paused trial would report in time: {late}"
        return BudgetDecision(False, False, reason, may_repeat=not late)
    if spent.refused >= budget.trials:
        refused = format_count(spent.refused)
        reason = f"search.limits refused {refused} proposals, as many as the budget has trials"
        return BudgetDecision(False, False, reason, may_repeat=not late)
    if late:
        return BudgetDecision(False, False, f"no new trial would report in time: {late}")
    return BudgetDecision(may_start=True, must_end=False, may_repeat=True)


def spent_by(trials: Sequence[Trial], wall_s: float) -> Spent:
    """Sum up the trials so far; `wall_s` is the sweep's time without its interruptions."""
    trained = [r for r in trials if not r.refused]
    return Spent(
        trials=sum(r.rerun_of is None for r in trained),
        refused=len(trials) - len(trained),
        cost=Cost(wall_s, sum(r.cost_seconds for r in trained)),
    )


def compute_needs(
    search: SearchConfig, scaling: ScalingConfig, epochs: int, pace: Pace, at_once: int
) -> Needs:
    """Compute what the search must leave for the confirmation, by the speed measured so far.

    `at_once` trials fit at a time. Finalists that have begun are not cut, so one standard deviation is
    reserved beside their expected time. A confirmation that would take more than MAX_CONFIRM_SHARE of the
    budget is reduced, see `reduce_plan`.
    """
    expected = confirm_cost(search.confirm, scaling, epochs, pace.quantile(CAUTIOUS))
    each = expected.times(math.exp(pace.confirm_doubt))
    left = left_of(search.budget, Cost(0, 0)).times(MAX_CONFIRM_SHARE)
    places = confirm_places(search, scaling, at_once)
    plan, reduced = reduce_plan(search.confirm, each, left, places)
    report_s = pace.startup_s + pace.quantile(0.5)
    return Needs(
        plan=plan,
        confirm=add_up(each, plan, places),
        first_report=Cost(report_s, report_s * devices_of(scaling)),
        reduced=reduced,
    )


def reduce_plan(
    confirm: ConfirmConfig, each: Cost, left: Cost, places: int = 1
) -> tuple[ConfirmConfig, str | None]:
    """Reduce the confirmation to what `left` allows; also return what was cut, as one line.

    `places` trainings run at once.

    Finalists are cut first, then baselines, then seeds: without several seeds no winner is sure. One training
    is always kept, since a sweep without any has no result.
    """
    plans = list(_list_smaller(confirm))

    def fits(plan: ConfirmConfig) -> bool:
        total = add_up(each, plan, places)
        return total.wall_s <= left.wall_s and total.device_s <= left.device_s

    plan = next(filter(fits, plans), plans[-1])
    if plan == confirm and fits(plan):
        return confirm, None
    asked = add_up(each, confirm, places)
    # By the limit that it exceeds more.
    if asked.wall_s * max(0, left.device_s) >= asked.device_s * max(0, left.wall_s):
        available, each_takes = format_duration(max(0, left.wall_s)), format_duration(each.wall_s)
    else:
        available, each_takes = format_cost(max(0, left.device_s), "GPU"), format_cost(each.device_s, "GPU")
    cut = f"confirming {_describe_plan(plan)} instead of {_describe_plan(confirm)}"
    return plan, f"{cut}: it may take {available}, and one training takes {each_takes}"


def confirm_cost(confirm: ConfirmConfig, scaling: ScalingConfig, epochs: int, epoch_s: float) -> Cost:
    """Cost of one confirmation training if a trial takes `epoch_s` an epoch."""
    workers = confirm.num_workers or scaling.num_workers
    ratio = scaling.num_workers / workers
    slower = ratio if ratio >= 1 else ratio / PARALLEL_EFFICIENCY
    wall_s = CONFIRM_STARTUP_S + (confirm.epochs or epochs) * epoch_s * slower
    return Cost(wall_s, wall_s * devices_of(scaling.model_copy(update={"num_workers": workers})))


def confirm_places(search: SearchConfig, scaling: ScalingConfig, at_once: int) -> int:
    """Number of confirmation trainings that run at once where `at_once` trials fit."""
    fitting = at_once * scaling.num_workers // (search.confirm.num_workers or scaling.num_workers)
    return max(1, min(fitting, search.max_concurrent or fitting))


def add_up(each: Cost, plan: ConfirmConfig, places: int) -> Cost:
    """Cost of a confirmation whose trainings cost `each`, `places` at once; baselines wait for finalists."""
    rounds = sum(
        math.ceil(count * len(plan.seeds) / places) for count in (plan.finalists, len(plan.baselines))
    )
    return Cost(rounds * each.wall_s, plan.num_trainings * each.device_s)


def left_of(budget: BudgetConfig, used: Cost) -> Cost:
    """Time left of both limits; infinite where there is none."""
    return Cost(
        wall_s=(budget.wall or math.inf) - used.wall_s,
        device_s=3600 * (budget.gpu_hours or math.inf) - used.device_s,
    )


def devices_of(scaling: ScalingConfig) -> float:
    """Number of GPUs of a trial, or of CPUs where no GPU is booked."""
    return scaling.num_workers * (scaling.gpus_per_worker or scaling.cpus_per_worker)


def _describe_exceeded(budget: BudgetConfig, total: Cost, search: Cost, needs: Needs | None) -> str | None:
    """Describe the limit that `total` reaches, or return None."""
    left = left_of(budget, total)
    if left.wall_s <= 0:
        assert budget.wall
        parts = f"{format_duration(search.wall_s)} of search"
        if needs:
            parts += f", {format_duration(needs.confirm.wall_s)} kept for {_describe_plan(needs.plan)}"
        return f"the wall budget of {format_duration(budget.wall)} is spent: {parts}"
    if left.device_s <= 0:
        assert budget.gpu_hours
        parts = f"{format_cost(search.device_s, 'GPU')} of search"
        if needs:
            parts += f", {format_cost(needs.confirm.device_s, 'GPU')} kept for {_describe_plan(needs.plan)}"
        return f"the budget of {format_cost(3600 * budget.gpu_hours, 'GPU')} is spent: {parts}"
    return None


def _list_smaller(confirm: ConfirmConfig) -> Iterator[ConfirmConfig]:
    for finalists in range(confirm.finalists, 0, -1):
        yield confirm.model_copy(update={"finalists": finalists})
    for count in range(len(confirm.seeds), 0, -1):
        yield confirm.model_copy(update={"finalists": 1, "baselines": (), "seeds": confirm.seeds[:count]})


def _describe_plan(confirm: ConfirmConfig) -> str:
    parts = [format_count(confirm.finalists, "finalist")]
    if confirm.baselines:
        parts.append(format_count(len(confirm.baselines), "baseline"))
    return f"{format_list(parts)} x {format_count(len(confirm.seeds), 'seed')}"
