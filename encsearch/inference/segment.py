"""Segment images with a trained model: whole or by a sliding window, at several scales, and mirrored.

A larger image than fits one pass is cut into overlapping tiles, so that any size takes bounded memory.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import EvalConfig
from encsearch.model.encnet import EncNetOutput
from encsearch.model.layers import most_likely

PASS_BYTES = 4 * 2**30
"""Approximate memory of one pass through the network; the same everywhere, so that a model gives the same
labels on a small machine as on a large one."""

# Measured on the CPU at output stride 8: 700 bytes a pixel with ResNet-50 and 19 classes, 1340 with 150.
FEATURE_BYTES, CLASS_BYTES = 1000, 8

SEAM_PX = 128
"""Overlap of a tile with each neighbour; in these pixels the neighbour's labels are kept."""


Network = Callable[[Tensor], EncNetOutput]
"""A model in eval mode: normalised images (B, 3, H, W) -> EncNetOutput."""


class Segmentation(NamedTuple):
    """labels (B, H, W) int64, probabilities (B, num_classes, H, W), presence (B, num_classes).

    `presence` is the probability that each class is anywhere in the image; None for a model without a
    context module.
    """

    labels: Tensor
    probabilities: Tensor
    presence: Tensor | None


@torch.inference_mode()
def segment(network: Network, images: Tensor, settings: EvalConfig) -> Segmentation:
    """Segment normalised images (B, 3, H, W) of any size by the mean over all scales and both directions.

    The probabilities of pixels and of presence are averaged. The authors' code adds exp(logits) instead, so a
    view with large logits outvotes the others, and float32 overflows from a logit of 89 on.
    """
    if settings.scales == (1.0,) and not settings.flip and settings.window is None:
        output = network(images)
        # Of the logits, since the softmax in float32 can make two close logits equal.
        return _segmentation(most_likely(output.logits), _probabilities(output))
    first, *others = product(settings.scales, (False, True) if settings.flip else (False,))
    total = _segment_view(network, images, settings, *first)
    for scale, mirrored in others:
        total = _Pass(*map(torch.add, total, _segment_view(network, images, settings, scale, mirrored)))
    mean = _Pass(*(values / (1 + len(others)) for values in total))
    return _segmentation(most_likely(mean.pixels), mean)


class _Pass(NamedTuple):
    """Probabilities: pixels (B, num_classes, H, W), presence (B, num_classes), or (B, 0) for None."""

    pixels: Tensor
    presence: Tensor


class Labelled(NamedTuple):
    """labels (B, H, W) uint8 and presence (B, num_classes), the probability of each class; both on the CPU.

    `presence` is None for a model without a context module.
    """

    labels: Tensor
    presence: Tensor | None


def pixels_at_once(num_classes: int, settings: EvalConfig) -> int:
    """The number of pixels that go through the network in one pass, over all images of a batch.

    An image zoomed to 1.75 gives the network three times as many.
    """
    zoom = max(1.0, *settings.scales)
    return int(PASS_BYTES / (FEATURE_BYTES + CLASS_BYTES * num_classes) / zoom**2)


