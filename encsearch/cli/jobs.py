"""`encsearch submit` and `encsearch jobs list|logs|status|stop`."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.text import format_time

address_option = click.option(
    "--address", help="Job server, as http://HOST:8265; default: RAY_ADDRESS, else a cluster on this machine."
)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@address_option
@click.option("--no-wait", is_flag=True, help="Return when the job is submitted; do not follow it.")
@click.option("--id", "submission_id", help="Name of the job; default: one that Ray makes.")
@click.option(
    "--env", "variables", multiple=True, metavar="NAME=VALUE", help="Variable to set in the job; repeatable."
)
@click.argument("command", type=click.Choice(["train", "sweep", "ablate", "resume", "promote"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    address: str | None,
    no_wait: bool,
    submission_id: str | None,
    variables: tuple[str, ...],
    command: str,
    arguments: tuple[str, ...],
) -> None:
    """Run `encsearch COMMAND ARGUMENTS` on a Ray cluster in a copy of this folder; exit as it exits.

    .git, data, runs and files that git ignores are not sent. MLFLOW_* variables are.
    """
    from encsearch.submit.client import follow
    from encsearch.submit.client import submit as run

    environment = dict(_variable(item) for item in variables)
    if "MLFLOW_TRACKING_URI" not in os.environ | environment:
        say("warning: MLFLOW_TRACKING_URI is not set: the job records into its own scratch folder")
    job_id = run(
        ["python", f"jobs/{command}.py", *arguments],
        address=address,
        working_dir=Path.cwd(),
        env=environment,
        submission_id=submission_id,
    )
    say(f"submitted {job_id}")
    if no_wait:
        print(job_id)
        return
    sys.exit(follow(job_id, address=address))


@click.group()
def jobs() -> None:
    """List, follow and stop jobs of a Ray cluster."""


@jobs.command("list")
@address_option
@json_option
def list_(address: str | None, as_json: bool) -> None:
    """List all jobs of the cluster, the newest first."""
    from encsearch.submit.client import list_jobs

    found = list_jobs(address=address)
    rows = [(job.id, job.status, format_time(job.started), job.entrypoint) for job in found]
    emit([asdict(job) for job in found], as_json, table(["job", "status", "started", "command"], rows))


@jobs.command()
@click.argument("job_id")
@click.option("--follow", "following", is_flag=True, help="Go on until the job is over; exit as it exits.")
@address_option
def logs(job_id: str, following: bool, address: str | None) -> None:
    """Print what a job has written."""
    from encsearch.submit import client

    if following:
        sys.exit(client.follow(job_id, address=address))
    print(client.logs(job_id, address=address), end="")


@jobs.command()
@click.argument("job_id")
@address_option
@json_option
def status(job_id: str, address: str | None, as_json: bool) -> None:
    """Show the state of a job."""
    from encsearch.submit import client

    job = client.status(job_id, address=address)
    emit(asdict(job), as_json, f"{job.id}: {job.status} {job.message}".strip())


@jobs.command()
@click.argument("job_id")
@address_option
def stop(job_id: str, address: str | None) -> None:
    """Ask a job to end."""
    from encsearch.submit import client

    say(f"{job_id}: asked to stop" if client.stop(job_id, address=address) else f"{job_id}: was over already")


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{item!r} is not of the form NAME=VALUE", param_hint="--env")
    return name, value
