"""The fully convolutional head, main and auxiliary."""

from torch import Tensor, nn


class FCNHead(nn.Module):
    """conv3x3-BN-ReLU-dropout-conv1x1: (B, in_channels, H, W) -> (B, num_classes, H, W).

    The two halves can be called apart, so that a context module may stand between them.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.project = conv_bn_relu(in_channels, channels, kernel_size=3)
        # Whole channels are dropped, as in the reference code.
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.project(features))
        return logits


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps H and W (up to `stride`), without the bias that BN would remove."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
