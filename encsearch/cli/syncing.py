"""`encsearch sync`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table

if TYPE_CHECKING:
    from encsearch.workflow.sync import Synced

WAIT_S = 60.0


@click.command()
@click.argument(
    "folders",
    metavar="FOLDER...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=WAIT_S,
    show_default=True,
    help="How long to go on with a store that fails.",
)
@json_option
def sync(folders: tuple[Path, ...], wait_s: float, as_json: bool) -> None:
    """Send to MLflow what a killed job, or an outage, has left unsent.

    FOLDER is a job's, or one of jobs such as runs/. Runs whose process is dead are closed as KILLED. A job
    that is running is left alone. Exit code 1 if something could not be sent, 3 if MLflow cannot be used.
    """
    from encsearch.workflow.sync import sync as run

    done = run(folders, wait_s, say)
    header = ["job", "sent", "refused", "closed", "unsent", ""]
    emit([asdict(job) for job in done], as_json, table(header, map(_row, done)))
    if any(job.reason and not job.is_alive for job in done):
        sys.exit(1)


def _row(job: "Synced") -> list[object]:
    return [job.folder, job.sent, job.refused, len(job.reaped), job.unsent, job.reason]
