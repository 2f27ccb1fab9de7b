"""Each image's contribution to the IoU of each class: the evidence for comparing two models."""

import torch
from torch import Tensor

from encsearch.data.datasets import IGNORE


def image_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Pixels of each image and class: found, true and predicted.

    labels and predictions (B, H, W), integers in [0, num_classes); a pixel labelled IGNORE is not counted.
    -> (B, num_classes, 3) int64. Their sums over the images are the diagonal, the row sums and the column
    sums of `confusion_matrix`, so every IoU of the set follows from them.
    """
    batch_size = len(labels)
    labelled = labels != IGNORE
    image = torch.arange(batch_size, device=labels.device).view(-1, 1, 1).expand_as(labels)

    def count_pixels(classes: Tensor, where: Tensor) -> Tensor:
        cells = image[where] * num_classes + classes[where].long()
        return torch.bincount(cells, minlength=batch_size * num_classes).view(batch_size, num_classes)

    hit = labelled & (labels == predictions)
    parts = [count_pixels(labels, hit), count_pixels(labels, labelled), count_pixels(predictions, labelled)]
    return torch.stack(parts, dim=2)
