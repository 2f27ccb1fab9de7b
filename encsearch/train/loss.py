"""The loss as named terms: each is a sum over one rank's batch, to be divided by a count over all ranks.

The mean over a global batch is not the mean of the ranks' means, since each rank has its own number of
labelled pixels. So a rank computes `loss_sums`, the loop adds up the divisors of all ranks, and
`weighted_loss` divides by those. An image's contribution to a term depends on that image alone, so the loss
does not depend on how a batch is spread over ranks.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.config import LossConfig
from encsearch.data.datasets import IGNORE
from encsearch.errors import UserError
from encsearch.model.encnet import EncNetOutput
from encsearch.parts import LossPart, PartName, bind_part

NOTHING_OWN: Mapping[PartName, LossPart] = MappingProxyType({})
BuiltInTerm = Literal["pixel_loss", "se_loss", "aux_loss", "aux_se_loss", "dice_loss"]
TermName = BuiltInTerm | PartName


class Term(NamedTuple):
    """Two 0-dim tensors: a batch's contributions to the term and to its divisor."""

    sum: Tensor
    divisor: Tensor


def loss_sums(
    output: EncNetOutput,
    labels: Tensor,
    *,
    loss: LossConfig,
    class_weights: Tensor | None = None,
    own: Mapping[PartName, LossPart] = NOTHING_OWN,
) -> dict[TermName, Term]:
    """Compare `output` with labels (B, H, W), classes or IGNORE, in float32 or better.

    class_weights (num_classes,) weigh the cross-entropies. Returns only the terms that the model has outputs
    for, and Dice only if it has a weight; the terms are unweighted:

    pixel_loss    cross-entropy of the hard pixels with OHEM, or of all, by the sum of their weights
    aux_loss      the same for the auxiliary head, always of all pixels: the reference code gives both one
                  criterion, and mmsegmentation's guide samples hard pixels for the main head alone
    se_loss       SE-loss of the Context Encoding Module, by classes and images; aux_se_loss of the second
    dice_loss     soft Dice, by images
    `own`         losses of `loss.terms` by their names, by images

    An image without labelled pixels counts in no term: which classes it shows is unknown.
    """
    labels = labels.long()
    logits = _at_least_float32(output.logits)
    counted = labels
    if loss.ohem_threshold is not None:
        counted = hard_labels(logits, labels, loss.ohem_threshold, loss.ohem_min_share)
    terms: dict[TermName, Term] = {}
    terms["pixel_loss"] = _cross_entropy(logits, counted, class_weights, loss.label_smoothing)
    if output.presence_logits is not None:
        terms["se_loss"] = _se_loss(output.presence_logits, labels)
    if output.aux_logits is not None and output.aux_logits.ndim == 4:
        terms["aux_loss"] = _cross_entropy(output.aux_logits, labels, class_weights, loss.label_smoothing)
    elif output.aux_logits is not None:
        terms["aux_se_loss"] = _se_loss(output.aux_logits, labels)
    if loss.dice_weight:
        terms["dice_loss"] = _dice_loss(logits, labels)
    for name, part in own.items():
        terms[name] = _own_loss(name, part, logits, labels)
    return terms


def label_divisors(
    labels: Tensor,
    num_classes: int,
    *,
    class_weights: Tensor | None = None,
    own: Iterable[PartName] = (),
) -> dict[TermName, Tensor]:
    """The divisor of every term that `loss_sums` may return without OHEM, from the labels (B, H, W) alone."""
    count = _num_weighted(labels.long(), class_weights)
    images = _has_labels(labels).sum()
    return {
        "pixel_loss": count,
        "aux_loss": count,
        "se_loss": images * num_classes,
        "aux_se_loss": images * num_classes,
        "dice_loss": images,
        **dict.fromkeys(own, images),
    }


def weighted_loss(terms: Mapping[TermName, Term], divisors: Tensor, loss: LossConfig) -> Tensor:
    """The scalar to minimise: the sum over the terms of weight * sum / divisor.

    divisors (T,) are sums over all ranks, in the order of terms. The sum of this value over the ranks is
    the loss of the global batch, so under DDP, which averages gradients, it is multiplied by the number of
    ranks. A weight of 0 keeps its branch in the graph, as DDP expects.
    """
    weights = term_weights(loss)
    means = term_means(torch.stack([term.sum for term in terms.values()]), divisors)
    return torch.stack([weights[name] * mean for name, mean in zip(terms, means, strict=True)]).sum()


def term_means(sums: Tensor, divisors: Tensor) -> Tensor:
    """sums / divisors, and 0 with a gradient of 0 where nothing was counted."""
    return sums * divisors.reciprocal().masked_fill(divisors == 0, 0)


def term_weights(loss: LossConfig) -> dict[TermName, float]:
    """Weight of each term by its name, even of terms that the model has no output for."""
    names: tuple[BuiltInTerm, ...] = get_args(BuiltInTerm)
    weights: dict[TermName, float] = {name: _weight(name, loss) for name in names}
    return weights | {PartName(name): weight for name, weight in loss.terms.items()}


def own_losses(loss: LossConfig, device: str = "cpu") -> dict[PartName, LossPart]:
    """The losses of `loss.terms`, ready to be called; also those of weight 0, whose figures are recorded.

    A module's buffers are on `device`.
    """
    names = [PartName(name) for name in loss.terms]
    parts = {name: bind_part("loss", name, loss.args.get(name, {})) for name in names}
    return {n: part.to(device) if isinstance(part, nn.Module) else part for n, part in parts.items()}


