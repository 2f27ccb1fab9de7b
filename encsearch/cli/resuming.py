"""`encsearch resume`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import absolute, emit, json_option, say
from encsearch.cli.training import overrides_argument
from encsearch.errors import UserError
from encsearch.reports import JobKind, job_kind
from encsearch.text import format_score

if TYPE_CHECKING:
    from encsearch.config import Config

TRIALS = "search.budget.trials"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), callback=absolute)
@overrides_argument
@click.option("--extend", type=click.IntRange(min=1), help="Number of trials to add to a sweep's plan.")
@json_option
def resume(folder: Path, overrides: tuple[str, ...], extend: int | None, as_json: bool) -> None:
    """Go on with the training, sweep or ablation in FOLDER that was killed or interrupted.

    Finished trainings are not run again, others go on from their checkpoints. A finished sweep can be
    extended. Only a job's scaling can be changed, and a sweep's budget, concurrency and confirmation.
    """
    from encsearch.workflow.job import find_kind

    kind = find_kind(folder)
    if extend and kind != "sweep":
        raise UserError(f"--extend: {folder} holds a {kind}; only a sweep has trials to add")
    # Each kind is imported where it goes on: the driver of a sweep has no torch.
    match kind:
        case "sweep":
            _resume_sweep(folder, overrides, extend or 0, as_json)
        case "ablation":
            _resume_ablation(folder, overrides, as_json)
        case "training":
            _resume_training(folder, overrides, as_json)


def has_begun(folder: Path) -> bool:
    return job_kind(folder) is not None


def resume_as(folder: Path, kind: JobKind, config: "Config", as_json: bool) -> None:
    """Go on with a training or a sweep that was begun with `config`, but for what may be changed.

    A sweep that was extended keeps its trials. Raises UserError for another recipe, or another kind of job.
    """
    from encsearch.config import CONFIG_FILE, flatten, load_config

    if (found := job_kind(folder)) != kind:
        raise UserError(f"{folder}: holds a {found}, no {kind}; give another --name")
    before, now = (flatten(one) for one in (load_config(folder / CONFIG_FILE), config))
    changed = {path: value for path, value in now.items() if before.get(path, value) != value}
    if kind == "training":  # it kept what it needed
        changed = {path: value for path, value in changed.items() if not path.startswith("search.")}
    if changed.get(TRIALS, math.inf) < before.get(TRIALS, 0):
        del changed[TRIALS]
    # Lists and mappings are JSON already.
    overrides = [
        f"{path}={value if str(value)[:1] in ('[', '{') else json.dumps(value)}"
        for path, value in changed.items()
    ]
    for item in overrides:
        say(f"goes on with {item}")
    if kind == "sweep":
        _resume_sweep(folder, overrides, 0, as_json)
    else:
        _resume_training(folder, overrides, as_json)


def _resume_sweep(folder: Path, overrides: Sequence[str], extend: int, as_json: bool) -> None:
    from encsearch.cli.progress import progress
    from encsearch.cli.sweeping import report_swept

    with progress("reading the sweep and checking its data") as shown:
        from encsearch.workflow.sweep.run import resume as resume_sweep

        swept = resume_sweep(folder, overrides, extend, shown)
    report_swept(swept, as_json)


def _resume_ablation(folder: Path, overrides: Sequence[str], as_json: bool) -> None:
    from encsearch.cli.ablation import report_ablated
    from encsearch.cli.progress import progress
    from encsearch.config import CONFIG_FILE, load_config
    from encsearch.workflow.ablate.run import ablate

    config = load_config(folder / CONFIG_FILE, overrides)
    with progress("reading the ablation and checking its data") as shown:
        ablated = ablate(config, folder.parent, shown, resume=folder)
    report_ablated(ablated, as_json)


def _resume_training(folder: Path, overrides: Sequence[str], as_json: bool) -> None:
    from encsearch.reports import SUMMARY_FILE, read_summary

    if (folder / SUMMARY_FILE).is_file():
        if overrides:
            from encsearch.workflow.train import changed_config

            changed_config(folder, overrides)
        summary = read_summary(folder)
        score = f"{summary.metric} {format_score(summary.value)}"
        text = f"{folder}: the training is finished, {score}; next: encsearch promote {folder}"
        emit({"folder": str(folder), **asdict(summary)}, as_json, text)
        return
    from encsearch.cli.progress import progress
    from encsearch.cli.training import report_trained

    with progress("reading the training and checking its data") as shown:
        from encsearch.workflow.train import resume as resume_training

        trained = resume_training(folder, overrides, shown)
    report_trained(trained, as_json)
