"""`encsearch predict`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import emit, json_option, say
from encsearch.cli.models import OVERRIDE, device_option, fetch, model_argument
from encsearch.errors import UserError
from encsearch.text import format_count

if TYPE_CHECKING:
    from encsearch.inference.label_files import Labels

IMAGES_A_LINE = 50  # of progress, where there is no terminal


@click.command()
@model_argument
@click.argument("arguments", nargs=-1, required=True, metavar="IMAGES... [PATH=VALUE]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--batch-size",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images at once, of consecutive images of one size.",
)
@click.option(
    "--as-ids", is_flag=True, help="Write the data set's own ids, for its official tools, not class numbers."
)
@click.option("--skip-bad", is_flag=True, help="Leave out damaged images instead of refusing all images.")
@device_option
@json_option
def predict(
    model: str,
    arguments: tuple[str, ...],
    out: Path,
    batch_size: int,
    as_ids: bool,
    skip_bad: bool,
    device: str,
    as_json: bool,
) -> None:
    """Segment IMAGES (files, or folders with their sub-folders) with MODEL.

    Writes NAME.png, a palette PNG of class numbers, and NAME.overlay.png, the picture under its classes'
    colours; sub-folders are kept apart. PATH=VALUE changes the eval section of its recipe, as in
    eval.flip=true; write ./a.b=c for a file of such a name.
    """
    from encsearch.cli.progress import progress
    from encsearch.inference.label_files import find_damaged, find_images, write_labels
    from encsearch.inference.predictor import Predictor

    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    if len(overrides) == len(arguments):
        raise UserError("no images; name files or folders before the overrides")
    paths = [Path(argument) for argument in arguments if not OVERRIDE.match(argument)]
    files, left_out = find_images(paths, out)
    for reason in left_out:
        say(f"left out: {reason}")
    with progress("loading the model"):
        predictor = Predictor(fetch(model, overrides), device, batch_size)
    damaged = find_damaged(files, skip_bad)
    for reason in damaged.values():
        say(f"left out: {reason}")
    sound = [file for file in files if file.image not in damaged]
    rows = []
    with _progress(len(sound)) as advance:
        for found in write_labels(predictor, sound, as_ids=as_ids):
            rows.append(_row(found))
            advance()
    skipped = [{"image": str(image), "skipped": reason} for image, reason in damaged.items()]
    text = "\n".join(f"{row['image']} -> {row['labels']}: {', '.join(row['classes'])}" for row in rows)
    emit(rows + skipped, as_json, text)


def _row(found: "Labels") -> dict[str, Any]:
    file = found.file
    return {
        "image": str(file.image),
        "labels": str(file.labels),
        "overlay": str(file.overlay),
        "classes": list(found.classes),
        "presence": found.presence,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, elsewhere a line after every IMAGES_A_LINE images; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("images", total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % IMAGES_A_LINE == 0:
            say(f"{format_count(done)} of {format_count(total, 'image')}")

    yield advance
