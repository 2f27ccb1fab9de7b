"""Pixel cross-entropy, its auxiliary copy and the SE-loss, as local sums to be divided by global counts.

The mean over a global batch is not the mean of the ranks' means, since each rank has its own number of
labelled pixels. So a rank computes `loss_sums`, the loop adds up the counts of all ranks, and `weighted_loss`
divides by those.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import LossConfig
from encsearch.data.datasets import IGNORE
from encsearch.model.encnet import EncNetOutput


@dataclass(frozen=True)
class LossSums:
    """Unweighted losses of one rank's batch; all but `num_classes` are 0-dim tensors on its device.

    pixel and aux are cross-entropies summed over the labelled pixels, presence is binary cross-entropy summed
    over classes and images, and each is 0 where the model has no such output. num_pixels counts the labelled
    pixels, num_images the images that have any: one that is wholly ignored does not tell what is present.
    """

    pixel: Tensor
    aux: Tensor
    presence: Tensor
    num_pixels: Tensor
    num_images: Tensor
    num_classes: int


def loss_sums(output: EncNetOutput, labels: Tensor, num_classes: int) -> LossSums:
    """Compare `output` with labels (B, H, W), classes or IGNORE, in float32 or better."""
    labels = labels.long()
    labelled = labels != IGNORE
    zero = torch.zeros((), device=labels.device)
    return LossSums(
        pixel=_cross_entropy(output.logits, labels),
        aux=zero if output.aux_logits is None else _cross_entropy(output.aux_logits, labels),
        presence=zero if output.presence_logits is None else _se_loss(output.presence_logits, labels),
        num_pixels=labelled.sum(),
        num_images=labelled.flatten(1).any(dim=1).sum(),
        num_classes=num_classes,
    )


def weighted_loss(sums: LossSums, num_pixels: Tensor, num_images: Tensor, *, loss: LossConfig) -> Tensor:
    """The scalar to minimise: (pixel + aux_weight * aux) / num_pixels + se_weight * mean presence loss.

    num_pixels and num_images are the counts of all ranks; the sum of this value over the ranks is the loss of
    the global batch, so under DDP, which averages gradients, it is multiplied by the number of ranks.
    Without labelled pixels it is 0. A weight of 0 keeps its branch in the graph, as DDP expects.
    """
    per_pixel = (sums.pixel + loss.aux_weight * sums.aux) / num_pixels.clamp(min=1)
    per_label = sums.presence / (num_images * sums.num_classes).clamp(min=1)
    return per_pixel + loss.se_weight * per_label


def class_presence(labels: Tensor, num_classes: int) -> Tensor:
    """Target of the SE-loss, labels (B, H, W) -> (B, num_classes): 1 where the image has the class, or 0."""
    ignored = num_classes  # a last column takes the ignored pixels and is cut off
    index = torch.where(labels == IGNORE, ignored, labels.long()).flatten(1)
    counted = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, index, 1.0)
    return counted[:, :num_classes]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(_at_least_float32(logits), labels, ignore_index=IGNORE, reduction="sum")


def _se_loss(presence_logits: Tensor, labels: Tensor) -> Tensor:
    logits = _at_least_float32(presence_logits)
    target = class_presence(labels, logits.shape[1]).to(logits.dtype)
    per_image = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
    has_labels = (labels != IGNORE).flatten(1).any(dim=1)
    return (per_image * has_labels).sum()


def _at_least_float32(logits: Tensor) -> Tensor:
    """Under bfloat16 autocast a loss needs the digits that the logits do not."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
