"""Parts from the libraries that keep them: segmentation_models_pytorch, timm and albumentations.

`library.yaml` beside this file names them. What an installed package has in the right form needs no lines
here: the recipe names `timm.optim:Lion` itself.
"""

import threading

import albumentations
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn


class Encoder(nn.Module):
    """Any encoder of smp: (B, 3, H, W) -> features at strides 4, 8, 16 and 32, dilated to `output_stride`.

    `weights` are the library's, such as imagenet, which it downloads when the network is made.
    """

    def __init__(self, output_stride: int = 8, name: str = "resnet18", weights: str | None = None) -> None:
        super().__init__()
        self.net = smp.encoders.get_encoder(name, weights=weights)
        if output_stride < 32:
            self.net.make_dilated(output_stride)
        self.channels = tuple(self.net.out_channels[-4:])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return list(self.net(images))[-4:]


class Tversky:
    """smp's Tversky loss, image by image, so that it does not depend on what else is in the batch: (B,)."""

    def __init__(self, alpha: float = 0.3, beta: float = 0.7) -> None:
        self._loss = smp.losses.TverskyLoss("multiclass", ignore_index=255, alpha=alpha, beta=beta)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pairs = zip(logits, labels, strict=True)
        return torch.stack([self._loss(scores[None], truth[None]) for scores, truth in pairs])


class Weather:
    """Fog and gamma of albumentations; the mask stays as it is."""

    def __init__(self, p: float = 0.3) -> None:
        self._p = p
        # A pipeline keeps its random numbers, and several threads decode at once.
        self._of_thread = threading.local()

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        pipeline = getattr(self._of_thread, "pipeline", None)
        if pipeline is None:
            steps = [albumentations.RandomFog(p=self._p), albumentations.RandomGamma(p=self._p)]
            pipeline = self._of_thread.pipeline = albumentations.Compose(steps)
        pipeline.set_random_seed(int(rng.integers(2**31)))
        return pipeline(image=image)["image"], mask
