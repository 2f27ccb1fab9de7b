"""The choice of finalists, their configurations, and the records of their trainings: pure decisions."""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from encsearch.config import Config, ConfirmConfig, Context, trial_config
from encsearch.parts import PartName, is_part
from encsearch.reports import REPORTS_FILE, Report, TrainingResult, distinct_reports
from encsearch.search.confirm.ranking import Configuration
from encsearch.search.trials import Trial


@dataclass(frozen=True)
class Finalist:
    """One training from scratch of a trial's configuration; `trial` is None for a baseline."""

    name: str
    trial: int | None
    config: Config
    result: TrainingResult
    parameters: int

    @property
    def value(self) -> float:
        return self.result.best.metrics[self.config.metric]

    @property
    def seed(self) -> int:
        return self.config.train.seed


def pick_finalists(trials: Sequence[Trial], count: int, excluded: Collection[int] = ()) -> list[Trial]:
    """Pick the `count` best trials, without the `excluded` numbers.

    Trials that ran to the end, `train.early_stop` included, come first, then those with the most epochs, so
    that fidelities are not mixed. Trials with the same values that came as far count with their mean; the
    best one is taken. With two objectives the finalists are the Pareto front of the trials that ran to the
    end, the best metric first.
    """
    scored = [
        trial
        for trial in trials
        if trial.value is not None
        and trial.state in ("COMPLETE", "PRUNED")
        and not trial.refused
        and trial.number not in excluded
    ]
    ranked = sorted(scored, key=lambda r: (-_reach(r), -(r.value or 0.0), r.number))
    alike: dict[object, list[float]] = {}
    for trial in ranked:
        alike.setdefault((_key(trial), _reach(trial)), []).append(trial.value or 0.0)
    means = {key: fmean(values) for key, values in alike.items()}
    ranked.sort(key=lambda r: (-_reach(r), -means[_key(r), _reach(r)]))
    distinct: dict[object, Trial] = {}
    for trial in pareto_front(ranked) or ranked:
        distinct.setdefault(_key(trial), trial)
    return list(distinct.values())[:count]


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Select the trials that ran to the end and that no other matches in both objectives and beats in one.

    The order is kept; empty with one objective.
    """
    points = [
        (trial, trial.value, trial.minimized)
        for trial in trials
        if trial.state == "COMPLETE" and trial.value is not None and trial.minimized is not None
    ]
    return [
        trial
        for trial, value, cost in points
        if not any(v >= value and c <= cost and (v, c) != (value, cost) for _, v, c in points)
    ]


def finalist_config(config: Config, values: Mapping[str, Any], seed: int, plan: ConfirmConfig) -> Config:
    """Set the trial's values, the seed, and the confirmation's workers and epochs in the sweep's recipe."""
    changed = {
        **values,
        "train.seed": seed,
        "scaling.num_workers": plan.num_workers or config.scaling.num_workers,
        "train.epochs": plan.epochs or config.train.epochs,
    }
    return trial_config(config, changed)


def group_trainings(trainings: Iterable[Finalist]) -> tuple[Configuration, ...]:
    """Group the trainings of each trial and of each baseline."""
    groups: dict[str, list[Finalist]] = {}
    for training in trainings:
        groups.setdefault(name_configuration(training), []).append(training)
    return tuple(
        Configuration(label, group[0].trial, {t.seed: t.value for t in group}, group[0].parameters)
        for label, group in groups.items()
    )


def representative(trainings: Sequence[Finalist]) -> Finalist:
    """The training with the median value of one configuration, the lower of two in the middle.

    Its weights represent the configuration. Taking the best seed would select on the validation split again,
    and its value would be too high.
    """
    return sorted(trainings, key=lambda training: training.value)[(len(trainings) - 1) // 2]


def mean_report(trainings: Sequence[Finalist]) -> Report:
    """The means over the seeds of one configuration, each training by its best epoch; the seconds add up."""
    reports = [training.result.best for training in trainings]
    middle = representative(trainings).result.best

    def means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: fmean(v[name] for v in values) for name in values[0] if all(name in v for v in values)}

    return Report(
        epoch=middle.epoch,
        step=middle.step,
        seconds=sum(training.result.seconds for training in trainings),
        metrics=means([report.metrics for report in reports]),
        class_iou=means([report.class_iou for report in reports]),
    )


def name_context(context: Context | PartName) -> str:
    """Name the network with this context module."""
    if is_part(context):
        return context
    match context:
        case "encoding":
            return "EncNet"
        case "gate":
            return "pooled gate"
        case "none":
            return "FCN"


@dataclass(frozen=True)
class FinalistLine:
    """A finished training as a line of JSON, its checkpoint relative to the folder of the lines."""

    name: str
    trial: int | None
    seed: int
    epochs: int
    seconds: float
    parameters: int
    checkpoint: str
    best: Report


def to_line(finalist: Finalist, folder: Path) -> FinalistLine:
    result = finalist.result
    return FinalistLine(
        name=finalist.name,
        trial=finalist.trial,
        seed=finalist.seed,
        epochs=result.reports[-1].epoch,
        seconds=result.seconds,
        parameters=finalist.parameters,
        checkpoint=os.path.relpath(result.best_checkpoint, folder),
        best=result.best,
    )


def from_line(line: FinalistLine, config: Config, folder: Path) -> Finalist:
    """Restore the training of `config` from its line, and its reports from its spool."""
    result = TrainingResult(
        reports=tuple(distinct_reports(folder / line.name / REPORTS_FILE)),
        best=line.best,
        best_checkpoint=folder / line.checkpoint,
        seconds=line.seconds,
    )
    return Finalist(line.name, line.trial, config, result, line.parameters)


def name_configuration(training: Finalist) -> str:
    """Name what its seeds have in common: the trial, or the baseline's network."""
    if training.trial is not None:
        return f"trial {training.trial}"
    return name_context(training.config.model.context)


def _reach(trial: Trial) -> float:
    """How many epochs it has come, endless at its own end."""
    return math.inf if trial.state == "COMPLETE" else trial.epochs


def _key(trial: Trial) -> object:
    """The same for trials with the same values."""
    return frozenset(trial.values.items())
