"""Which trials are confirmed and with which configuration, and what their trainings leave: pure decisions."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encsearch.config import Config, ConfirmConfig, Context, trial_config
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
    """The `count` best trials, without those whose number is `excluded`.

    Those that ran to the end come first, then those that ran furthest, so that fidelities are not mixed. Of
    trials with the same values the first of them is taken. With two objectives they are the Pareto front of
    those that ran to the end, the best metric first.
    """
    scored = [
        trial
        for trial in trials
        if trial.value is not None
        and trial.state in ("COMPLETE", "PRUNED")
        and not trial.refused
        and trial.number not in excluded
    ]
    scored.sort(key=lambda r: (r.state != "COMPLETE", -r.epochs, -(r.value or 0.0), r.number))
    distinct: list[Trial] = []
    for trial in pareto_front(scored) or scored:
        if all(trial.values != other.values for other in distinct):
            distinct.append(trial)
    return distinct[:count]


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that ran to the end and that no other beats in one objective without losing in the other.

    In their order; none where there is one objective.
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
    """The sweep's recipe at the trial's values, with the seed, workers and epochs of a confirmation."""
    changed = {
        **values,
        "train.seed": seed,
        "scaling.num_workers": plan.num_workers or config.scaling.num_workers,
        "train.epochs": plan.epochs or config.train.epochs,
    }
    return trial_config(config, changed)


def group_trainings(trainings: Iterable[Finalist]) -> tuple[Configuration, ...]:
    """The trainings of each trial, and of each baseline, as one."""
    groups: dict[str, list[Finalist]] = {}
    for training in trainings:
        groups.setdefault(_label(training), []).append(training)
    return tuple(
        Configuration(label, group[0].trial, {t.seed: t.value for t in group}, group[0].parameters)
        for label, group in groups.items()
    )


def representative(trainings: Sequence[Finalist]) -> Finalist:
    """Of one configuration's trainings that of the median value, the lower of two in the middle.

    Its weights stand for the configuration. The best seed would be a selection on the validation split again,
    and its value too high.
    """
    return sorted(trainings, key=lambda training: training.value)[(len(trainings) - 1) // 2]


def name_context(context: Context) -> str:
    """A network with this context module, as it is called beside the others."""
    match context:
        case "encoding":
            return "EncNet"
        case "gate":
            return "pooled gate"
        case "none":
            return "FCN"


def to_line(finalist: Finalist, folder: Path) -> dict[str, Any]:
    """What is kept of a training as JSON, its checkpoint relative to `folder`; see `from_line`."""
    result = finalist.result
    return {
        "name": finalist.name,
        "trial": finalist.trial,
        "seed": finalist.seed,
        "epochs": result.reports[-1].epoch,
        "seconds": result.seconds,
        "parameters": finalist.parameters,
        "checkpoint": os.path.relpath(result.best_checkpoint, folder),
        "best": result.best.to_dict(),
    }


def from_line(line: Mapping[str, Any], config: Config, folder: Path) -> Finalist:
    """The training of `config` that left the line; its reports are those of its spool."""
    result = TrainingResult(
        reports=tuple(distinct_reports(folder / line["name"] / REPORTS_FILE)),
        best=Report.from_dict(line["best"]),
        best_checkpoint=folder / line["checkpoint"],
        seconds=line["seconds"],
    )
    return Finalist(line["name"], line["trial"], config, result, line["parameters"])


def _label(training: Finalist) -> str:
    if training.trial is not None:
        return f"trial {training.trial}"
    return name_context(training.config.model.context)
