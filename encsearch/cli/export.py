"""`encsearch export`."""

import re
from dataclasses import asdict
from pathlib import Path

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.models import model_argument
from encsearch.errors import UserError


@click.command()
@model_argument
@click.option(
    "--format",
    "format_",
    type=click.Choice(["torch", "onnx", "safetensors", "all"]),
    default="all",
    show_default=True,
    help="torch: model.pt2; safetensors: the bundle.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder for the files.")
@click.option("--size", metavar="HxW", help="Fix height and width, px; default: any size.")
@json_option
def export(model: str, format_: str, out: Path, size: str | None, as_json: bool) -> None:
    """Write MODEL (a run's folder, a bundle, or models:/NAME@ALIAS) for other programs, and check the files.

    The graphs take RGB in 0..1, and model.json tells the rest.
    """
    from encsearch.export import FORMATS, export_bundle
    from encsearch.predict import fetch_bundle
    from encsearch.workflow.folder import bundle_source

    fixed = _size(size) if size else None
    formats = [name for name in FORMATS if format_ in (name, "all")]
    done = export_bundle(fetch_bundle(bundle_source(model)), out, formats, fixed)
    for file, reason in done.unchecked.items():
        say(f"warning: {file} was not compared with the model: {reason}")
    rows = [(check.file, "x".join(map(str, check.shape)), f"{check.difference:.1e}") for check in done.checks]
    compared = f"{table(['file', 'images', 'difference'], rows)}\n" if rows else ""
    emit({"out": str(out), **asdict(done)}, as_json, f"{compared}{out}: {', '.join(done.files)}")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise UserError(f"size={text} is not of the form HEIGHTxWIDTH in px, as in 480x640")
    height, width = map(int, found.groups())
    return height, width
