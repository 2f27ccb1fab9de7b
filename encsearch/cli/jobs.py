"""`encsearch submit` and `encsearch jobs list|status|logs|wait|stop|links`."""

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.models import OVERRIDE
from encsearch.cli.training import folder_name
from encsearch.errors import UserError
from encsearch.text import NOTHING, format_duration
from encsearch.tracking.uris import RUN_ID

if TYPE_CHECKING:
    from encsearch.config import Config
    from encsearch.submit.client import ClusterJob

address_option = click.option(
    "--address", help="Job server, as http://HOST:8265; default: RAY_ADDRESS, else a cluster on this machine."
)
COMMANDS = ("train", "sweep", "ablate", "resume", "promote", "eval", "predict", "export", "data")
NAMED = ("train", "sweep", "ablate")  # whose folder has the job's name
# Parameters of these commands that are paths, beside what a recipe names.
PATHS = ("folder", "source", "model", "store", "out", "prior_from", "warm_start_from", "also")
FILES = ("model.weights", "train.init_from")  # of a recipe; no address will do
RECIPE_PATHS = ("data.store", *FILES)
MAX_COMMAND = 60  # characters of a job's command in a table


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@address_option
@click.option("--no-wait", is_flag=True, help="Return when the job is submitted; do not follow it.")
@click.option(
    "--name", "--id", callback=folder_name, help="Of the job; one that has ended under this name goes on."
)
@click.option(
    "--env", "variables", multiple=True, metavar="NAME=VALUE", help="Variable to set in the job; repeatable."
)
@click.argument("command", type=click.Choice(COMMANDS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    address: str | None,
    no_wait: bool,
    name: str | None,
    variables: tuple[str, ...],
    command: str,
    arguments: tuple[str, ...],
) -> None:
    """Run `encsearch COMMAND ARGUMENTS` on a Ray cluster in a copy of this folder; exit as it exits.

    The recipe and the arguments are checked here first. Stores, outputs and models are named by absolute
    paths, or addresses, that every node sees. .git, data, runs and files that git ignores are not sent.
    MLFLOW_TRACKING_URI, _USERNAME, _PASSWORD and _TOKEN, MLFLOW_EXPERIMENT_NAME and ENCSEARCH_NOTIFY_URL are,
    and Ray shows them to whoever may use its job server.

    A train, sweep or ablate with --name has its folder of that name below --out. Submitted again under it,
    the job is followed if it runs, and else goes on from what it has saved.
    """
    from encsearch.submit.client import follow, job_environment
    from encsearch.submit.client import submit as run
    from encsearch.submit.package import package_files

    given, files = _parse(command, arguments), package_files(Path.cwd())
    _check_places(given, files.keys())
    if "recipe" in given:
        _check_code(given["recipe"], given.get("overrides", ()), files.keys())
    environment = job_environment(dict(_variable(item) for item in variables))
    if name and command in NAMED and not given.get("name"):
        arguments = ("--name", name, *arguments)
    job_id, is_new = run(
        ["python", "-m", "encsearch", command, *arguments],
        address=address,
        working_dir=Path.cwd(),
        files=files,
        environment=environment,
        name=name,
    )
    say(f"submitted {job_id}" if is_new else f"{job_id} runs already")
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
    rows = [(job.id, job.status, _age(job), job.exit_code, _command(job)) for job in found]
    emit(
        [asdict(job) for job in found],
        as_json,
        table(["job", "state", "for", "exit code", "command"], rows),
    )


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
def wait(job_id: str, address: str | None) -> None:
    """Wait until a job is over, and exit as it exits."""
    from encsearch.submit import client

    sys.exit(client.wait(job_id, address=address))


@jobs.command()
@click.argument("job_id")
@address_option
@json_option
def links(job_id: str, address: str | None, as_json: bool) -> None:
    """Print the pages of a job: Ray's dashboard, and the MLflow server of its records."""
    from encsearch.submit import client

    found = client.status(job_id, address=address).links
    emit(dict(found), as_json, "\n".join(f"{name}: {link}" for name, link in found.items()))


@jobs.command()
@click.argument("job_id")
@address_option
def stop(job_id: str, address: str | None) -> None:
    """Ask a job to end."""
    from encsearch.submit import client

    say(f"{job_id}: asked to stop" if client.stop(job_id, address=address) else f"{job_id}: was over already")


def _age(job: "ClusterJob") -> str:
    """How long a job has run, or ran."""
    return NOTHING if job.started is None else format_duration((job.ended or time.time()) - job.started)


def _command(job: "ClusterJob") -> str:
    text = job.entrypoint.removeprefix("exec python -m ")
    return text if len(text) <= MAX_COMMAND else f"{text[: MAX_COMMAND - 3]}..."


def _parse(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The values that a command line gives, as they are written, by parameter.

    Raises what the command would raise of its arguments and of its recipe, but for what only the cluster has.
    """
    from encsearch.cli.main import cli
    from encsearch.config import load_config

    group: click.Command = cli
    context, rest = click.Context(cli, info_name="encsearch"), [command, *arguments]
    # For the whole process it would turn stdout to stderr.
    rest = [text for text in rest if text != "--json"]
    while isinstance(group, click.Group):
        if not rest:
            raise click.UsageError(
                f"{command}: its command is missing, as in `encsearch {command} check`", context
            )
        name, found, rest = group.resolve_command(context, rest)
        assert found is not None
        group, context = found, click.Context(found, info_name=name, parent=context)
    given, _, _ = group.make_parser(context).parse_args(list(rest))
    group.make_context(str(context.info_name), list(rest), parent=context.parent)
    given = {name: value for name, value in given.items() if isinstance(value, str | list | tuple)}
    takes = {parameter.name for parameter in group.params}
    if "recipe" in given:
        config = load_config(given["recipe"], given.get("overrides", ()))
        given |= {path: _files_of(config, path) for path in RECIPE_PATHS}
    if "arguments" in given:
        given["images"] = [text for text in given["arguments"] if not OVERRIDE.match(text)]
    if "recipe" in given and "out" in takes:
        given.setdefault("out", "runs")
    return given


def _check_code(recipe: str, overrides: Sequence[str], files: Collection[str]) -> None:
    """Raise UserError for a module of own parts that does not travel."""
    from encsearch.config import load_config, named_parts
    from encsearch.parts import NoModuleError, code_from, find_code

    config = load_config(recipe, overrides)
    if config.code:
        raise UserError(
            f"code={config.code}: own parts travel with the folder that a job is submitted from; submit from "
            f"{config.code}, and leave code out"
        )
    for name in named_parts(config):
        try:
            with code_from(Path.cwd()):
                code = find_code([name])
        except NoModuleError:
            say(f"{name}: no such module here, so the cluster must have it installed")
            continue
        for path in code.files:
            if code.root.resolve() != Path.cwd() or path not in files:
                raise UserError(
                    f"{code.root / path}: {name} is made of it, and it does not travel; put it below this "
                    "folder, where git does not ignore it"
                )


def _files_of(config: "Config", path: str) -> list[str]:
    """The files that a recipe names at a path: its own, those that are searched, and those of an ablation."""
    from encsearch.config import IMAGENET, flatten
    from encsearch.parts import is_part

    space = config.search.space if config.search else {}
    rows = config.ablate.rows.values() if config.ablate else ()
    named = [flatten(config)[path], *(space[path].values if path in space else ())]
    named += [row[path] for row in rows if path in row]
    return [name for name in named if isinstance(name, str) and name != IMAGENET and not is_part(name)]


def _check_places(given: Mapping[str, Any], files: Collection[str]) -> None:
    """Raise UserError for a path that means nothing on the cluster: a relative one that does not travel."""
    for name, place in _places(given):
        travels = any(file == place or file.startswith(f"{place.rstrip('/')}/") for file in files)
        if travels and name != "out":
            continue
        what = name if "." in name else f"--{name.replace('_', '-')}" if name == "out" else name.upper()
        address = "" if name in FILES else ", or an address"
        raise UserError(
            f"{what} {place} is relative, and the job runs in a copy of this folder that lacks it and is "
            f"deleted; give an absolute path that every node sees{address}"
        )


def _places(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The relative paths among the values, with their parameter."""
    names = (*RECIPE_PATHS, *PATHS, "images")
    values = [(name, given[name]) for name in names if given.get(name)]
    if "recipe" in given and Path(given["recipe"]).is_file():
        values.append(("recipe", given["recipe"]))
    for name, value in values:
        for text in [value] if isinstance(value, str) else value:
            is_elsewhere = ":/" in text or Path(text).is_absolute() or RUN_ID.fullmatch(text)
            if not is_elsewhere:
                yield name, os.path.relpath(text)


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{item!r} is not of the form NAME=VALUE", param_hint="--env")
    return name, value
