"""`encsearch data import|scenes|check|stats`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.importing import import_, say_written
from encsearch.text import format_count, format_names, format_percent, format_share

if TYPE_CHECKING:
    from encsearch.data.statistics import Drift


@click.group()
def data() -> None:
    """Import, generate, check and describe data sets."""


data.add_command(import_)


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
    say_written(manifest, store)


@data.command()
@click.argument("store")
@json_option
def check(store: str, as_json: bool) -> None:
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
@click.argument("store")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Also write a page: charts, the rarest classes, leaks, origin.",
)
@json_option
def stats(store: str, html: Path | None, as_json: bool) -> None:
    """Classes, which of them come together, how the splits differ, leaks, sizes; no image is decoded."""
    from encsearch.data.store import Store
    from encsearch.report.dataset import find_facts, write_page

    opened = Store(store)
    facts = find_facts(opened)
    names = list(facts.splits)
    header = ["class", *(f"{name}: % of {kind}" for name in names for kind in ("images", "pixels"))]
    rows = [
        [
            facts.splits[names[0]].classes[index].name,
            *(
                format_percent(share)
                for name in names
                for one in [facts.splits[name].classes[index]]
                for share in (one.image_share, one.pixel_share)
            ),
        ]
        for index in range(len(opened.info.classes))
    ]
    lines = [
        f"{name}: {format_count(stats.num_samples, 'image')} of "
        f"{format_count(len(stats.sizes), 'size')}, {format_share(stats.ignored_share)} of the pixels ignored"
        for name, stats in facts.splits.items()
    ]
    lines += [f"{drift.split} and {drift.other} differ in {_describe(drift)}" for drift in facts.drift]
    lines += [f"warning: {line}" for line in facts.leaks]
    lines += [
        f"warning: {name} has no pixel of {format_names(absent)}"
        for name, absent in facts.absent.items()
        if absent
    ]
    if html:
        say(f"wrote {write_page(facts, opened, html)}")
    emit(asdict(facts), as_json, "\n".join([table(header, rows), *lines]))


def _describe(drift: "Drift") -> str:
    text = f"{format_share(drift.distance)} of their pixels' classes"
    if not drift.distance:
        return text
    shares = " and ".join(map(format_share, drift.shares))
    return f"{text}, most in {drift.largest}: {shares}"
