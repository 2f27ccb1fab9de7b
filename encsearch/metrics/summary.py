"""The counts of a set, and every score that follows from them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from encsearch.data.datasets import DatasetInfo
from encsearch.metrics.confusion import class_accuracy, frequency_weighted_iou, mean, ratios, scores
from encsearch.metrics.presence import PresenceScores, presence_scores
from encsearch.metrics.sizes import SIZES


@dataclass(frozen=True)
class Totals:
    """Counts of a part of a set, on the CPU; `+` combines two parts, in any order.

    confusion (num_classes, num_classes), boundary (num_classes, 2) and sizes (3, num_classes, 3) are int64
    and as their functions return them. For the N images with labels, presence (N, num_classes) holds the
    probabilities and present (N, num_classes), bool, the truth; N is 0 for a model that predicts none.
    """

    confusion: Tensor
    boundary: Tensor
    sizes: Tensor
    presence: Tensor
    present: Tensor

    def __add__(self, other: Self) -> "Totals":
        return Totals(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.sizes + other.sizes,
            torch.cat([self.presence, other.presence]),
            torch.cat([self.present, other.present]),
        )


@dataclass(frozen=True)
class SizeScores:
    """Figures in [0, 1] for objects of one size; a mean is None when no class has any."""

    mean_iou: float | None
    mean_recall: float | None
    class_iou: dict[str, float]
    class_recall: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Every score of a model on a set: figures in [0, 1], by class where they are.

    A class that truth and prediction lack has no IoU and is left out of the mean, as in `scores`; one that
    the truth lacks has no accuracy, recall or average precision. `foreground_iou` is the mean IoU of the
    classes without the background; confusions with the background still count. It is None if no background
    is named. `presence` is None for a model without a context module. `confusion` counts pixels by truth
    (row) and prediction (column). `own` has the figure of an own metric by its name.
    """

    mean_iou: float
    pix_acc: float
    mean_acc: float
    fw_iou: float
    foreground_iou: float | None
    mean_boundary_iou: float | None
    class_iou: dict[str, float]
    class_acc: dict[str, float]
    class_boundary_iou: dict[str, float]
    group_iou: dict[str, float]
    sizes: dict[str, SizeScores]
    presence: PresenceScores | None
    confusion: tuple[tuple[int, ...], ...] = field(repr=False)
    own: dict[str, float] = field(default_factory=dict)

    def to_metrics(self) -> dict[str, float]:
        """The figures of all classes together by name; one that does not exist is left out."""
        named: dict[str, float | None] = {
            "mIoU": self.mean_iou,
            "pixAcc": self.pix_acc,
            "mAcc": self.mean_acc,
            "fwIoU": self.fw_iou,
            **self.own,
            **{f"mIoU/{group}": iou for group, iou in self.group_iou.items()},
            "foreground/mIoU": self.foreground_iou,
            "boundary/mIoU": self.mean_boundary_iou,
            **{f"size/{size}/mIoU": found.mean_iou for size, found in self.sizes.items()},
            **{f"size/{size}/recall": found.mean_recall for size, found in self.sizes.items()},
        }
        if self.presence:
            named |= {
                "presence/mAP": self.presence.mean_ap,
                "presence/precision": self.presence.precision,
                "presence/recall": self.presence.recall,
            }
        return {name: value for name, value in named.items() if value is not None}


def summarize(totals: Totals, info: DatasetInfo, background: str | None) -> Evaluation:
    """The scores of a whole set; `background` is a class or None.

    Raises UserError when the set has no labelled pixel.
    """
    classes = info.classes
    pixels = scores(totals.confusion, classes, info.groups)
    class_acc = class_accuracy(totals.confusion, classes)
    common, union = totals.boundary.T
    class_boundary_iou = ratios(common, union, classes)
    foreground = [iou for name, iou in pixels.class_iou.items() if name != background]
    return Evaluation(
        mean_iou=pixels.mean_iou,
        pix_acc=pixels.pix_acc,
        mean_acc=mean(class_acc.values()),
        fw_iou=frequency_weighted_iou(totals.confusion, pixels.class_iou, classes),
        foreground_iou=_mean_of_any(foreground) if background else None,
        mean_boundary_iou=_mean_of_any(class_boundary_iou.values()),
        class_iou=pixels.class_iou,
        class_acc=class_acc,
        class_boundary_iou=class_boundary_iou,
        group_iou=pixels.group_iou,
        sizes={size: _size_scores(counts, classes) for size, counts in zip(SIZES, totals.sizes, strict=True)},
        presence=presence_scores(totals.presence, totals.present, classes) if len(totals.presence) else None,
        confusion=tuple(tuple(row) for row in totals.confusion.tolist()),
    )


def _size_scores(counts: Tensor, classes: tuple[str, ...]) -> SizeScores:
    """counts (num_classes, 3) of one size: found, truth, false."""
    found, truth, false = counts.T
    class_iou, class_recall = ratios(found, truth + false, classes), ratios(found, truth, classes)
    return SizeScores(
        _mean_of_any(class_iou.values()), _mean_of_any(class_recall.values()), class_iou, class_recall
    )


def _mean_of_any(values: Collection[float]) -> float | None:
    return mean(values) if values else None
