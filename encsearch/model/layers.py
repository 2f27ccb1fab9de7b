"""Building blocks of backbones, heads and context modules."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps H and W (up to `stride`), without the bias that BN would remove."""
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel_size, stride), nn.ReLU(inplace=True))


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """`conv_bn_relu` without the ReLU, for places where something is added before it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of `like`; corners are not aligned."""
    size = like.shape[-2:]
    # No branch in an exported graph: a fact about its example would be demanded of every image.
    if not torch.compiler.is_exporting() and features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
