"""Boundary IoU (Cheng et al., CVPR 2021): the intersection over union of bands along the boundaries.

Region IoU hardly sees the outline of a large object, since its inside grows with the square of its size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.data.datasets import IGNORE

BAND_SHARE = 0.02
"""Width of the band as a share of the image's diagonal; the value that the paper recommends."""


def boundary_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Pixels in the intersection and in the union of each class's two bands, on the device of the labels.

    labels and predictions (B, H, W) -> (num_classes, 2) int64. A pixel lies in the band of its class if
    another class, or the outside of the image, is at most `band_width` away in either direction: a square, as
    in the authors' code, while the paper writes a distance. The counts are added up over the set, as for the
    region IoU; the paper scores single objects.

    An ignored pixel is in no band, and no band begins at it, since it is unknown whether the class ends
    there. So predictions are cut to the labelled pixels as well.
    """
    labelled = labels != IGNORE
    truth_band = _band(labels, labelled, num_classes)
    found_band = _band(predictions, labelled, num_classes)
    both = truth_band & found_band & (labels == predictions)
    common, truth, found = (
        torch.bincount(classes[band].long(), minlength=num_classes)
        for classes, band in ((labels, both), (labels, truth_band), (predictions, found_band))
    )
    return torch.stack([common, truth + found - common], dim=1)


def band_width(height: int, width: int) -> int:
    """Width of the band in pixels, at least 1."""
    return max(1, round(BAND_SHARE * math.hypot(height, width)))


def _band(classes: Tensor, labelled: Tensor, num_classes: int) -> Tensor:
    """Pixels whose window has a larger or a smaller class: (B, H, W) -> bool."""
    reach = band_width(*classes.shape[-2:])
    outside = num_classes  # larger than any class, so that it ends each of them
    values = classes.to(torch.int16)
    largest = _window_max(values.where(labelled, -1), reach, border=outside)
    smallest = -_window_max((-values).where(labelled, -outside), reach, border=-outside)
    return labelled & ((largest != values) | (smallest != values))


def _window_max(values: Tensor, reach: int, border: int) -> Tensor:
    """The maximum over a square of side 2 * reach + 1; pixels outside have the value `border`."""
    padded = F.pad(values, [reach] * 4, value=border)
    return _running_max(_running_max(padded, 2 * reach + 1).mT, 2 * reach + 1).mT


def _running_max(values: Tensor, side: int) -> Tensor:
    """The maximum of every `side` neighbours in a row, in log2(side) steps: pooling takes `side` of them."""
    done = 1
    while done < side:
        step = min(done, side - done)
        values = values[..., :-step].maximum(values[..., step:])
        done += step
    return values
