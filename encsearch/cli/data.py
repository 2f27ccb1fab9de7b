"""`encsearch data import|scenes|check|stats`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.text import format_count, format_percent

if TYPE_CHECKING:
    from encsearch.data.manifest import Manifest


@click.group()
def data() -> None:
    """Import, generate, check and describe data sets."""


@data.group("import")
def import_() -> None:
    """Import a data set into a Parquet store."""


@import_.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
def camvid(source: Path, store: Path) -> None:
    """Import CamVid: train/, trainannot/, val/, valannot/ and optionally test/, testannot/."""
    from encsearch.data.importers.camvid import import_camvid

    _say_written(import_camvid(source, store), store)


@import_.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--classes", help="Class names, comma-separated; default: SOURCE/classes.txt.")
@click.option(
    "--val-fraction", default=0.2, show_default=True, help="Share for val if there are no train/ and val/."
)
def folder(source: Path, store: Path, classes: str | None, val_fraction: float) -> None:
    """Import pairs of files with the same name in images/ and masks/, which may contain train/ and val/."""
    from encsearch.data.importers.folder import import_folder

    names = [name.strip() for name in classes.split(",")] if classes is not None else None
    if names and "" in names:
        raise click.BadParameter(f"{classes!r} has an empty class name", param_hint="--classes")
    _say_written(import_folder(source, store, classes=names, val_fraction=val_fraction), store)


@data.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--train", "num_train", default=2000, show_default=True, type=click.IntRange(1))
@click.option("--val", "num_val", default=400, show_default=True, type=click.IntRange(1))
@click.option("--test", "num_test", default=400, show_default=True, type=click.IntRange(1))
@click.option("--size", default=64, show_default=True, type=click.IntRange(64, 512), help="Image side, px.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def scenes(store: Path, num_train: int, num_val: int, num_test: int, size: int, seed: int) -> None:
    """Generate `scenes`: look-alike classes that only the rest of the image distinguishes."""
    from encsearch.data.scenes import generate_scenes

    manifest = generate_scenes(
        store, num_train=num_train, num_val=num_val, num_test=num_test, size=size, seed=seed
    )
    _say_written(manifest, store)


@data.command()
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def check(store: Path, as_json: bool) -> None:
    """Verify every checksum, decode every sample, look for leaks; exit code 2 if something is wrong."""
    from encsearch.data.audit import check_store
    from encsearch.data.manifest import StoreError

    result = check_store(store)
    lines = [*(f"problem: {p}" for p in result.problems), *(f"warning: {w}" for w in result.warnings)]
    counts = ", ".join(f"{name} {format_count(count)}" for name, count in result.counts.items())
    emit(asdict(result), as_json, "\n".join([*lines, f"{store}: {counts}"]))
    if result.problems:
        raise StoreError(
            f"{store}: {format_count(len(result.problems), 'problem')}; import the data set again"
        )


@data.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--split", default="train", show_default=True)
@json_option
def stats(store: Path, split: str, as_json: bool) -> None:
    """Count the pixels and images of each class in a split."""
    from encsearch.data.store import Store

    result = Store(store).stats(split)
    rows = [
        (c.name, format_count(c.pixels), format_percent(c.pixel_share), format_percent(c.image_share))
        for c in result.classes
    ]
    text = table(["class", "pixels", "% of pixels", "% of images"], rows)
    emit(asdict(result), as_json, text)


def _say_written(manifest: "Manifest", store: Path) -> None:
    counts = ", ".join(f"{name} {format_count(split.num_samples)}" for name, split in manifest.splits.items())
    classes = format_count(len(manifest.info.classes), "class")
    say(f"wrote {store}: {counts}; {classes}; {manifest.fingerprint[:12]}")
