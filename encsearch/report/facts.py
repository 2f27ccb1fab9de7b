"""What the trials of a sweep tell, without words or figures: pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Literal

from encsearch.report.summary import FinalistRow, SweepSummary
from encsearch.search.trials import TrialRecord

Kind = Literal["winner", "complete", "pruned", "fail", "running", "flagged", "refused"]
KIND_LABELS: dict[Kind, str] = {
    "winner": "winner",
    "complete": "ran to the end",
    "pruned": "stopped early",
    "running": "not ended",
    "flagged": "excluded: not comparable",
    "refused": "refused by a limit",
    "fail": "failed",
}

COMMON_SHARE = 2 / 3
"""Above what halving leaves over, with some to spare: asynchronously it keeps a few more than one in two."""

STRAGGLER_RATIO = 2.0
"""A trial is a straggler whose seconds an epoch are over so many times the median."""


def valued(trials: Sequence[TrialRecord]) -> list[tuple[float, TrialRecord]]:
    """The trials that have a finite value, with it."""
    return [(t.value, t) for t in trials if t.value is not None and math.isfinite(t.value)]


def comparable(summary: SweepSummary) -> list[tuple[float, TrialRecord]]:
    """Those that may win: not failed, not refused, and flagged ones only if the recipe keeps them."""
    flagged = set() if summary.search.flagged == "keep" else set(summary.flags)
    return [
        (value, trial)
        for value, trial in valued(summary.trials)
        if trial.state != "FAIL" and not trial.refused and trial.number not in flagged
    ]


def best_of_search(summary: SweepSummary) -> TrialRecord | None:
    """Of those that may win, the trial with the highest value, or None."""
    return best_trial([trial for _, trial in comparable(summary)])


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest value that did not fail, or None."""
    return max(scored(trials), key=lambda trial: trial.value or 0.0, default=None)


def scored(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that have a value and did not fail."""
    return [trial for trial in trials if trial.value is not None and trial.state != "FAIL"]


def kind_of(trial: TrialRecord, summary: SweepSummary) -> Kind:
    """How the trial is marked in figures."""
    if trial.number == summary.winner:
        return "winner"
    if trial.refused:
        return "refused"
    if trial.number in summary.flags:
        return "flagged"
    match trial.state:
        case "COMPLETE":
            return "complete"
        case "PRUNED":
            return "pruned"
        case "FAIL":
            return "fail"
        case "RUNNING":
            return "running"


def spent_until(summary: SweepSummary) -> dict[int, float]:
    """Device seconds of the search by the end of each trial, the trials one after the other by number."""
    ends = accumulate(trial.cost_seconds for trial in summary.trials)
    return {trial.number: end for trial, end in zip(summary.trials, ends, strict=True)}


def search_cost(summary: SweepSummary) -> float:
    """Device seconds of all trials."""
    return sum(trial.cost_seconds for trial in summary.trials)


def finalists_cost(summary: SweepSummary) -> float:
    """Device seconds of the trainings after the search, by what each worker booked."""
    scaling = summary.config.scaling
    each = scaling.gpus_per_worker if summary.cost_unit == "GPU" else scaling.cpus_per_worker
    return sum(row.seconds * row.num_workers * each for row in summary.finalists)


def common_epoch(trials: Sequence[TrialRecord]) -> int | None:
    """The last epoch that over COMMON_SHARE of the trials reached, of those that reported at all.

    Early stopping ends trials at rungs, so this is the highest rung that most trials reached. Later ones hold
    only trials that were good, and what made the others bad cannot be seen there.
    """
    curves = [dict(trial.curve) for trial in trials if trial.curve]
    epochs = {epoch for curve in curves for epoch in curve}
    shared = [
        epoch for epoch in epochs if sum(epoch in curve for curve in curves) > COMMON_SHARE * len(curves)
    ]
    return max(shared, default=None)


def at_epoch(summary: SweepSummary, epoch: int) -> list[tuple[float, TrialRecord]]:
    """The comparable trials that reached the epoch, with their value at it."""
    reached = [(dict(trial.curve).get(epoch), trial) for _, trial in comparable(summary)]
    return [(value, trial) for value, trial in reached if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Straggler:
    """A trial that took `ratio` times the median of all trials' seconds an epoch."""

    number: int
    seconds_an_epoch: float
    ratio: float


def stragglers(trials: Sequence[TrialRecord]) -> tuple[Straggler, ...]:
    """Trials slower than STRAGGLER_RATIO times the median, slowest first; of three or more trials."""
    paces = {trial.number: trial.seconds / trial.epochs for trial in trials if trial.epochs and trial.seconds}
    if len(paces) < 3:
        return ()
    usual = median(paces.values())
    slow = [Straggler(n, pace, pace / usual) for n, pace in paces.items() if pace > STRAGGLER_RATIO * usual]
    return tuple(sorted(slow, key=lambda straggler: -straggler.ratio))


@dataclass(frozen=True)
class ClassTable:
    """Mean IoU over seeds of each class (rows) for each finalist and baseline (columns)."""

    names: list[str]
    rows: list[tuple[str, list[float | None]]]


def class_table(finalists: Sequence[FinalistRow]) -> ClassTable:
    by_name: dict[str, list[FinalistRow]] = {}
    for row in finalists:
        by_name.setdefault(row.name, []).append(row)
    classes = dict.fromkeys(name for row in finalists for name in row.class_iou)
    return ClassTable(
        list(by_name), [(name, [_mean(rows, name) for rows in by_name.values()]) for name in classes]
    )


def _mean(rows: Iterable[FinalistRow], class_name: str) -> float | None:
    found = [row.class_iou[class_name] for row in rows if class_name in row.class_iou]
    return fmean(found) if found else None
