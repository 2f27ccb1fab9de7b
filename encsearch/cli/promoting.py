"""`encsearch promote`."""

from dataclasses import asdict

import click

from encsearch.cli.console import emit, json_option


@click.command()
@click.argument("source")
@click.option("--to", "alias", help="Alias to move; default: the recipe's promote.alias.")
@click.option("--store", help="Store to compare on; default: the candidate's.")
@json_option
def promote(source: str, alias: str | None, store: str | None, as_json: bool) -> None:
    """Register the best model of SOURCE (a run's folder or MLflow run id) and move the alias to it.

    The current holder of the alias is scored on the same data first; exit code 4 if it is as good.
    """
    from encsearch.workflow.promote import promote as run

    done = run(source, alias=alias, store=store)
    text = f"{done.uri} is now version {done.version}"
    text += f" (was {done.replaced})" if done.replaced else ""
    emit(asdict(done), as_json, f"{text}: {'; '.join(done.reasons)}\nregistry: {done.link}")
