"""IoU and recall by the size of the objects, so that a few large ones do not hide the scores of small ones.

An object is a connected component of one class (8 neighbours); label maps have no other instances.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from encsearch.data.datasets import IGNORE

SIZES = ("small", "medium", "large")

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)

_Mask = NDArray[np.bool_]
_Counts = NDArray[np.int64]


def size_counts(
    labels: Tensor, predictions: Tensor, num_classes: int, object_sizes: tuple[float, float]
) -> Tensor:
    """Pixels by size and class: found, true, and falsely predicted.

    labels and predictions (B, H, W) -> (3, num_classes, 3) int64 on the CPU; `object_sizes` are the shares of
    the image's area at which medium and large objects begin.

    A true pixel has the size of its object. A falsely predicted pixel has the size of the true objects of its
    class that its predicted object mostly covers or, if it covers none, the size of the predicted object. So
    every pixel counts for one size, `found / (truth + false)` is the IoU of that size, and the counts of all
    sizes add up to the counts of the usual IoU. Ignored pixels are not counted, though they may join the
    parts of a predicted object.
    """
    counts = np.zeros((len(SIZES), num_classes, 3), dtype=np.int64)
    begins = np.array(object_sizes) * labels[0].numel()
    for truth, found in zip(labels.cpu().numpy(), predictions.cpu().numpy(), strict=True):
        labelled = truth != IGNORE
        for index in np.union1d(truth[labelled], found[labelled]):
            counts[:, index] += _class_counts(truth == index, found == index, labelled, begins)
    return torch.from_numpy(counts)


def _class_counts(truth: _Mask, found: _Mask, labelled: _Mask, begins: NDArray[np.float64]) -> _Counts:
    """The counts (3, 3) of one class in one image, all masks (H, W)."""
    objects, own_size = _objects(truth, begins)
    size = own_size[objects]
    hit = truth & found
    predicted, predicted_size = _objects(found, begins)
    covered = np.bincount(
        predicted[hit] * len(SIZES) + size[hit], minlength=predicted_size.size * len(SIZES)
    ).reshape(-1, len(SIZES))
    predicted_size = np.where(covered.any(axis=1), covered.argmax(axis=1), predicted_size)
    false = predicted_size[predicted[found & ~truth & labelled]]
    return np.stack(
        [np.bincount(sizes, minlength=len(SIZES)) for sizes in (size[hit], size[truth], false)], 1
    )


def _objects(mask: _Mask, begins: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The object of each pixel (H, W), 0 outside, and the index in SIZES of each object."""
    objects, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    return objects, np.searchsorted(begins, np.bincount(objects.ravel()), side="right")
