"""`encsearch promote`, `rollback` and `models`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.models import device_option
from encsearch.cli.training import overrides_argument
from encsearch.text import format_percent

if TYPE_CHECKING:
    from encsearch.workflow.models import Models
    from encsearch.workflow.promote import NewHolder


@click.command()
@click.argument("source")
@overrides_argument
@click.option("--to", "alias", help="Alias to move; default: the recipe's promote.alias.")
@click.option("--store", help="Store to compare on; default: the candidate's.")
@device_option
@json_option
def promote(
    source: str,
    overrides: tuple[str, ...],
    alias: str | None,
    store: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Register the best model of SOURCE (a job's folder or MLflow run id) and move the alias to it.

    A training that has not finished gives its best checkpoint.
    The current holder of the alias is scored on the same images first; exit code 4 unless the gate passes.
    PATH=VALUE changes the promote section of the recipe, as in promote.margin=0.01.
    """
    from encsearch.cli.progress import progress

    with progress("scoring the model, and the one that has the alias"):
        from encsearch.tracking.registry.fetch import describe_unfinished
        from encsearch.workflow.promote import promote as run

        if note := describe_unfinished(source):
            say(note)
        done = run(source, alias=alias, store=store, device=device, overrides=overrides)
    for line in done.notes:
        say(line)
    text = f"{done.uri} is now version {done.version}"
    text += f" (was {done.replaced})" if done.replaced else ""
    emit(asdict(done), as_json, f"{text}: {'; '.join(done.reasons)}\n{_format_place(done)}")


@click.command()
@click.argument("model")
@click.option("--to", "version", help="Version to go to; default: the one before.")
@click.option("--alias", default="champion", show_default=True, help="Alias to move.")
@json_option
def rollback(model: str, version: str | None, alias: str, as_json: bool) -> None:
    """Move the alias of MODEL back to the version that held it before."""
    from encsearch.workflow.promote import rollback as run

    done = run(model, alias=alias, version=version)
    for line in done.notes:
        say(line)
    text = f"{done.uri} is now version {done.version} (was {done.replaced or 'none'})"
    emit(asdict(done), as_json, f"{text}\n{_format_place(done)}")


@click.command()
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the registered models, their aliases and scores; with NAME also the decisions on that model."""
    from encsearch.workflow.models import models as run

    found = run(name)
    for line in found.warnings:
        say(f"warning: {line}")
    emit(asdict(found), as_json, _format_models(found))


def _format_place(done: "NewHolder") -> str:
    """Where the version is to be seen: a local store has no page until somebody opens it."""
    if done.store.startswith(("http://", "https://")):
        return f"registry: {done.link}"
    return f"registry: {done.store}; after `encsearch ui`: {done.link}"


def _format_models(found: "Models") -> str:
    if not found.versions:
        return "no models are registered"
    versions = table(
        ["model", "version", "alias", "since", "mIoU %", "run"],
        [
            (
                row.model,
                row.version,
                " ".join(row.aliases),
                " ".join(sorted(set(row.since.values()))),
                format_percent(row.mean_iou),
                row.run_id[:8],
            )
            for row in found.versions
        ],
    )
    if not found.decisions:
        return versions
    decisions = table(
        ["decision", "when", "who", "alias", "verdict", "from", "to", "mIoU %", "gain, points", "at least"],
        [
            (
                row.number,
                row.when,
                f"{row.who}@{row.host}",
                row.alias,
                row.verdict,
                row.source,
                row.target,
                format_percent(row.mean_iou),
                format_percent(row.gain, signed=True) + ("" if row.figure == "mIoU" else f" of {row.figure}"),
                format_percent(row.gain_lower, signed=True),
            )
            for row in found.decisions
        ],
    )
    return f"{versions}\n\n{decisions}"
