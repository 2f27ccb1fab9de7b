"""`encsearch eval`, and the model argument that other commands share."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.training import overrides_argument
from encsearch.text import format_percent, format_score

if TYPE_CHECKING:
    from encsearch.inference.bundle import Bundle
    from encsearch.metrics.summary import Evaluation

model_argument = click.argument("model")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one."
)
OVERRIDE = re.compile(r"\w+(\.[\w:]+)+=")  # a colon as in eval.args.module:Object.name


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
    from encsearch.cli.progress import progress

    with progress("loading the model") as shown:
        from encsearch.data.store import Store
        from encsearch.inference.evaluation import score_bundle

        bundle = fetch(model, overrides)
        store = store or bundle.config.data.store
        shown.phase(f"scoring the samples of {store} {split}")
        result = score_bundle(bundle, Store(store), split, device=device, batch_size=batch_size)
    settings = bundle.config.eval.model_dump(mode="json")
    text = _report(result, bundle.info.classes, f"{store} {split}")
    place = {"store": store, "split": split, "eval": settings}
    emit({**asdict(result), "metrics": result.to_metrics(), **place}, as_json, text)


def fetch(model: str, overrides: Sequence[str]) -> "Bundle":
    """Fetch a model, see `fetch_bundle`, and say what an unfinished training gives."""
    from encsearch.tracking.registry.fetch import describe_unfinished, fetch_bundle

    if note := describe_unfinished(model):
        say(note)
    return fetch_bundle(model, overrides)


def _report(result: "Evaluation", classes: Sequence[str], place: str) -> str:
    """Format a table of classes, one of object sizes, and a line with the scores over all classes."""
    by_class = {
        "IoU %": result.class_iou,
        "accuracy %": result.class_acc,
        "boundary IoU %": result.class_boundary_iou,
        "presence AP %": result.presence.class_ap if result.presence else {},
    }
    rows = [(name, *(format_percent(values.get(name)) for values in by_class.values())) for name in classes]
    sizes = [
        (size, format_percent(found.mean_iou), format_percent(found.mean_recall))
        for size, found in result.sizes.items()
    ]
    figures = ", ".join(
        f"{name} {format_score(value)}"
        for name, value in result.to_metrics().items()
        if not name.startswith("size/")
    )
    num_scored = len(result.class_iou)
    over = f"; mIoU is over {num_scored} of {len(classes)} classes" if num_scored < len(classes) else ""
    parts = [
        table(["class", *by_class], rows),
        table(["objects by size", "mIoU %", "mean recall %"], sizes),
        f"{place}: {figures}{over}",
    ]
    return "\n\n".join(parts)
