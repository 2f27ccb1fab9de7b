"""Heads: from the backbone's stages to the features that are classified, and the classifier itself."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_head(
    name: str, stage_channels: Sequence[int], channels: int, *, stride: int, lateral: bool
) -> nn.Module:
    """The head `name`: the features of four stages, finest first -> (B, channels, h, w).

    `stride` is the last stage's; `lateral` is for `fcn` alone.
    """
    if name == "fcn":
        return FCNFeatures(stage_channels, channels, lateral)
    raise ValueError(f"there is no head {name!r}")


class FCNFeatures(nn.Module):
    """conv3x3-BN-ReLU on the last stage, as in FCN and EncNet.

    With `lateral` connections (reference code, for PASCAL-Context and COCO) stages 2 and 3 are projected by
    1x1, resized to the last stage if they are finer, joined to it and fused by 3x3.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int, lateral: bool) -> None:
        super().__init__()
        _, stage2, stage3, stage4 = stage_channels
        self.project = conv_bn_relu(stage4, channels, kernel_size=3)
        self.connect = nn.ModuleList()
        if lateral:
            self.connect.extend(conv_bn_relu(width, channels, kernel_size=1) for width in (stage2, stage3))
            self.fuse = conv_bn_relu(3 * channels, channels, kernel_size=3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        _, stage2, stage3, stage4 = stages
        features: Tensor = self.project(stage4)
        if not self.connect:
            return features
        laterals = [
            resize(connect(stage), features)
            for connect, stage in zip(self.connect, (stage2, stage3), strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([features, *laterals], dim=1))
        return fused


def fcn_head(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """The auxiliary head: conv3x3-BN-ReLU to a quarter of the channels, then the classifier."""
    channels = in_channels // 4
    return nn.Sequential(
        conv_bn_relu(in_channels, channels, kernel_size=3), classifier(channels, num_classes, dropout)
    )


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, as in the reference code, and conv1x1."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps H and W (up to `stride`), without the bias that BN would remove."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the height and width of `like`; corners are not aligned."""
    size = like.shape[-2:]
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
