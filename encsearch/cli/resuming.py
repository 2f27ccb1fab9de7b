"""`encsearch resume`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import absolute, emit, json_option, say
from encsearch.cli.training import overrides_argument
from encsearch.reports import SUMMARY_FILE, JobKind, read_summary
from encsearch.text import format_score

if TYPE_CHECKING:
    from encsearch.config import Config


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

    _go_on(folder, find_kind(folder), overrides, extend or 0, as_json)


def resume_named(
    out: Path,
    name: str | None,
    kind: JobKind,
    config: "Config",
    as_json: bool,
    *,
    only_new: Sequence[str] = (),
) -> bool:
    """Go on with the job that was begun under a name, see `find_changes`; return False if there is none."""
    from encsearch.workflow.resume import find_changes

    changes = find_changes(out, name, kind, config, only_new=only_new)
    if name is None or changes is None:
        return False
    for item in changes:
        say(f"goes on with {item}")
    _go_on(out / name, kind, changes, 0, as_json)
    return True


def _go_on(folder: Path, kind: JobKind, overrides: Sequence[str], extend: int, as_json: bool) -> None:
    if kind == "training" and not extend and (folder / SUMMARY_FILE).is_file():
        _report_finished(folder, overrides, as_json)
        return
    from encsearch.cli.progress import progress

    with progress(f"reading the {kind} and checking its data") as shown:
        from encsearch.workflow.resume import resume as run

        done = run(folder, overrides, shown, extend=extend)
    _reporter(kind)(done, as_json)


def _reporter(kind: JobKind) -> Callable[[Any, bool], None]:
    match kind:
        case "sweep":
            from encsearch.cli.sweeping import report_swept

            return report_swept
        case "ablation":
            from encsearch.cli.ablation import report_ablated

            return report_ablated
        case "training":
            from encsearch.cli.training import report_trained

            return report_trained


def _report_finished(folder: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Without torch, since a job's script may call `resume` until it is finished."""
    if overrides:
        from encsearch.workflow.job import changed_config

        changed_config(folder, overrides)
    summary = read_summary(folder)
    score = f"{summary.metric} {format_score(summary.value)}"
    text = f"{folder}: the training is finished, {score}; next: encsearch promote {folder}"
    emit({"folder": str(folder), **asdict(summary)}, as_json, text)
