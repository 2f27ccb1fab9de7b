"""Score a trained model on any split of any store that has its classes."""

from pathlib import Path

import torch

from encsearch.bundle import Bundle, existing_device
from encsearch.data.loading import validation_batches
from encsearch.data.store import open_split, read_manifest
from encsearch.errors import UserError
from encsearch.metrics import Scores, scores
from encsearch.train.loop import evaluate


def score_bundle(
    bundle: Bundle, store: str | Path, split: str, *, device: str = "cpu", batch_size: int = 8
) -> tuple[Scores, torch.Tensor]:
    """Scores and confusion matrix (num_classes, num_classes) of the model on every sample of the split.

    Raises UserError when the store's classes are not the model's, or for what is no device; PreflightError
    for a GPU that is not here.
    """
    place = existing_device(device)
    dataset = open_split(store, split)
    if dataset.info.classes != bundle.info.classes:
        raise UserError(
            f"{store}: its {len(dataset.info.classes)} classes are not the model's "
            f"{len(bundle.info.classes)} ({bundle.info.name}); the scores would mean nothing"
        )
    batches = validation_batches(dataset, batch_size=batch_size, threads=bundle.config.data.threads)
    confusion = evaluate(
        bundle.model.to(place),
        batches,
        num_classes=len(bundle.info.classes),
        device=place,
    )
    return scores(confusion, dataset.info.classes, dataset.info.groups), confusion


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
