"""`encsearch data import|scenes|check|stats`."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.text import format_count, format_duration, format_percent, format_share

if TYPE_CHECKING:
    from encsearch.data.importers.pairs import PairSettings
    from encsearch.data.importers.plan import Plan
    from encsearch.data.importers.write import OnBad
    from encsearch.data.manifest import Manifest
    from encsearch.data.statistics import Drift


@click.group()
def data() -> None:
    """Import, generate, check and describe data sets."""


@data.group("import")
def import_() -> None:
    """Import a data set into a Parquet store.

    SOURCE is a folder, unpacked or with the set's official archives in it, or one archive. What was
    understood is printed before anything is written; --dry-run stops there.
    """


_ANY = click.Path(path_type=Path)
Command = Callable[..., None]


def _common_options(command: Command) -> Command:
    for option in reversed(
        [
            click.argument("source", type=_ANY),
            click.argument("store", type=_ANY),
            click.option("--limit", type=click.IntRange(1), help="Samples a split at most, evenly spaced."),
            click.option(
                "--on-bad",
                default="fail",
                show_default=True,
                type=click.Choice(["fail", "skip"]),
                help="What to do about a sample that cannot be used; skipped ones are named in the manifest.",
            ),
            click.option(
                "--bad-limit",
                default=0.05,
                show_default=True,
                type=click.FloatRange(0, 1),
                help="Share of a split that may be skipped.",
            ),
            click.option(
                "--processes", type=click.IntRange(1, 256), help="That decode and write; default: the CPUs."
            ),
            click.option(
                "--dry-run", is_flag=True, help="Write nothing but a sheet of four overlays beside STORE."
            ),
        ]
    ):
        command = option(command)
    return command


def _set_command(name: str, text: str, *options: Callable[[Command], Command]) -> None:
    """Add the command that imports a public data set."""

    @_common_options
    @click.option("--also", multiple=True, type=_ANY, help="A further folder or archive of the set.")
    def command(source: Path, also: tuple[Path, ...], **given: Any) -> None:
        from encsearch.data.importers.sets import SetOptions, plan_set

        chosen = SetOptions(with_sbd=given.pop("with_sbd", False), background=given.pop("background", False))
        _import(
            lambda scratch: plan_set(name, (source, *also), scratch, chosen, on_bad=given["on_bad"]), **given
        )

    for option in options:
        command = option(command)
    import_.command(name, help=text)(command)


_set_command(
    "voc",
    "Import PASCAL VOC 2012: 20 classes and the background.",
    click.option("--with-sbd", is_flag=True, help="Add SBD's masks to train: 10,582 samples."),
)
_set_command(
    "pascal-context",
    "Import PASCAL-Context, 59 classes, from trainval_merged.json or the .mat files.",
    click.option("--background", is_flag=True, help="Make the background a class: 60 classes."),
)
_set_command("ade20k", "Import ADE20K (the scene parsing challenge of 2016): 150 classes.")
_set_command("cityscapes", "Import Cityscapes, fine annotations: 19 classes.")
_set_command("coco-stuff", "Import COCO-Stuff 164k: 171 classes.")
_set_command(
    "camvid", "Import CamVid, the SegNet tutorial's grey masks or the original's colours: 11 classes."
)


def _label_options(command: Command) -> Command:
    for option in reversed(
        [
            click.option("--classes", help="Names of the mask values 0, 1, ..., comma-separated."),
            click.option(
                "--labels", type=_ANY, help="Table (CSV, JSON) of mask values: value, name, train_id."
            ),
            click.option(
                "--colours",
                type=_ANY,
                help="Table (CSV, JSON) of RGB masks: red, green, blue, name, train_id.",
            ),
            click.option("--ignore", multiple=True, type=click.IntRange(0, 65535), help="A value to ignore."),
            click.option(
                "--split",
                "split_lists",
                multiple=True,
                metavar="NAME=FILE",
                help="A split by a list of names, one a line.",
            ),
            click.option(
                "--val-fraction",
                default=0.2,
                show_default=True,
                help="Share for val, without lists and folders.",
            ),
            click.option("--test-fraction", default=0.0, show_default=True, help="Share for test."),
            click.option(
                "--group",
                help="Regular expression: samples in whose name it finds the same stay in one split.",
            ),
        ]
    ):
        command = option(command)
    return command


@import_.command()
@_common_options
@click.option("--images", help="Pattern of the images below SOURCE, such as 'frames/{id}.jpg'.")
@click.option("--masks", help="Pattern of the masks, such as 'frames/{id}_mask.png'.")
@_label_options
def folder(source: Path, images: str | None, masks: str | None, **given: Any) -> None:
    """Import any folder of images and masks.

    Without patterns: images/ and masks/ with files of the same names, in split folders or not.
    """
    from encsearch.data.importers.folder import plan_folder

    settings = _pair_settings(given)
    _import(
        lambda scratch: plan_folder(
            source,
            settings,
            images=images,
            masks=masks,
            on_bad=given["on_bad"],
            processes=given["processes"] or _num_cpus(),
            scratch=scratch,
        ),
        **given,
    )


@import_.command()
@_common_options
@click.option("--image-column", help="Column of the images; default: image, img, ...")
@click.option("--mask-column", help="Column of the masks; default: annotation, label, mask, ...")
@_label_options
def parquet(source: Path, image_column: str | None, mask_column: str | None, **given: Any) -> None:
    """Import Parquet files with an image and a mask column, as Hugging Face's datasets have them."""
    from encsearch.data.importers.parquet import plan_parquet

    settings = _pair_settings(given)
    _import(
        lambda scratch: plan_parquet(
            source,
            settings,
            image_column=image_column,
            mask_column=mask_column,
            on_bad=given["on_bad"],
            processes=given["processes"] or _num_cpus(),
            scratch=scratch,
        ),
        **given,
    )


