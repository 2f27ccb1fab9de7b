"""Output of commands: lines for people on stderr, results on stdout."""

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from encsearch.errors import UserError, for_terminal
from encsearch.redaction import without_secrets
from encsearch.text import NOTHING, format_number

_document: TextIO | None = None  # the process's stdout, once it is kept for the result


def keep_stdout(context: click.Context, parameter: click.Parameter, as_json: bool) -> bool:
    """A click callback: whatever but `emit` writes on stdout, as Ray does, goes to stderr from now on."""
    global _document
    try:
        is_process_stdout = sys.stdout.fileno() == 1  # not that of a test
    except io.UnsupportedOperation:
        is_process_stdout = False
    if as_json and is_process_stdout:
        sys.stdout.flush()
        _document = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=keep_stdout, help="Machine-readable result on stdout."
)


def absolute(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """A click callback: make a path absolute, so that it holds when the working directory is deleted."""
    return value.absolute() if value else None


def say(line: str) -> None:
    """Print for people, on stderr, without secrets; names of files and classes command no terminal."""
    print(for_terminal(line), file=sys.stderr, flush=True)


def emit(result: Any, as_json: bool, text: str) -> None:
    """Print the command's result on stdout: as JSON, or as text for people.

    Raises UserError where it cannot be written, as to a full disk.
    """
    shown = json.dumps(_for_json(result), indent=2, allow_nan=False) if as_json else for_terminal(text)
    out = _document or sys.stdout
    try:
        print(shown, file=out, flush=True)
    except BrokenPipeError:  # whoever reads has enough, which click knows
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # or Python tries again when it ends
        raise UserError(f"stdout: the result cannot be written ({error.strerror})") from None


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a plain text table; numbers are aligned right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        parts = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _for_json(value: Any) -> Any:
    """Remove secrets, and replace NaN and infinity, of diverged trainings, by null: JSON has neither."""
    if isinstance(value, Mapping):
        return {name: _for_json(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(child) for child in value]
    if isinstance(value, str):
        return without_secrets(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    return format_number(value) if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix(" %").replace(",", ""))
    except ValueError:
        return text == NOTHING
    return True
