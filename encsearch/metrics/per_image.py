"""What each image adds to the IoU of each class: the evidence that a comparison of two models rests on."""

import torch
from torch import Tensor

from encsearch.data.datasets import IGNORE


def image_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Pixels of each image and class: those found, those of the truth, those predicted.

    labels and predictions (B, H, W), integers in [0, num_classes); a pixel labelled IGNORE is not counted.
    -> (B, num_classes, 3) int64. Added up over images they are the diagonal, the row sums and the column
    sums of `confusion_matrix`, so that every IoU of the set follows from them.
    """
    batch_size = len(labels)
    labelled = labels != IGNORE
    image = torch.arange(batch_size, device=labels.device).view(-1, 1, 1).expand_as(labels)

    def counted(classes: Tensor, where: Tensor) -> Tensor:
        cells = image[where] * num_classes + classes[where].long()
        return torch.bincount(cells, minlength=batch_size * num_classes).view(batch_size, num_classes)

    hit = labelled & (labels == predictions)
    parts = [counted(labels, hit), counted(labels, labelled), counted(predictions, labelled)]
    return torch.stack(parts, dim=2)
