"""`encsearch predict`."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import emit, json_option, say
from encsearch.cli.models import OVERRIDE, bundle_with, device_option, model_argument
from encsearch.errors import UserError
from encsearch.files import beside
from encsearch.text import format_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from encsearch.inference.predictor import Prediction, Predictor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
OVERLAY = ".overlay.png"
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
    help="Neighbours of one size that go through the network together.",
)
@click.option("--skip-bad", is_flag=True, help="Leave damaged images out instead of refusing them all.")
@device_option
@json_option
def predict(
    model: str,
    arguments: tuple[str, ...],
    out: Path,
    batch_size: int,
    skip_bad: bool,
    device: str,
    as_json: bool,
) -> None:
    """Segment IMAGES (files, or folders with their sub-folders) with MODEL.

    Writes NAME.png, the label map, and NAME.overlay.png, the picture under its classes' colours; sub-folders
    are kept apart. PATH=VALUE changes the eval section of its recipe, as in eval.flip=true; write ./a.b=c for
    such a file.
    """
    from encsearch.inference.predictor import Predictor

    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    if len(overrides) == len(arguments):
        raise UserError("no images; name files or folders before the overrides")
    jobs = _jobs([Path(argument) for argument in arguments if not OVERRIDE.match(argument)], out)
    predictor = Predictor(bundle_with(model, overrides), device, batch_size)
    damaged = _damaged(jobs, skip_bad)
    for reason in damaged.values():
        say(f"left out: {reason}")
    rows = _segment(predictor, [job for job in jobs if job.image not in damaged])
    skipped = [{"image": str(image), "skipped": reason} for image, reason in damaged.items()]
    text = "\n".join(f"{row['labels']}: {', '.join(row['classes'])}" for row in rows)
    emit(rows + skipped, as_json, text)


@dataclass(frozen=True)
class Job:
    """An image file and the two that are made of it."""

    image: Path
    labels: Path

    @property
    def overlay(self) -> Path:
        return self.labels.with_name(self.labels.stem + OVERLAY)


def _jobs(paths: Sequence[Path], out: Path) -> list[Job]:
    """Every image once. Raises UserError if one is not there, or a result would overwrite another file."""
    jobs = [
        Job(file, out / file.relative_to(folder).with_suffix(".png"))
        for path in paths
        for folder, file in _images(path, out)
    ]
    taken = {job.image.resolve(): job.image for job in jobs}
    for job in jobs:
        for result in (job.labels, job.overlay):
            other = taken.setdefault(result.resolve(), result)
            if other is not result:
                raise UserError(
                    f"{job.image}: its result {result} would overwrite {other}; choose another --out, and "
                    "predict images of one name one by one"
                )
    return jobs


def _images(path: Path, out: Path) -> list[tuple[Path, Path]]:
    """(folder, file) of one image, or of those in a folder and below it, but no earlier results."""
    if not path.exists():
        raise UserError(f"{path}: no such image or folder of images")
    if not path.is_dir():
        return [(path.parent, path)]
    is_inside = path.resolve() in out.resolve().parents
    found = [
        (path, file)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not file.name.endswith(OVERLAY)
        and file.is_file()
        and not (is_inside and out.resolve() in file.resolve().parents)
    ]
    if not found:
        raise UserError(f"{path}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _damaged(jobs: Sequence[Job], skip_bad: bool) -> dict[Path, str]:
    """Each image is decoded before anything is written. Raises UserError for a damaged one, or if all are."""
    from encsearch.inference.predictor import read_image

    damaged: dict[Path, str] = {}
    for job in jobs:
        try:
            read_image(job.image)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}, or leave such images out with --skip-bad") from None
            damaged[job.image] = str(error)
    if len(damaged) == len(jobs):
        raise UserError(
            f"none of the {len(jobs)} images can be read; the first: {next(iter(damaged.values()))}"
        )
    return damaged


def _segment(predictor: "Predictor", jobs: Sequence[Job]) -> list[dict[str, Any]]:
    from encsearch.inference.predictor import read_image

    waiting: deque[tuple[Job, NDArray[np.uint8]]] = deque()  # read, and not yet segmented

    def pictures() -> "Iterator[NDArray[np.uint8]]":
        for job in jobs:
            pixels = read_image(job.image)
            waiting.append((job, pixels))
            yield pixels

    rows = []
    with _progress(len(jobs)) as advance:
        for found in predictor.segment(pictures()):
            job, pixels = waiting.popleft()
            rows.append(_write(job, pixels, found, predictor))
            advance()
    return rows


def _write(
    job: Job, pixels: "NDArray[np.uint8]", found: "Prediction", predictor: "Predictor"
) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    from encsearch.data.pictures import overlay

    palette = np.array(predictor.info.palette, dtype=np.uint8)
    _make_folder(job.labels.parent)
    _save(Image.fromarray(found.labels), job.labels)
    _save(Image.fromarray(overlay(pixels, found.labels, palette)), job.overlay)
    return {
        "image": str(job.image),
        "labels": str(job.labels),
        "overlay": str(job.overlay),
        "classes": [predictor.info.classes[int(label)] for label in np.unique(found.labels)],
        "presence": dict(found.presence or {}),
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a line now and then anywhere else; both on stderr."""
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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot make this folder ({error.strerror}); choose another --out"
        ) from None


def _save(picture: "Image", target: Path) -> None:
    """Whole or not at all, and through no link that somebody left in the folder."""
    try:
        with beside(target) as scratch:
            picture.save(scratch, "PNG")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None
