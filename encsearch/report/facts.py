"""Facts about the trials and finalists of a sweep, for sentences and charts: pure."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Literal

from encsearch.report.summary import FinalistSummary, SweepSummary
from encsearch.search.confirm.ranking import Configuration, Ranking, rank
from encsearch.search.trials import Trial

Kind = Literal["winner", "complete", "pruned", "fail", "running", "flagged", "refused"]
KIND_LABELS: dict[Kind, str] = {
    "winner": "winner",
    "complete": "finished",
    "pruned": "stopped early",
    "running": "not ended",
    "flagged": "excluded: not comparable",
    "refused": "refused by a limit",
    "fail": "failed",
}

COMMON_SHARE = 2 / 3
"""Well above the share that halving keeps; asynchronously it keeps a few more than one in two."""

STRAGGLER_RATIO = 2.0
"""A trial whose seconds an epoch are over this multiple of the median is a straggler."""

Valued = tuple[float, Trial]
"""(value, trial)"""


def valued(trials: Sequence[Trial]) -> list[Valued]:
    """The trials that have a finite value, with that value."""
    return [(t.value, t) for t in trials if t.value is not None and math.isfinite(t.value)]


def comparable(trials: Sequence[Trial], excluded: Collection[int] = ()) -> list[Valued]:
    """The trials that may win: a finite value, not failed, not refused, number not in `excluded`."""
    return [
        (value, trial)
        for value, trial in valued(trials)
        if trial.state != "FAIL" and not trial.refused and trial.number not in excluded
    ]


def best_of(trials: Sequence[Valued]) -> Valued | None:
    """The trial with the highest value, or None."""
    return max(trials, key=lambda pair: pair[0], default=None)


def rank_finalists(summary: SweepSummary) -> Ranking | None:
    """Rank the finalists by the rule that decided the winner; None where nothing was confirmed."""
    finalists = _configurations([row for row in summary.finalists if row.trial is not None])
    if not finalists:
        return None
    baselines = _configurations([row for row in summary.finalists if row.trial is None])
    return rank(finalists, baselines, summary.search.minimize)


def classify_trial(trial: Trial, summary: SweepSummary) -> Kind:
    """Choose the trial's mark in charts."""
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
        case "RUNNING" | "PAUSED":
            return "running"


def ended_early(summary: SweepSummary, trial: Trial) -> bool:
    """Whether `train.early_stop` ended the trial, which counts as finished."""
    return trial.state == "COMPLETE" and trial.epochs < summary.epochs


def spent_until(summary: SweepSummary) -> dict[int, float]:
    """Device seconds of the search up to the end of each trial, added up in the order of the numbers."""
    ends = accumulate(trial.cost_seconds for trial in summary.trials)
    return {trial.number: end for trial, end in zip(summary.trials, ends, strict=True)}


def search_cost(summary: SweepSummary) -> float:
    """Device seconds of all trials."""
    return sum(trial.cost_seconds for trial in summary.trials)


def finalists_cost(summary: SweepSummary) -> float:
    """Device seconds of the trainings after the search, by the devices that each worker booked."""
    scaling = summary.config.scaling
    each = scaling.gpus_per_worker if summary.cost_unit == "GPU" else scaling.cpus_per_worker
    return sum(row.seconds * row.num_workers * each for row in summary.finalists)


def common_epoch(trials: Sequence[Trial]) -> int | None:
    """The last epoch that more than COMMON_SHARE of the trials with a report reached.

    Early stopping ends trials at rungs, so this is the highest rung that most trials reached. Later epochs
    have only good trials, which do not show what made the others bad.
    """
    curves = [dict(trial.curve) for trial in trials if trial.curve]
    epochs = {epoch for curve in curves for epoch in curve}
    shared = [
        epoch for epoch in epochs if sum(epoch in curve for curve in curves) > COMMON_SHARE * len(curves)
    ]
    return max(shared, default=None)


def at_epoch(summary: SweepSummary, epoch: int) -> list[Valued]:
    """The comparable trials that reached the epoch, with their values there."""
    found = comparable(summary.trials, summary.excluded)
    reached = [(dict(trial.curve).get(epoch), trial) for _, trial in found]
    return [(value, trial) for value, trial in reached if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Straggler:
    """A trial that took `ratio` times the median of all trials' seconds an epoch."""

    number: int
    seconds_an_epoch: float
    ratio: float


def find_stragglers(trials: Sequence[Trial]) -> tuple[Straggler, ...]:
    """Find trials over STRAGGLER_RATIO times the median, slowest first; it takes three trials."""
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


def class_table(finalists: Sequence[FinalistSummary]) -> ClassTable:
    by_name = _by_name(finalists)
    classes = dict.fromkeys(name for row in finalists for name in row.class_iou)
    return ClassTable(
        list(by_name), [(name, [_mean(rows, name) for rows in by_name.values()]) for name in classes]
    )


def _configurations(rows: Sequence[FinalistSummary]) -> list[Configuration]:
    return [
        Configuration(name, group[0].trial, {r.seed: r.value for r in group}, group[0].parameters or 0)
        for name, group in _by_name(rows).items()
    ]


def _by_name(rows: Sequence[FinalistSummary]) -> dict[str, list[FinalistSummary]]:
    groups: dict[str, list[FinalistSummary]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return groups


def _mean(rows: Iterable[FinalistSummary], class_name: str) -> float | None:
    found = [row.class_iou[class_name] for row in rows if class_name in row.class_iou]
    return fmean(found) if found else None
