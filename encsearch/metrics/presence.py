"""Score how well the SE-loss branch predicts which classes are in an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encsearch.metrics.confusion import mean, ratios

THRESHOLD = 0.5
"""A class counts as predicted from this probability on."""


@dataclass(frozen=True)
class PresenceScores:
    """Figures in [0, 1]. A class that is in no image has no average precision and no recall.

    A class that is in every image has average precision 1 whatever is predicted. `precision` and `recall`
    are over all classes together at the probability 0.5; precision is None when nothing is predicted.
    """

    mean_ap: float
    class_ap: dict[str, float]
    precision: float | None
    recall: float
    class_precision: dict[str, float]
    class_recall: dict[str, float]


def presence_scores(probabilities: Tensor, present: Tensor, classes: Sequence[str]) -> PresenceScores:
    """Compare the probabilities (N, num_classes) of N >= 1 images with `present`, of the same shape.

    Every image shows a class, so `present` has a true value in each row.
    """
    assert len(present) > 0
    assert present.any(dim=1).all(), "an image without labels says nothing about presence"
    called = probabilities >= THRESHOLD
    hits = (called & present).sum(dim=0)
    class_ap = {
        name: average_precision(probabilities[:, index], present[:, index])
        for index, name in enumerate(classes)
        if present[:, index].any()
    }
    num_called = int(called.sum())
    return PresenceScores(
        mean_ap=mean(class_ap.values()),
        class_ap=class_ap,
        precision=int(hits.sum()) / num_called if num_called else None,
        recall=int(hits.sum()) / int(present.sum()),
        class_precision=ratios(hits, called.sum(dim=0), classes),
        class_recall=ratios(hits, present.sum(dim=0), classes),
    )


def average_precision(probabilities: Tensor, present: Tensor) -> float:
    """The sum of the precisions at each probability, weighted by the recall gained there; both (N,).

    Images with equal probability form one step, so the order of ties does not matter; the same definition as
    scikit-learn's `average_precision_score`. At least one value of `present` must be true.
    """
    ranked, order = probabilities.sort(descending=True)
    hits = present[order].double().cumsum(dim=0)
    num_called = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    last_of_ties = torch.ones_like(ranked, dtype=torch.bool)
    last_of_ties[:-1] = ranked[1:] != ranked[:-1]
    hits, num_called = hits[last_of_ties], num_called[last_of_ties]
    gained = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return float((hits / num_called * gained).sum() / hits[-1])
