"""Score a trained model on any split of any store that has its classes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encsearch.config import EvalConfig
from encsearch.data.datasets import IGNORE
from encsearch.data.loading import Inputs, feed, validation_batches
from encsearch.data.store import Store, StoreSplit
from encsearch.data.transforms import to_image_tensor
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, find_device, place_network
from encsearch.inference.segment import Segmentation, segment
from encsearch.metrics.boundary import boundary_counts
from encsearch.metrics.confusion import confusion_matrix
from encsearch.metrics.per_image import image_counts
from encsearch.metrics.sizes import size_counts
from encsearch.metrics.summary import Evaluation, Totals, summarize
from encsearch.parts import MetricPart, PartName, code_from
from encsearch.train.experiment import own_metric
from encsearch.train.loop import OwnFigure, count_own, score_own
from encsearch.train.loss import class_presence

WARM_UP, TIMED = 3, 15  # passes of each model before and while it is timed


def score_bundle(
    bundle: Bundle, store: Store, split: str, *, device: str = "auto", batch_size: int | None = None
) -> Evaluation:
    """Every score of the model on the samples of the split, segmented as its configuration's `eval` says.

    `batch_size` is in images, by default the validation batch size of training; it changes no score. Raises
    UserError when the store's classes are not the model's, when eval.background is none of them, for a split
    without a labelled pixel, as the test splits of some public sets are, or for an unknown device;
    PreflightError for a GPU that does not exist here.
    """
    place = find_device(device)
    if not any(stats.pixels for stats in store.stats(split).classes):
        raise UserError(
            f"{store.path}: split {split} has no labelled pixel, so nothing can be scored on it; write label "
            "maps with `encsearch predict` for the set's own server, or take another split"
        )
    config, classes = bundle.config, store.info.classes
    dataset = store.split(split)
    _check_classes(bundle, store)
    background = config.eval.background
    if background not in (None, *classes):
        raise UserError(
            f"eval.background={background} is none of {store.path}'s {len(classes)} classes; "
            f"try one of {', '.join(classes)}"
        )
    own = find_own_metric(bundle)
    figure = OwnFigure(*own, len(classes), place) if own else None

    def parts() -> Iterator[Totals]:
        for inputs, found in _segment_batches(bundle, dataset, place, batch_size):
            yield count(inputs.labels, found, config.eval)
            if figure:
                figure.add(inputs.labels, found.labels)

    result = summarize(reduce(add, parts()), store.info, background)
    return replace(result, own=figure.score()) if figure else result


def score_counts(name: PartName, metric: MetricPart, counts: NDArray[np.float64]) -> float:
    """The figure of summed `ImageCounts.own`. Raises UserError where the metric fails."""
    return score_own(name, metric, torch.from_numpy(np.asarray(counts)))


def find_own_metric(bundle: Bundle) -> tuple[PartName, MetricPart] | None:
    """The name of the recipe's own metric, and the metric, made of the bundle's code; None without one."""
    with code_from(bundle.code):
        return own_metric(bundle.config)


@dataclass(frozen=True)
class ImageCounts:
    """The pixel counts of a model on each of the N images of a set, ordered by id.

    `pixels` (N, num_classes, 3) int64 are found, true and predicted pixels; see `image_counts`. `own`
    (N, ...) float64 are the counts of an own metric, if one was asked for.
    """

    ids: tuple[str, ...]
    pixels: NDArray[np.int64]
    own: NDArray[np.float64] | None = None


def count_images(
    bundle: Bundle,
    store: Store,
    split: str,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    own: MetricPart | None = None,
) -> ImageCounts:
    """Count pixels in one pass over a split, to compare models by image; raises as `score_bundle` does.

    `own` counts each image too. It need not be the bundle's: models are compared by one metric.
    """
    place = find_device(device)
    _check_classes(bundle, store)
    num_classes = len(store.info.classes)
    ids: list[str] = []
    parts: list[Tensor] = []
    own_parts: list[Tensor] = []
    for inputs, found in _segment_batches(bundle, store.split(split), place, batch_size):
        ids += inputs.ids
        parts.append(image_counts(inputs.labels, found.labels, num_classes).cpu())
        if own is not None:
            pairs = zip(inputs.labels.split(1), found.labels.split(1), strict=True)
            own_parts += [count_own(own, *pair, num_classes).cpu() for pair in pairs]
    # A batch holds images of one size, so where sizes differ the order is not that of the set.
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return ImageCounts(
        tuple(ids[index] for index in order),
        torch.cat(parts)[order].numpy(),
        torch.stack(own_parts)[order].numpy() if own_parts else None,
    )


@dataclass(frozen=True)
class ImagePresence:
    """The labelled images of a set: probabilities and truth of each class's presence, (N, num_classes)."""

    ids: tuple[str, ...]
    probabilities: Tensor
    present: Tensor


