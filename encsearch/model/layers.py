"""Building blocks of backbones, heads and context modules."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps H and W (up to `stride`), without the bias that BN would remove."""
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel_size, stride), nn.ReLU(inplace=True))


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """`conv_bn_relu` without the ReLU, for places where something is added before it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def most_likely(logits: Tensor) -> Tensor:
    """The class with the largest logit: (B, num_classes, H, W) -> (B, H, W) int64."""
    return logits.max(dim=1).indices  # argmax gives the same in three times the time (torch 2.15, CPU)


def upsample(logits: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size`, in float32 at least: cross-entropy would copy bfloat16 to it.

    On GPUs the gradient is computed by two matrix products: PyTorch's own backward pass adds atomically, so
    its last digits differ from run to run, and with 59 classes of 480 x 480 px it takes 9 % of the step of a
    ResNet-101 (H100, torch 2.11).
    """
    # Channels first, in which cross-entropy would have to copy the large logits otherwise.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    if logits.is_cuda and torch.is_grad_enabled():
        upsampled: Tensor = _Upsample.apply(logits, size, align_corners)
        return upsampled
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of `like`; corners are not aligned."""
    size = like.shape[-2:]
    # No branch in an exported graph: a fact about its example would be demanded of every image.
    if not torch.compiler.is_exporting() and features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class _Upsample(torch.autograd.Function):
    """`F.interpolate`, which is linear along each side, with the transposed matrices as its gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.sides, ctx.align_corners = (logits.shape[-2:], size), align_corners
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = (
            _interpolation(small, large, ctx.align_corners, grad)
            for small, large in zip(*ctx.sides, strict=True)
        )
        with torch.autocast(grad.device.type, enabled=False):
            return rows @ (grad @ columns.mT), None, None


def _interpolation(small: int, large: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix (small, large) of linear interpolation: column j has the weights of the result at j."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size=large, mode="linear", align_corners=align_corners)[0]
