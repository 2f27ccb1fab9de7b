"""`encsearch eval` and `predict`."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, percent, say, table
from encsearch.cli.training import overrides_argument
from encsearch.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from encsearch.bundle import Bundle
    from encsearch.metrics.summary import Evaluation

model_argument = click.argument("model")
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
OVERRIDE = re.compile(r"\w+(\.\w+)+=")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


@click.command("eval")
@model_argument
@overrides_argument
@click.option("--store", help="Store to score on; default: the one that the model was trained on.")
@click.option("--split", default="val", show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images at once; default: train.val_batch_size."
)
@device_option
@json_option
def eval_(
    model: str,
    overrides: tuple[str, ...],
    store: str | None,
    split: str,
    batch_size: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Score MODEL (a run's folder, a bundle, or models:/NAME@ALIAS) on every sample of a split.

    PATH=VALUE changes the eval section of its recipe, as in eval.scales=[0.75,1,1.25] eval.flip=true.
    """
    from encsearch.evaluation import score_bundle

    bundle = _bundle(model, overrides)
    store = store or bundle.config.data.store
    result = score_bundle(bundle, store, split, device=device, batch_size=batch_size)
    settings = bundle.config.eval.model_dump(mode="json")
    text = _report(result, bundle.info.classes, f"{store} {split}")
    place = {"store": store, "split": split, "eval": settings}
    emit({**asdict(result), "metrics": result.to_metrics(), **place}, as_json, text)


@click.command()
@model_argument
@click.argument("arguments", nargs=-1, required=True, metavar="IMAGES... [PATH=VALUE]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@device_option
@json_option
def predict(model: str, arguments: tuple[str, ...], out: Path, device: str, as_json: bool) -> None:
    """Segment IMAGES (files or folders) with MODEL: NAME.png, the label map, and NAME.overlay.png.

    PATH=VALUE changes the eval section of its recipe, as in eval.flip=true; write ./a.b=c for such a file.
    """
    import numpy as np
    from PIL import Image

    from encsearch.pictures import overlay
    from encsearch.predict import Predictor, read_image

    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    if len(overrides) == len(arguments):
        raise UserError("no images; name files or folders before the overrides")
    files = _image_files([Path(argument) for argument in arguments if not OVERRIDE.match(argument)])
    targets = _targets(files, out)
    predictor = Predictor(_bundle(model, overrides), device)
    palette = np.array(predictor.info.palette, dtype=np.uint8)
    for file in files:
        read_image(file)  # a damaged one is found before anything is written
    _make_folder(out)
    results = []
    for number, (file, target) in enumerate(zip(files, targets, strict=True), start=1):
        pixels = read_image(file)
        (label_map,) = predictor.predict(pixels)
        _save(Image.fromarray(label_map), target)
        _save(Image.fromarray(overlay(pixels, label_map, palette)), _overlay_of(target))
        found = [predictor.info.classes[int(label)] for label in np.unique(label_map)]
        results.append({"image": str(file), "labels": str(target), "classes": found})
        if number % 50 == 0:
            say(f"{number} of {len(files)} images")
    emit(results, as_json, "\n".join(f"{r['labels']}: {', '.join(r['classes'])}" for r in results))


def _bundle(model: str, overrides: Sequence[str]) -> "Bundle":
    """The model with its eval section changed. Raises UserError for any other path: the model is trained."""
    from encsearch.config import with_overrides
    from encsearch.predict import fetch_bundle
    from encsearch.workflow.folder import bundle_source

    for item in overrides:
        if not item.startswith("eval."):
            raise UserError(f"{item}: the model is trained; only paths below eval. can be changed now")
    bundle = fetch_bundle(bundle_source(model))
    return replace(bundle, config=with_overrides(bundle.config, overrides))


def _report(result: "Evaluation", classes: Sequence[str], place: str) -> str:
    """A table of classes, one of object sizes, and a line with the figures of all classes together."""
    by_class = {
        "IoU %": result.class_iou,
        "accuracy %": result.class_acc,
        "boundary IoU %": result.class_boundary_iou,
        "presence AP %": result.presence.class_ap if result.presence else {},
    }
    rows = [(name, *(percent(values.get(name)) for values in by_class.values())) for name in classes]
    sizes = [
        (size, percent(found.mean_iou), percent(found.mean_recall)) for size, found in result.sizes.items()
    ]
    figures = ", ".join(
        f"{name} {100 * value:.2f}"
        for name, value in result.to_metrics().items()
        if not name.startswith("size/")
    )
    parts = [
        table(["class", *by_class], rows),
        table(["objects", "mIoU %", "mean recall %"], sizes),
        f"{place}: {figures}",
    ]
    return "\n\n".join(parts)


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """The files of `paths`, of a folder its images in order of name. Raises UserError if one is not there."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        found = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES]
        if path.is_dir() and not found:
            raise UserError(f"{path}: no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if not path.exists():
            raise UserError(f"{path}: no such image or folder of images")
        files += found or [path]
    return files


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each label map goes. Raises UserError if a result would overwrite an image or another result."""
    targets = [out / f"{file.stem}.png" for file in files]
    taken = {file.resolve(): file for file in files}
    for file, target in zip(files, targets, strict=True):
        for result in (target, _overlay_of(target)):
            other = taken.setdefault(result.resolve(), result)
            if other is not result:
                raise UserError(
                    f"{file}: its result {result} would overwrite {other}; choose another --out, and predict "
                    "images of one name one by one"
                )
    return targets


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make this folder ({error.strerror}); choose another --out") from None


def _save(picture: "Image", target: Path) -> None:
    """Whole or not at all."""
    scratch = target.with_name(f".{target.name}.tmp")
    try:
        picture.save(scratch, "PNG")
        scratch.replace(target)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None


def _overlay_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}.overlay.png")
