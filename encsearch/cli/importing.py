"""`encsearch data import`."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import say
from encsearch.errors import UserError
from encsearch.text import format_count, format_duration

if TYPE_CHECKING:
    from encsearch.data.importers.pairs import PairSettings
    from encsearch.data.importers.plan import ImportPlan
    from encsearch.data.importers.write import OnBad
    from encsearch.data.manifest import Manifest


@click.group("import")
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
    make_plan: "Callable[[Path], ImportPlan]",
    *,
    store: Path,
    limit: int | None,
    on_bad: "OnBad",
    bad_limit: float,
    processes: int | None,
    dry_run: bool,
) -> None:
    """Plan an import, say what was understood, and write the store unless it is a dry run."""
    from encsearch.data.importers.sheet import read_planned, save_sheet
    from encsearch.data.importers.write import ImportSettings, import_store
    from encsearch.files import check_free

    plans: list[ImportPlan] = []

    def say_plan(scratch: Path) -> "ImportPlan":
        plans.append(make_plan(scratch).limited(limit))
        for line in plans[0].describe():
            say(line)
        return plans[0]

    if dry_run:
        check_free(store)
        with TemporaryDirectory() as scratch:
            plan = say_plan(Path(scratch))
            path = store.absolute().with_name(f"{store.name}-sheet.png")
            samples = read_planned(plan)
            if not samples:
                raise UserError(f"{plan.name}: no sample that was tried can be read; the import says why")
            sheet = save_sheet(samples, plan.info, path)
        say(f"dry run: nothing was written but {sheet}")
        return
    settings = ImportSettings(on_bad, bad_limit, processes or _num_cpus(), sheet=True, progress=_Ticker())
    manifest = import_store(store, say_plan, settings)
    if manifest.origin:
        for line in manifest.origin.quarantine:
            say(f"skipped: {line}")
    say_written(manifest, store)


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


def say_written(manifest: "Manifest", store: Path) -> None:
    """Say what a command has written."""
    counts = ", ".join(f"{name} {format_count(split.num_samples)}" for name, split in manifest.splits.items())
    classes = format_count(len(manifest.info.classes), "class")
    say(f"wrote {store}: {counts}; {classes}; {manifest.fingerprint[:12]}")
    from encsearch.data.statistics import find_gaps, split_stats

    if {"train", "val"} <= manifest.splits.keys():
        for gap in find_gaps(split_stats(store, manifest, "train"), split_stats(store, manifest, "val")):
            say(f"warning: {gap}")