def predict_presence(bundle: Bundle, store: Store, split: str, device: str = "auto") -> ImagePresence:
    """Predict which classes the images of a split show, for a model with a context module.

    Images without labelled pixels are left out. Raises as `score_bundle` does.
    """
    place = find_device(device)
    _check_classes(bundle, store)
    ids: list[str] = []
    parts: list[tuple[Tensor, Tensor]] = []
    for inputs, found in _segment_batches(bundle, store.split(split), place, None):
        labelled = (inputs.labels != IGNORE).flatten(1).any(dim=1).tolist()
        ids += [name for name, counted in zip(inputs.ids, labelled, strict=True) if counted]
        parts.append(_count_presence(inputs.labels, found))
    probabilities, present = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return ImagePresence(tuple(ids), probabilities, present)


def median_latencies_ms(bundles: Sequence[Bundle], dataset: StoreSplit, device: str = "auto") -> list[float]:
    """Each model's median time in ms to segment the set's first image, measured side by side.

    The models take turns, so that other work of the machine slows all of them.
    """
    place = find_device(device)
    image = to_image_tensor(dataset[0].image)[None].to(place)
    networks = [place_network(bundle, place) for bundle in bundles]
    times_ms: list[list[float]] = [[] for _ in bundles]
    for turn in range(WARM_UP + TIMED):
        for bundle, network, found in zip(bundles, networks, times_ms, strict=True):
            started_s = time.perf_counter()
            # Copying the labels waits until a GPU has finished.
            segment(network, image, bundle.config.eval).labels.cpu()
            if turn >= WARM_UP:
                found.append(1000 * (time.perf_counter() - started_s))
    return [median(found) for found in times_ms]


def count(labels: Tensor, found: Segmentation, settings: EvalConfig) -> Totals:
    """A batch's contribution to the scores: labels (B, H, W), classes or IGNORE, against the segmentation.

    An image without labelled pixels is left out of presence: which classes it shows is unknown.
    """
    num_classes = found.probabilities.shape[1]
    presence, present = _count_presence(labels, found)
    return Totals(
        confusion=confusion_matrix(labels, found.labels, num_classes).cpu(),
        boundary=boundary_counts(labels, found.labels, num_classes).cpu(),
        sizes=size_counts(labels, found.labels, num_classes, settings.object_sizes),
        presence=presence,
        present=present,
    )


def _count_presence(labels: Tensor, found: Segmentation) -> tuple[Tensor, Tensor]:
    """Probabilities and truth of the N labelled images, (N, num_classes) on the CPU; N is 0 without any."""
    num_classes = found.probabilities.shape[1]
    if found.presence is None:
        return torch.empty(0, num_classes), torch.empty(0, num_classes, dtype=torch.bool)
    labelled = (labels != IGNORE).flatten(1).any(dim=1)
    present = class_presence(labels, num_classes)[labelled].bool()
    return found.presence[labelled].cpu(), present.cpu()


def open_same_store(bundle: Bundle) -> Store:
    """Open the store that the model was trained on, if it still holds the same data.

    Raises UserError when its fingerprint has changed: scores from before and after cannot be compared.
    """
    store = Store(bundle.config.data.store)
    if store.fingerprint != bundle.fingerprint:
        raise UserError(
            f"{store.path}: holds data {store.fingerprint[:12]}, but the model was trained on "
            f"{bundle.fingerprint[:12]}; train it again, or name the store to score on with --store"
        )
    return store


def _check_classes(bundle: Bundle, store: Store) -> None:
    classes = store.info.classes
    if classes != bundle.info.classes:
        raise UserError(
            f"{store.path}: its {len(classes)} classes are not the model's "
            f"{len(bundle.info.classes)} ({bundle.info.name}); the scores would mean nothing"
        )


def _segment_batches(
    bundle: Bundle, dataset: StoreSplit, place: torch.device, batch_size: int | None
) -> Iterator[tuple[Inputs, Segmentation]]:
    """Every batch of the set and its segmentation, on `place`."""
    config = bundle.config
    network = place_network(bundle, place)
    batches = validation_batches(
        dataset, batch_size=batch_size or config.train.val_batch_size, threads=config.data.threads
    )
    for inputs in feed(batches, place):
        yield inputs, segment(network, inputs.images, config.eval)
