"""Score a trained model on any split of any store that has its classes."""

from functools import reduce
from operator import add
from pathlib import Path

import torch
from torch import Tensor

from encsearch.bundle import Bundle, existing_device
from encsearch.config import EvalConfig
from encsearch.data.datasets import IGNORE
from encsearch.data.loading import validation_batches
from encsearch.data.store import open_split, read_manifest
from encsearch.errors import UserError
from encsearch.inference import Segmentation, segment
from encsearch.loss import class_presence
from encsearch.metrics.boundary import boundary_counts
from encsearch.metrics.confusion import confusion_matrix
from encsearch.metrics.sizes import size_counts
from encsearch.metrics.summary import Evaluation, Totals, summarize


def score_bundle(
    bundle: Bundle, store: str | Path, split: str, *, device: str = "cpu", batch_size: int | None = None
) -> Evaluation:
    """Every score of the model on the samples of the split; how it segments is its configuration's `eval`.

    `batch_size` is in images, by default the one of validation in training; it changes no score. Raises
    UserError when the store's classes are not the model's, when eval.background is none of them, or for what
    is no device; PreflightError for a GPU that is not here.
    """
    place = existing_device(device)
    config = bundle.config
    dataset = open_split(store, split)
    classes = dataset.info.classes
    if classes != bundle.info.classes:
        raise UserError(
            f"{store}: its {len(classes)} classes are not the model's "
            f"{len(bundle.info.classes)} ({bundle.info.name}); the scores would mean nothing"
        )
    background = config.eval.background
    if background not in (None, *classes):
        raise UserError(
            f"eval.background={background} is none of {store}'s {len(classes)} classes; "
            f"try one of {', '.join(classes)}"
        )
    model = bundle.model.to(place)
    batches = validation_batches(
        dataset, batch_size=batch_size or config.train.val_batch_size, threads=config.data.threads
    )
    parts = (
        count(batch.labels.to(place), segment(model, batch.images.to(place), config.eval), config.eval)
        for batch in batches
    )
    return summarize(reduce(add, parts), dataset.info, background)


def count(labels: Tensor, found: Segmentation, settings: EvalConfig) -> Totals:
    """What a batch adds to the scores: labels (B, H, W), classes or IGNORE, against their segmentation.

    An image that is wholly ignored does not tell what is present, and is left out there.
    """
    num_classes = found.probabilities.shape[1]
    presence, present = torch.empty(0, num_classes), torch.empty(0, num_classes, dtype=torch.bool)
    if found.presence is not None:
        told = (labels != IGNORE).flatten(1).any(dim=1)
        presence, present = found.presence[told], class_presence(labels, num_classes)[told].bool()
    return Totals(
        confusion=confusion_matrix(labels, found.labels, num_classes).cpu(),
        boundary=boundary_counts(labels, found.labels, num_classes).cpu(),
        sizes=size_counts(labels, found.labels, num_classes, settings.object_sizes),
        presence=presence.cpu(),
        present=present.cpu(),
    )


def unchanged_store(bundle: Bundle) -> str:
    """The store that the model was trained on, as long as it holds the same data.

    Raises UserError when its fingerprint is another one now: scores from before and after cannot be compared.
    """
    store = bundle.config.data.store
    fingerprint = read_manifest(store).fingerprint
    if fingerprint != bundle.fingerprint:
        raise UserError(
            f"{store}: holds data {fingerprint[:12]}, but the model was trained on {bundle.fingerprint[:12]};"
            " train it again, or name the store to score on with --store"
        )
    return store
