"""The keeper of the budget: it keeps a running sweep within its limits and records when it should end.

Time used by earlier processes counts too: `progress.jsonl` has the seconds that the sweep has run. A kill
loses at most PROGRESS_S of the search, or one training of the confirmation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from encsearch.config import Config, ConfirmConfig
from encsearch.files import append_line, read_lines, to_object
from encsearch.search.budget.forecast import ForecastPoint, forecast
from encsearch.search.budget.rules import (
    BudgetDecision,
    Cost,
    Needs,
    compute_needs,
    decide,
    left_of,
    pace_of,
    spent_by,
)
from encsearch.search.study.study import Study
from encsearch.search.trials import Trial

PROGRESS_FILE = "progress.jsonl"
DECISION_S, PROGRESS_S = 1, 15
FORECAST_TRIALS = 1000
# Seconds from a free place to a trial's first step, in a running process (Ray 2.60 on two cores).
STARTUP_S = 1.0


@dataclass(frozen=True)
class _Elapsed:
    """A line of progress without a forecast."""

    elapsed_s: float


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    `ended` of `planned` trials have ended, `paused` wait, `best` is the best so far. `spent` and `left` are
    of the whole budget, `left` infinite where there is no limit; `to_go_s` is the forecast of the seconds to
    its end, None before the first report.
    """

    ended: int
    paused: int
    planned: int
    best: Trial | None
    spent: Cost
    left: Cost
    to_go_s: tuple[float, float] | None


class Keeper:
    """The `Limiter` of a ledger; `at_once` trials run at a time, `follow` hears how far the sweep is."""

    def __init__(
        self,
        config: Config,
        study: Study,
        folder: Path,
        at_once: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        follow: Callable[[SweepProgress], None] = lambda _: None,
    ) -> None:
        self._config, self._study, self._follow = config, study, follow
        self._at_once, self._clock, self._path = at_once, clock, folder / PROGRESS_FILE
        lines = self._lines()
        self._started_s = clock() - (lines[-1].elapsed_s if lines else 0.0)
        self._decision = BudgetDecision(may_start=True, must_end=False, may_repeat=True)
        self._needs: Needs | None = None
        self._next_decision_s = self._next_progress_s = self._next_forecast_s = -1.0
        self._expected: Mapping[str, float] = {}
        # The budget covers the search and the confirmation; this is None unless a limit ended the search.
        self.ended_by: str | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds that the sweep has run, without the time between a kill and the resume."""
        return self._clock() - self._started_s

    def may_start(self) -> bool:
        self._decide()
        return self._decision.may_start

    def may_repeat(self) -> bool:
        self._decide()
        return self._decision.may_repeat

    def must_end(self) -> bool:
        self._decide()
        return self._decision.must_end

    def confirmation(self) -> tuple[ConfirmConfig, str | None]:
        """The part of the recipe's confirmation that the budget allows, and what was cut, as one line."""
        return (self._needs.plan, self._needs.reduced) if self._needs else (self._study.search.confirm, None)

    def write_progress(self, num_confirmed: int = 0) -> None:
        """Record how long the sweep has run, and when it is expected to end if that can be estimated.

        Beyond FORECAST_TRIALS the search is forecast less often than that, since it takes longer.
        """
        line = {"elapsed_s": self.elapsed_s}
        if num_confirmed or self.elapsed_s >= self._next_forecast_s:
            self._expected = self._expected_end(num_confirmed)
            line |= self._expected
            longer = max(0.0, len(self._study.trials()) / FORECAST_TRIALS - 1)
            self._next_forecast_s = self.elapsed_s + PROGRESS_S * longer
        append_line(self._path, line)
        self._follow(self._summarize(self._expected))

    def points(self) -> tuple[ForecastPoint, ...]:
        """All forecasts so far, including those of earlier processes."""
        return tuple(line for line in self._lines() if isinstance(line, ForecastPoint))

    def _lines(self) -> list["ForecastPoint | _Elapsed"]:
        return [
            to_object(ForecastPoint, line, self._path)
            if "median_s" in line
            else to_object(_Elapsed, line, self._path)
            for line in read_lines(self._path)
        ]

    def _decide(self) -> None:
        if self.elapsed_s < self._next_decision_s:
            return
        self._next_decision_s = self.elapsed_s + DECISION_S
        trials = self._study.trials()
        pace = pace_of(trials, STARTUP_S)
        if pace:
            self._needs = compute_needs(
                self._study.search, self._config.scaling, self._config.train.epochs, pace, self._at_once
            )
        self._decision = decide(self._study.search.budget, spent_by(trials, self.elapsed_s), self._needs)
        if self._takes_trials_away(trials):
            self.ended_by = self._decision.reason
        if self.elapsed_s >= self._next_progress_s:
            self._next_progress_s = self.elapsed_s + PROGRESS_S
            self.write_progress()

    def _summarize(self, expected: Mapping[str, float]) -> SweepProgress:
        trials = self._study.trials()
        spent = spent_by(trials, self.elapsed_s).cost
        valued = [trial for trial in trials if trial.value is not None and trial.state != "FAIL"]
        to_go = [max(0.0, expected[name] - expected["elapsed_s"]) for name in ("low_s", "high_s") if expected]
        return SweepProgress(
            ended=spent_by([t for t in trials if t.state not in ("RUNNING", "PAUSED")], 0).trials,
            paused=sum(trial.state == "PAUSED" for trial in trials),
            planned=self._study.search.budget.trials,
            best=max(valued, key=lambda trial: trial.value or 0.0, default=None),
            spent=spent,
            left=left_of(self._study.search.budget, spent),
            to_go_s=(to_go[0], to_go[1]) if to_go else None,
        )

    def _takes_trials_away(self, trials: Sequence[Trial]) -> bool:
        """Whether a limit cuts off a trial, has cut one off, or prevents one from starting or being promoted.

        A limit that is reached after the last trial has cut off nothing.
        """
        if self._decision.may_start:
            return False
        if not self._decision.may_repeat and self._study.can_promote(keep_one=True):
            return True
        if not self._decision.may_repeat and any(_is_cut(trial) for trial in trials):
            return True
        trained = spent_by(trials, self.elapsed_s).trials
        return trained < self._study.search.budget.trials and not self._study.is_exhausted()

    def _expected_end(self, num_confirmed: int) -> Mapping[str, float]:
        trials = self._study.trials()
        pace = pace_of(trials, STARTUP_S)
        plan, _ = self.confirmation()
        if not pace or num_confirmed >= plan.num_trainings:
            return {}
        elapsed_s = self.elapsed_s
        left = forecast(
            self._study.search,
            self._config.scaling,
            self._config.train.epochs,
            trials,
            pace,
            elapsed_s=elapsed_s,
            at_once=self._at_once,
            num_confirmed=num_confirmed,
        ).wall_s
        point = ForecastPoint(elapsed_s, elapsed_s + left.low, elapsed_s + left.median, elapsed_s + left.high)
        return asdict(point)


def _is_cut(trial: Trial) -> bool:
    """Whether the trial runs, and so will be ended, or the budget ended it: the scheduler gives no reason."""
    return trial.state == "RUNNING" or (
        trial.state == "PRUNED" and trial.reason is not None and not trial.refused
    )
