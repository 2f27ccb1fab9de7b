"""Heads that see the last stage at several sizes: PSPNet and DeepLabv3.

Both pool the whole image to one value a channel and normalise that by BN, so they train on two images a
worker or more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encsearch.model.layers import conv_bn_relu, resize

_BINS = (1, 2, 3, 6)
_RATES = (12, 24, 36)  # at stride 8


class PSPNet(nn.Module):
    """Pyramid pooling (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.2).

    The last stage is averaged over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the image; each of the four is brought
    to a quarter of the channels by 1x1, resized and joined to the stage, and 3x3 fuses all. A map with fewer
    pixels than parts is averaged over parts that overlap.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        *_, stage4 = stage_channels
        width = stage4 // len(_BINS)
        self.pyramid = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv_bn_relu(stage4, width, kernel_size=1))
            for bins in _BINS
        )
        self.fuse = conv_bn_relu(stage4 + len(_BINS) * width, channels, kernel_size=3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        *_, stage4 = stages
        levels = [resize(level(stage4), stage4) for level in self.pyramid]
        fused: Tensor = self.fuse(torch.cat([stage4, *levels], dim=1))
        return fused


class DeepLabV3(nn.Module):
    """Atrous spatial pyramid pooling, then 3x3 (Chen et al., arXiv 1706.05587), as in torchvision."""

    def __init__(self, stage_channels: Sequence[int], channels: int, stride: int) -> None:
        super().__init__()
        *_, stage4 = stage_channels
        self.pyramid = aspp(stage4, channels, stride)
        self.fuse = conv_bn_relu(channels, channels, kernel_size=3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        *_, stage4 = stages
        fused: Tensor = self.fuse(self.pyramid(stage4))
        return fused


def aspp(in_channels: int, channels: int, stride: int) -> nn.Module:
    """torchvision's pyramid: 1x1, three dilated 3x3, the pooled image, and 1x1 with dropout 0.5 over all.

    The rates are 12, 24, 36 at stride 8 and reach equally far in the image at any other `stride`.
    """
    from torchvision.models.segmentation.deeplabv3 import ASPP  # a second, for this head alone

    pyramid: nn.Module = ASPP(in_channels, [rate * 8 // stride for rate in _RATES], channels)
    return pyramid
