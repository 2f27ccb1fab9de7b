"""Heads: from the backbone's stages to the features that are classified, and the classifier itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encsearch.config import Head
from encsearch.model.decoders import DeepLabV3Plus, RefineNet, UNet
from encsearch.model.layers import conv_bn_relu, resize
from encsearch.model.pyramids import DeepLabV3, PSPNet


def build_head(
    name: Head, stage_channels: Sequence[int], channels: int, *, stride: int, lateral: bool
) -> nn.Module:
    """The head `name`: the features of four stages, finest first -> (B, channels, h, w).

    (h, w) is the last stage's size for fcn, pspnet and deeplabv3, and the first stage's for the others.
    `stride` is the last stage's; `lateral` is for fcn alone.
    """
    match name:
        case "fcn":
            return FCNFeatures(stage_channels, channels, lateral)
        case "pspnet":
            return PSPNet(stage_channels, channels)
        case "deeplabv3":
            return DeepLabV3(stage_channels, channels, stride)
        case "deeplabv3plus":
            return DeepLabV3Plus(stage_channels, channels, stride)
        case "unet":
            return UNet(stage_channels, channels)
        case "refinenet":
            return RefineNet(stage_channels, channels)


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