def label(network: Network, images: Tensor, settings: EvalConfig, max_pixels: int) -> Labelled:
    """Label normalised images (B, 3, H, W) on the model's device, in passes of at most `max_pixels` each.

    Images that fit one pass are segmented whole. A larger one is cut into tiles, and each is segmented as
    an image of its own, so the context is the tile's; an image has a class if one of its tiles has it.
    """
    height, width = images.shape[-2:]
    if height * width <= max_pixels:
        parts = [_label(network, batch, settings) for batch in images.split(max_pixels // (height * width))]
    else:
        parts = [_label_tiled(network, image[None], settings, max_pixels) for image in images]
    presence = [part.presence for part in parts if part.presence is not None]
    return Labelled(torch.cat([part.labels for part in parts]), torch.cat(presence) if presence else None)


class Tile(NamedTuple):
    """Along one side, pixels start to stop are segmented, and pixels keep_start to keep_stop are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def tiles(length: int, side: int, seam: int) -> Iterator[Tile]:
    """Tiles of at most `side` pixels whose kept parts lie end to end over `length`, about equally long."""
    assert side > 2 * seam, (side, seam)
    count = 1 if length <= side else math.ceil(length / (side - 2 * seam))
    ends = [round(number * length / count) for number in range(count + 1)]
    for keep_start, keep_stop in pairwise(ends):
        yield Tile(max(0, keep_start - seam), min(length, keep_stop + seam), keep_start, keep_stop)


def _segmentation(labels: Tensor, mean: _Pass) -> Segmentation:
    return Segmentation(labels, mean.pixels, mean.presence if mean.presence.shape[1] else None)


def _segment_view(
    network: Network, images: Tensor, settings: EvalConfig, scale: float, mirrored: bool
) -> _Pass:
    """Segment resized, perhaps mirrored images; the pixel probabilities are resized and mirrored back."""
    height, width = images.shape[-2:]
    changed = _resize(images, max(1, round(scale * height)), max(1, round(scale * width)))
    if mirrored:
        changed = changed.flip(-1)
    side = settings.window or max(changed.shape[-2:])
    pixels, presence = _slide(network, changed, side, settings.overlap)
    if mirrored:
        pixels = pixels.flip(-1)
    return _Pass(_resize(pixels, height, width), presence)


def _slide(network: Network, images: Tensor, side: int, overlap: float) -> _Pass:
    """Pixel probabilities averaged over square windows; presence is the maximum over the windows.

    An image has a class if one of its windows has it. No window reaches beyond the image: the last of a row
    is moved inside, and along a shorter side the window ends with the image, so that no padding is encoded.
    """
    batch_size, _, height, width = images.shape
    num_windows = images.new_zeros(height, width)
    total: _Pass | None = None
    for top, left in product(_starts(height, side, overlap), _starts(width, side, overlap)):
        window = (..., slice(top, top + side), slice(left, left + side))
        part = _probabilities(network(images[window]))
        if total is None:
            shape = (batch_size, part.pixels.shape[1], height, width)
            total = _Pass(part.pixels.new_zeros(shape), part.presence)
        total.pixels[window] += part.pixels
        total = total._replace(presence=total.presence.maximum(part.presence))
        num_windows[window] += 1
    assert total is not None, "an image has at least one window"
    return total._replace(pixels=total.pixels / num_windows)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Window starts along `length` pixels: `overlap` is the share in common; the last ends at the end."""
    if side >= length:
        return [0]
    stride = max(1, round(side * (1 - overlap)))
    return [min(number * stride, length - side) for number in range(math.ceil((length - side) / stride) + 1)]


def _probabilities(output: EncNetOutput) -> _Pass:
    logits, presence_logits = output.logits, output.presence_logits
    if presence_logits is None:
        presence = logits.new_empty(len(logits), 0)
    else:
        presence = presence_logits.to(logits.dtype).sigmoid()
    return _Pass(logits.softmax(dim=1), presence)


def _resize(values: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), bilinear without smoothing, as training zooms images."""
    if values.shape[-2:] == (height, width):
        return values
    return F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)


def _label(network: Network, images: Tensor, settings: EvalConfig) -> Labelled:
    found = segment(network, images, settings)
    presence = None if found.presence is None else found.presence.cpu()
    return Labelled(found.labels.to(torch.uint8).cpu(), presence)


def _label_tiled(network: Network, image: Tensor, settings: EvalConfig, max_pixels: int) -> Labelled:
    height, width = image.shape[-2:]
    side = math.isqrt(max_pixels)
    seam = min(SEAM_PX, side // 4)
    labels = torch.empty(1, height, width, dtype=torch.uint8)
    presence: Tensor | None = None
    for rows, columns in product(tiles(height, side, seam), tiles(width, side, seam)):
        part = _label(network, image[..., rows.start : rows.stop, columns.start : columns.stop], settings)
        kept = part.labels[
            :,
            rows.keep_start - rows.start : rows.keep_stop - rows.start,
            columns.keep_start - columns.start : columns.keep_stop - columns.start,
        ]
        labels[:, rows.keep_start : rows.keep_stop, columns.keep_start : columns.keep_stop] = kept
        if part.presence is not None:
            presence = part.presence if presence is None else presence.maximum(part.presence)
    return Labelled(labels, presence)
