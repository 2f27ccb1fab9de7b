"""Heads that come back to the resolution of the first stage: DeepLabv3+, U-Net and RefineNet.

Stages of one resolution, as a dilated backbone has them, are joined without resizing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.model.layers import conv_bn, conv_bn_relu, resize
from encsearch.model.pyramids import aspp

_LOW_LEVEL_CHANNELS = 48


class DeepLabV3Plus(nn.Module):
    """DeepLabv3's pyramid joined to stage 1, then two 3x3 (Chen et al., ECCV 2018, section 3.1).

    Stage 1 is brought to 48 channels by 1x1, so that it does not outweigh the pyramid.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int, stride: int) -> None:
        super().__init__()
        stage1, _, _, stage4 = stage_channels
        self.pyramid = aspp(stage4, channels, stride)
        self.low_level = conv_bn_relu(stage1, _LOW_LEVEL_CHANNELS, kernel_size=1)
        self.fuse = _two_convolutions(channels + _LOW_LEVEL_CHANNELS, channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        stage1, _, _, stage4 = stages
        context = resize(self.pyramid(stage4), stage1)
        fused: Tensor = self.fuse(torch.cat([context, self.low_level(stage1)], dim=1))
        return fused


class UNet(nn.Module):
    """The expanding path of U-Net (Ronneberger et al., MICCAI 2015) over the backbone's stages.

    From the last stage to the first: resize to the next finer stage, join it, two 3x3. Two things differ
    from the paper: resizing is bilinear, so that sizes may be odd, and all levels have `channels`.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        *skips, stage4 = stage_channels
        coarser = [stage4, channels, channels]
        self.fuse = nn.ModuleList(
            _two_convolutions(below + skip, channels)
            for below, skip in zip(coarser, reversed(skips), strict=True)
        )

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        *skips, features = stages
        for fuse, skip in zip(self.fuse, reversed(skips), strict=True):
            features = fuse(torch.cat([resize(features, skip), skip], dim=1))
        return features


class RefineNet(nn.Module):
    """Multi-path refinement, from the last stage to the first (Lin et al., CVPR 2017).

    Smaller than the paper's network: one residual unit where it has two, and half of `channels` in all
    blocks. It has BN, which the paper leaves out, so that it trains at the learning rate of the other heads.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        width = (channels + 1) // 2
        self.adapt = nn.ModuleList(
            nn.Sequential(conv_bn(stage, width, kernel_size=3), _ResidualUnit(width))
            for stage in stage_channels
        )
        self.fuse = nn.ModuleList(_Fusion(width) for _ in stage_channels[1:])
        self.refine = nn.ModuleList(
            nn.Sequential(_ChainedPooling(width), _ResidualUnit(width)) for _ in stage_channels
        )
        self.expand = conv_bn_relu(width, channels, kernel_size=3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = (adapt(stage) for adapt, stage in zip(self.adapt, stages, strict=True))
        *refine_finer, refine_coarsest = self.refine
        features = refine_coarsest(coarsest)
        levels = list(zip(self.fuse, refine_finer, finer, strict=True))
        for fuse, refine, stage in reversed(levels):
            features = refine(fuse(stage, features))
        expanded: Tensor = self.expand(features)
        return expanded


class _ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))) with 3x3 convolutions (section 3.2, "residual convolution unit")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.ReLU(),
            conv_bn_relu(channels, channels, kernel_size=3),
            conv_bn(channels, channels, kernel_size=3),
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = features + self.change(features)
        return changed


class _Fusion(nn.Module):
    """The sum of two resolutions after a 3x3 convolution of each, at the finer one (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.finer = conv_bn(channels, channels, kernel_size=3)
        self.coarser = conv_bn(channels, channels, kernel_size=3)

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        fused: Tensor = self.finer(finer) + resize(self.coarser(coarser), finer)
        return fused


class _ChainedPooling(nn.Module):
    """Background context: two times 5x5 max pooling and 3x3, each on the last result, all added up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(5, stride=1, padding=2), conv_bn(channels, channels, kernel_size=3))
            for _ in range(2)
        )

    def forward(self, features: Tensor) -> Tensor:
        total = pooled = F.relu(features)
        for pool in self.pools:
            pooled = pool(pooled)
            total = total + pooled
        return total


def _two_convolutions(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn_relu(in_channels, channels, kernel_size=3), conv_bn_relu(channels, channels, kernel_size=3)
    )
