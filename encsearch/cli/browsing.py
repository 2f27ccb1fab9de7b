"""`encsearch ui`."""

from pathlib import Path

import click

from encsearch.cli.console import emit, json_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@json_option
def ui(folder: Path | None, as_json: bool) -> None:
    """Print the command that opens MLflow, and the links to the run or sweep in FOLDER."""
    from encsearch.workflow.links import links_of

    links = links_of(folder)
    emit(links, as_json, "\n".join(f"{name}: {link}" for name, link in links.items()))
