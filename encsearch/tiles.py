"""Images of any size in bounded memory: what is too large for one pass is cut into overlapping tiles."""

import math
from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from encsearch.config import EvalConfig
from encsearch.inference import segment
from encsearch.model.encnet import EncNet

PASS_BYTES = 4 * 2**30
"""Memory of one pass through the network, roughly; the same everywhere, so that a model gives the same labels
on a small machine as on a large one."""

# Measured on the CPU at output stride 8: 700 bytes a pixel with ResNet-50 and 19 classes, 1340 with 150.
FEATURE_BYTES, CLASS_BYTES = 1000, 8

SEAM_PX = 128
"""By so much a tile reaches into its neighbours; of these pixels the neighbour's labels are kept."""


class Labelled(NamedTuple):
    """labels (B, H, W) uint8 and presence (B, num_classes), the probability of each class; both on the CPU.

    `presence` is None for a model without context module.
    """

    labels: Tensor
    presence: Tensor | None


def pixels_at_once(num_classes: int, settings: EvalConfig) -> int:
    """How many pixels go through the network in one pass, over all images of a batch.

    An image that is zoomed to 1.75 has three times as many for the network.
    """
    zoom = max(1.0, *settings.scales)
    return int(PASS_BYTES / (FEATURE_BYTES + CLASS_BYTES * num_classes) / zoom**2)


def label(model: EncNet, images: Tensor, settings: EvalConfig, max_pixels: int) -> Labelled:
    """Label normalised images (B, 3, H, W) on the model's device, in passes of at most `max_pixels` each.

    Images that fit one pass are segmented whole. A larger one is cut into tiles, each segmented as an image
    of its own, whose context is then the tile's; it has a class if one of its tiles has it.
    """
    height, width = images.shape[-2:]
    if height * width <= max_pixels:
        parts = [_label(model, batch, settings) for batch in images.split(max_pixels // (height * width))]
    else:
        parts = [_label_tiled(model, image[None], settings, max_pixels) for image in images]
    presence = [part.presence for part in parts if part.presence is not None]
    return Labelled(torch.cat([part.labels for part in parts]), torch.cat(presence) if presence else None)


class Tile(NamedTuple):
    """Along one side: pixels start to stop are segmented, those from keep_start to keep_stop are kept."""

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


def _label(model: EncNet, images: Tensor, settings: EvalConfig) -> Labelled:
    found = segment(model, images, settings)
    presence = None if found.presence is None else found.presence.cpu()
    return Labelled(found.labels.to(torch.uint8).cpu(), presence)


def _label_tiled(model: EncNet, image: Tensor, settings: EvalConfig, max_pixels: int) -> Labelled:
    height, width = image.shape[-2:]
    side = math.isqrt(max_pixels)
    seam = min(SEAM_PX, side // 4)
    labels = torch.empty(1, height, width, dtype=torch.uint8)
    presence: Tensor | None = None
    for rows, columns in product(tiles(height, side, seam), tiles(width, side, seam)):
        part = _label(model, image[..., rows.start : rows.stop, columns.start : columns.stop], settings)
        kept = part.labels[
            :,
            rows.keep_start - rows.start : rows.keep_stop - rows.start,
            columns.keep_start - columns.start : columns.keep_stop - columns.start,
        ]
        labels[:, rows.keep_start : rows.keep_stop, columns.keep_start : columns.keep_stop] = kept
        if part.presence is not None:
            presence = part.presence if presence is None else presence.maximum(part.presence)
    return Labelled(labels, presence)
