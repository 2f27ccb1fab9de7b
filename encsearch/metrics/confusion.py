"""Ratios of pixel counts from one confusion matrix over the whole evaluated set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encsearch.data.datasets import IGNORE
from encsearch.errors import UserError


@dataclass(frozen=True)
class Scores:
    """Figures in [0, 1]; `class_iou` and the means leave out the absent classes (see `scores`)."""

    pix_acc: float
    mean_iou: float
    class_iou: dict[str, float]
    group_iou: dict[str, float]

    def to_metrics(self) -> dict[str, float]:
        """By the names that a recipe's `metric` takes: mIoU, pixAcc, mIoU/GROUP."""
        groups = {f"mIoU/{name}": iou for name, iou in self.group_iou.items()}
        return {"mIoU": self.mean_iou, "pixAcc": self.pix_acc, **groups}


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count pixels by truth (row) and prediction (column), on the device of the labels.

    labels and predictions (B, H, W), integers in [0, num_classes); a pixel labelled IGNORE is not counted.
    -> (num_classes, num_classes), int64. Matrices of parts of a set add up to the matrix of the set.
    """
    labelled = labels != IGNORE
    cells = labels[labelled].long() * num_classes + predictions[labelled].long()
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(confusion: Tensor, classes: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Scores:
    """Ratios of a confusion matrix (num_classes, num_classes) over the whole set.

    A class that is absent from truth and prediction has no IoU and is left out of every mean; the reference
    code counts it as 0. A class that is absent from the truth but predicted has IoU 0, and counts. A group
    whose classes are all absent is left out of `group_iou`.

    Raises UserError when the set has no labelled pixel.
    """
    assert confusion.shape == (len(classes), len(classes)), (confusion.shape, len(classes))
    counts = confusion.cpu().double()
    total = counts.sum().item()
    if total == 0:
        raise UserError("0 labelled pixels to score; `encsearch data check` shows what the masks hold")
    hits = counts.diag()
    unions = counts.sum(dim=0) + counts.sum(dim=1) - hits
    class_iou = ratios(hits, unions, classes)
    present = {group: [class_iou[c] for c in members if c in class_iou] for group, members in groups.items()}
    return Scores(
        pix_acc=hits.sum().item() / total,
        mean_iou=mean(class_iou.values()),
        class_iou=class_iou,
        group_iou={group: mean(values) for group, values in present.items() if values},
    )


def class_accuracy(confusion: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """The share of each class's pixels that was found; classes that the truth lacks are left out."""
    hits, pixels = confusion.cpu().double().diag(), confusion.cpu().double().sum(dim=1)
    return ratios(hits, pixels, classes)


def frequency_weighted_iou(
    confusion: Tensor, class_iou: Mapping[str, float], classes: Sequence[str]
) -> float:
    """The IoU of the classes, weighted by their share of the labelled pixels (Long et al., CVPR 2015, 5)."""
    pixels = confusion.cpu().double().sum(dim=1)
    shares: dict[str, float] = dict(zip(classes, (pixels / pixels.sum()).tolist(), strict=True))
    return sum(shares[name] * iou for name, iou in class_iou.items())


def ratios(counts: Tensor, totals: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """counts / totals by class, both (num_classes,); classes with a total of 0 are left out."""
    triples = zip(classes, counts.tolist(), totals.tolist(), strict=True)
    return {name: count / total for name, count, total in triples if total > 0}


def mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
