"""A picture sheet of two models on images chosen by rule: the largest, median and worst gains."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from encsearch.data.datasets import IGNORE, Sample, SegmentationDataset
from encsearch.inference.bundle import Bundle
from encsearch.inference.predictor import Predictor, comparison_sheet
from encsearch.metrics import confusion_matrix, scores
from encsearch.text import format_percent

IMAGES_A_KIND = 2


def write_gains(
    ours: tuple[str, Bundle], theirs: tuple[str, Bundle], dataset: SegmentationDataset, target: Path
) -> None:
    """Draw the images of `dataset` with the largest, the median and the worst gain of `ours` over `theirs`.

    Both are (title, model), trained on its classes. The gain of an image is the difference of its own
    mIoU, over the classes in its truth or prediction; images without a labelled pixel are left out.
    """
    models = {title: Predictor(bundle) for title, bundle in (theirs, ours)}
    gains = _gains(dataset, models[ours[0]], models[theirs[0]])
    kinds = chosen(list(gains.values()))
    numbers = list(gains)
    samples = [
        _titled(
            dataset[numbers[position]],
            f"{kind} gain\n{format_percent(gains[numbers[position]], signed=True)}",
        )
        for kind, positions in kinds.items()
        for position in positions
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    comparison_sheet(samples, dataset.info, models).save(target)


def chosen(gains: Sequence[float]) -> dict[str, list[int]]:
    """Positions of the largest, the median and the worst gains, two of each if there are six or more."""
    order = sorted(range(len(gains)), key=lambda position: -gains[position])
    count = max(1, min(IMAGES_A_KIND, len(order) // 3))
    middle = (len(order) - count) // 2
    return {
        "largest": order[:count],
        "median": order[middle : middle + count],
        "worst": order[-count:],
    }


def _gains(dataset: SegmentationDataset, ours: Predictor, theirs: Predictor) -> dict[int, float]:
    """Gains by sample number, without samples that have no labelled pixel."""
    gains = {}
    for number in range(len(dataset)):
        sample = dataset[number]
        if (sample.mask != IGNORE).any():
            gains[number] = _mean_iou(sample, ours) - _mean_iou(sample, theirs)
    return gains


def _mean_iou(sample: Sample, model: Predictor) -> float:
    (label_map,) = model.predict(sample.image)
    classes = model.info.classes
    # Copies: torch warns about a decoded mask, which is not writable.
    labels, found = torch.tensor(sample.mask)[None], torch.tensor(label_map)[None]
    return scores(confusion_matrix(labels, found, len(classes)), classes, {}).mean_iou


def _titled(sample: Sample, title: str) -> Sample:
    """Set the sample's id, which a sheet prints beside its row."""
    return replace(sample, id=title)
