"""Segment images with a trained model: whole or by a sliding window, at several scales, and mirrored."""

import math
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import EvalConfig
from encsearch.model.encnet import EncNet, EncNetOutput


class Segmentation(NamedTuple):
    """labels (B, H, W) int64, probabilities (B, num_classes, H, W), presence (B, num_classes).

    `presence` is the probability of each class to be somewhere in the image; None for a model without
    context module.
    """

    labels: Tensor
    probabilities: Tensor
    presence: Tensor | None


@torch.inference_mode()
def segment(model: EncNet, images: Tensor, settings: EvalConfig) -> Segmentation:
    """Segment normalised images (B, 3, H, W) of any size by the mean over all scales and both directions.

    Probabilities are averaged, of pixels and of presence. The authors' code adds exp(logits) instead: a view
    with large logits outvotes the others there, and float32 overflows from a logit of 89 on.
    """
    assert not model.training, "a model segments in eval mode"
    if settings.scales == (1.0,) and not settings.flip and settings.window is None:
        output = model(images)
        # Not the probabilities' own: the softmax in float32 can make two close logits equal.
        return _segmentation(output.logits.argmax(dim=1), _probabilities(output))
    first, *others = product(settings.scales, (False, True) if settings.flip else (False,))
    total = _view(model, images, settings, *first)
    for scale, mirrored in others:
        total = _Pass(*map(torch.add, total, _view(model, images, settings, scale, mirrored)))
    mean = _Pass(*(values / (1 + len(others)) for values in total))
    return _segmentation(mean.pixels.argmax(dim=1), mean)


class _Pass(NamedTuple):
    """Probabilities: pixels (B, num_classes, H, W), presence (B, num_classes), or (B, 0) for None."""

    pixels: Tensor
    presence: Tensor


def _segmentation(labels: Tensor, mean: _Pass) -> Segmentation:
    return Segmentation(labels, mean.pixels, mean.presence if mean.presence.shape[1] else None)


def _view(model: EncNet, images: Tensor, settings: EvalConfig, scale: float, mirrored: bool) -> _Pass:
    """The images resized and mirrored; the pixels' probabilities come back at their size and way round."""
    height, width = images.shape[-2:]
    changed = _resized(images, max(1, round(scale * height)), max(1, round(scale * width)))
    if mirrored:
        changed = changed.flip(-1)
    side = settings.window or max(changed.shape[-2:])
    pixels, presence = _slide(model, changed, side, settings.overlap)
    if mirrored:
        pixels = pixels.flip(-1)
    return _Pass(_resized(pixels, height, width), presence)


def _slide(model: EncNet, images: Tensor, side: int, overlap: float) -> _Pass:
    """The mean over square windows of the pixels' probabilities, the maximum of those of presence.

    An image has a class if one of its windows has it. No window reaches beyond the image: the last of a row
    is moved inside, and along a shorter side the window ends with the image, so that no padding is encoded.
    """
    batch_size, _, height, width = images.shape
    num_windows = images.new_zeros(height, width)
    total: _Pass | None = None
    for top, left in product(_starts(height, side, overlap), _starts(width, side, overlap)):
        window = (..., slice(top, top + side), slice(left, left + side))
        part = _probabilities(model(images[window]))
        if total is None:
            shape = (batch_size, part.pixels.shape[1], height, width)
            total = _Pass(part.pixels.new_zeros(shape), part.presence)
        total.pixels[window] += part.pixels
        total = total._replace(presence=total.presence.maximum(part.presence))
        num_windows[window] += 1
    assert total is not None, "an image has at least one window"
    return total._replace(pixels=total.pixels / num_windows)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along `length` pixels: each `overlap` into the one before, the last at the end."""
    if side >= length:
        return [0]
    stride = max(1, round(side * (1 - overlap)))
    return [min(number * stride, length - side) for number in range(math.ceil((length - side) / stride) + 1)]


def _probabilities(output: EncNetOutput) -> _Pass:
    logits, presence_logits = output.logits, output.presence_logits
    presence = logits.new_empty(len(logits), 0) if presence_logits is None else presence_logits.sigmoid()
    return _Pass(logits.softmax(dim=1), presence)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), bilinear without smoothing, as training zooms images."""
    if values.shape[-2:] == (height, width):
        return values
    return F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)