def _pair_settings(given: dict[str, Any]) -> "PairSettings":
    """Take the options of `_label_options` out of `given`."""
    from encsearch.data.importers.pairs import PairSettings

    classes = given.pop("classes")
    names = tuple(name.strip() for name in classes.split(",")) if classes is not None else None
    if names and "" in names:
        raise click.BadParameter(f"{classes!r} has an empty class name", param_hint="--classes")
    lists: dict[str, Path] = {}
    for item in given.pop("split_lists"):
        name, equals, file = item.partition("=")
        if not (name and equals and file) or name in lists:
            raise click.BadParameter(
                f"{item!r} is not of the form train=FILE, once each", param_hint="--split"
            )
        lists[name] = Path(file)
    return PairSettings(
        classes=names,
        split_lists=lists,
        **{
            name: given.pop(name)
            for name in ("labels", "colours", "ignore", "val_fraction", "test_fraction", "group")
        },
    )


def _import(
    make_plan: "Callable[[Path], Plan]",
    *,
    store: Path,
    limit: int | None,
    on_bad: "OnBad",
    bad_limit: float,
    processes: int | None,
    dry_run: bool,
) -> None:
    """Plan an import, say what was understood, and write the store unless it is a dry run."""
    from encsearch.data.importers.sheet import read_planned, read_stored, save_sheet
    from encsearch.data.importers.write import ImportSettings, import_scratch, write_plan
    from encsearch.errors import UserError
    from encsearch.files import check_free

    check_free(store)
    with import_scratch(store, keep=not dry_run) as scratch:
        plan = make_plan(scratch).limited(limit)
        for line in plan.describe():
            say(line)
        if dry_run:
            path = store.absolute().with_name(f"{store.name}-sheet.png")
            sheet = save_sheet(read_planned(plan), plan.info, path)
            say(f"dry run: nothing was written but {sheet}")
            return
        settings = ImportSettings(on_bad, bad_limit, processes or _num_cpus(), _Ticker())
        manifest = write_plan(plan, store, settings)
    if manifest.origin:
        for line in manifest.origin.quarantine:
            say(f"skipped: {line}")
    try:
        # Not what the plan names: the archives that were unpacked for it are deleted.
        save_sheet(read_stored(store), manifest.info, store / "sheet.png")
    except UserError as error:
        say(f"warning: the store is whole, but has no sheet.png: {error}")
    _say_written(manifest, store)


class _Ticker:
    """Says how far an import is, at most every few seconds."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done  # of a resumed import some are done already
        if now - self._said < self.EVERY_S or done == total:
            return
        self._said = now
        rate = (done - self._first) / (now - self._started)
        left = f", {format_duration((total - done) / rate)} left" if rate else ""
        say(f"{format_count(done)} of {format_count(total, 'sample')}{left}")


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0))


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
@click.option("--html", type=_ANY, help="Also write a page: charts, the rarest classes, leaks, origin.")
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
        f"warning: {name} has no pixel of {', '.join(absent)}"
        for name, absent in facts.absent.items()
        if absent
    ]
    if html:
        say(f"wrote {write_page(facts, opened, html)}")
    emit(asdict(facts), as_json, "\n".join([table(header, rows), *lines]))


def _describe(drift: "Drift") -> str:
    return (
        f"{format_share(drift.distance)} of their pixels' classes, most in {drift.largest}: "
        f"{format_share(drift.shares[0])} and {format_share(drift.shares[1])}"
    )


def _say_written(manifest: "Manifest", store: Path) -> None:
    counts = ", ".join(f"{name} {format_count(split.num_samples)}" for name, split in manifest.splits.items())
    classes = format_count(len(manifest.info.classes), "class")
    say(f"wrote {store}: {counts}; {classes}; {manifest.fingerprint[:12]}")
