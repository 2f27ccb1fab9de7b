"""`encsearch config` and `encsearch schema`."""

import click

from encsearch.cli.console import emit, json_option


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@json_option
def config(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE with its OVERRIDES (path=value) and every default resolved."""
    from encsearch.config import load_config, to_yaml

    resolved = load_config(recipe, overrides)
    emit(resolved.model_dump(mode="json"), as_json, to_yaml(resolved).rstrip())


@click.command()
@click.option("--paths", "only_paths", is_flag=True, help="One config path a line instead.")
def schema(only_paths: bool) -> None:
    """Print the JSON schema of a recipe, for editors that complete YAML."""
    from encsearch.config import json_schema, paths

    emit(json_schema(), as_json=not only_paths, text="\n".join(paths()))