def hard_labels(logits: Tensor, labels: Tensor, threshold: float, min_share: float) -> Tensor:
    """Ignore the easy pixels: online hard example mining (Shrivastava et al., CVPR 2016).

    logits (B, C, H, W), labels (B, H, W) int64 -> (B, H, W), the easy pixels as IGNORE. A pixel is hard if
    its class has a probability below `threshold`. At least `min_share` of an image's labelled pixels
    stay: the hardest ones, and all that are as hard as the last of them. mmsegmentation's sampler takes this
    minimum over one rank's batch, which would make the loss depend on the number of ranks.
    """
    losses = F.cross_entropy(logits.detach(), labels, ignore_index=IGNORE, reduction="none").flatten(1)
    num_labelled = (labels != IGNORE).flatten(1).sum(dim=1)
    num_kept = (num_labelled.double() * min_share).ceil().long().clamp(min=1)
    # An ignored pixel has a loss of 0, so it never ranks before a labelled one.
    hardest = losses.topk(math.ceil(losses.shape[1] * min_share), dim=1).values
    least = hardest.gather(1, num_kept.unsqueeze(1) - 1)
    hard = (losses > -math.log(threshold)) | (losses >= least)
    return torch.where(hard.view_as(labels), labels, IGNORE)


def class_presence(labels: Tensor, num_classes: int) -> Tensor:
    """Target of the SE-loss, labels (B, H, W) -> (B, num_classes): 1 if the image has the class."""
    ignored = num_classes  # a last column takes the ignored pixels and is cut off
    index = torch.where(labels == IGNORE, ignored, labels.long()).flatten(1)
    counted = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, index, 1.0)
    return counted[:, :num_classes]


def _weight(name: BuiltInTerm, loss: LossConfig) -> float:
    match name:
        case "pixel_loss":
            return loss.ce_weight
        case "se_loss" | "aux_se_loss":
            return loss.se_weight  # the paper's alpha
        case "aux_loss":
            return loss.aux_weight
        case "dice_loss":
            return loss.dice_weight


def _cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, label_smoothing: float
) -> Term:
    logits = _at_least_float32(logits)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    # Summed here, since cross_entropy's own sum is not deterministic on GPUs.
    losses = F.cross_entropy(
        logits,
        labels,
        weight=class_weights,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return Term(losses.sum(), _num_weighted(labels, class_weights))


def _num_weighted(labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """The number of labelled pixels, or the sum of their weights."""
    labelled = labels != IGNORE
    if class_weights is None:
        return labelled.sum()
    return (class_weights[torch.where(labelled, labels, 0)] * labelled).sum()


def _has_labels(labels: Tensor) -> Tensor:
    """Whether an image (B,) has labelled pixels."""
    return (labels != IGNORE).flatten(1).any(dim=1)


def _se_loss(presence_logits: Tensor, labels: Tensor) -> Term:
    """Binary cross-entropy of each class's presence (Zhang et al., CVPR 2018)."""
    logits = _at_least_float32(presence_logits)
    num_classes = logits.shape[1]
    target = class_presence(labels, num_classes).to(logits.dtype)
    per_image = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
    has_labels = _has_labels(labels)
    return Term((per_image * has_labels).sum(), has_labels.sum() * num_classes)


def _dice_loss(logits: Tensor, labels: Tensor) -> Term:
    """Soft Dice loss (Milletari et al., V-Net, 3DV 2016) of each image, over the classes that it has.

        1 - mean_c 2 sum_i p_ic g_ic / (sum_i p_ic^2 + sum_i g_ic)

    p is the softmax, g is 1 where the label is c, and i runs over the labelled pixels. A class that an image
    lacks is left out of its mean: its best value would be 0/0, and the other classes' terms see its pixels.
    """
    labelled = (labels != IGNORE).flatten(1)
    index = torch.where(labelled, labels.flatten(1), 0)
    probabilities = logits.softmax(dim=1).flatten(2)  # (B, C, H * W)
    of_truth = probabilities.gather(1, index.unsqueeze(1)).squeeze(1) * labelled
    by_class = logits.new_zeros(logits.shape[:2])
    overlap = by_class.scatter_add(1, index, of_truth)
    pixels = by_class.scatter_add(1, index, labelled.to(logits.dtype))
    present = pixels > 0
    squares = probabilities.square().masked_fill(~labelled.unsqueeze(1), 0).sum(dim=2)
    sizes = (squares + pixels).masked_fill(~present, 1)
    num_present = present.sum(dim=1)
    dice = (2 * overlap / sizes).sum(dim=1) / num_present.clamp(min=1)  # an absent class overlaps nothing
    has_labels = num_present > 0
    return Term(((1 - dice) * has_labels).sum(), has_labels.sum())


def _own_loss(name: PartName, part: LossPart, logits: Tensor, labels: Tensor) -> Term:
    has_labels = _has_labels(labels)
    values = part(logits, labels)
    if values.shape != has_labels.shape:
        raise UserError(
            f"loss {name}: must return a value for each image, ({len(labels)},), but got "
            f"{tuple(values.shape)}"
        )
    # It may compute in another number format, in which sums over a batch would lose digits.
    return Term(torch.where(has_labels, values.to(logits.dtype), 0).sum(), has_labels.sum())


def _at_least_float32(logits: Tensor) -> Tensor:
    """A loss needs more digits than the bfloat16 logits of autocast have."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
