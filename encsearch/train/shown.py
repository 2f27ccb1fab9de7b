"""Predictions of the same few validation images as a training goes on."""

import base64
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from encsearch.data.codec import encode_png
from encsearch.data.loading import Batch

MAX_EPOCHS = 8
MAX_SIDE_PX = 384


def shown_epochs(epochs: int) -> frozenset[int]:
    """The first, the last, and evenly between them, at most MAX_EPOCHS in all."""
    return frozenset(int(epoch) for epoch in np.linspace(1, epochs, min(epochs, MAX_EPOCHS)).round())


def label_maps(
    model: nn.Module, batches: Iterable[Batch], *, device: torch.device, bf16: bool = False
) -> dict[str, str]:
    """The predicted classes of each image by its id: a grey PNG in base64, its long side MAX_SIDE_PX at most.

    A larger map is thinned out, so that every pixel of it stays a class. The model is left in eval mode.
    """
    maps = {}
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = model(batch.images.to(device)).logits
            labels = logits.argmax(dim=1, keepdim=True).to(torch.uint8)
            factor = max(1, max(labels.shape[-2:]) / MAX_SIDE_PX)
            if factor > 1:
                size = [max(1, round(side / factor)) for side in labels.shape[-2:]]
                labels = F.interpolate(labels, size, mode="nearest-exact")
            for name, label_map in zip(batch.ids, labels[:, 0].cpu().numpy(), strict=True):
                maps[name] = base64.b64encode(encode_png(label_map)).decode("ascii")
    return maps
