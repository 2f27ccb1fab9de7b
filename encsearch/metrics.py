"""Pixel accuracy and intersection over union, from one confusion matrix over the whole evaluated set."""

from collections.abc import Mapping, Sequence
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
    class_iou = {
        name: hit / union
        for name, hit, union in zip(classes, hits.tolist(), unions.tolist(), strict=True)
        if union > 0
    }
    present = {group: [class_iou[c] for c in members if c in class_iou] for group, members in groups.items()}
    return Scores(
        pix_acc=hits.sum().item() / total,
        mean_iou=_mean(list(class_iou.values())),
        class_iou=class_iou,
        group_iou={group: _mean(values) for group, values in present.items() if values},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
