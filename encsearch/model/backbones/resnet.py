"""ResNets, ResNeXts and Wide ResNets of torchvision, and the ResNets with a deep stem.

torchvision is imported where it is used: that takes a second, which other backbones need not pay.
"""

from typing import TYPE_CHECKING

from torch import nn

from encsearch.model.backbones.base import StagedBackbone, check_stride

if TYPE_CHECKING:
    from torchvision.models import ResNet

DEEP_STEMS = {"s": 64, "c": 32}
"""Channels of the first convolution of a deep stem, by the last letter of the network's name."""


def resnet(name: str) -> "ResNet":
    """torchvision's classifier `name`, or one with a deep stem: the authors' resnet50s, timm's resnet50c, ...

    Random weights. Its state dict has the keys of the published files.
    """
    from torchvision.models import get_model

    net, stem = name[:-1], name[-1]
    if stem in DEEP_STEMS:
        return _with_deep_stem(get_model(net, weights=None), DEEP_STEMS[stem])
    return get_model(name, weights=None)


def dilate_resnet(net: "ResNet", name: str, output_stride: int) -> StagedBackbone:
    """The four stages of `net`, whose convolutions are changed in place.

    At stride 8 stage 3 has dilation 1, then 2, and stage 4 has 2, then 4, without a multi-grid: the rule of
    the authors' code.
    """
    check_stride(name, output_stride, (8, 16, 32))
    channels = [net.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    if output_stride <= 16:
        _dilate(stages[3], incoming=16 // output_stride)
    if output_stride == 8:
        _dilate(stages[2], incoming=1)
    return StagedBackbone(stem, stages, channels, output_stride)


def _with_deep_stem(net: "ResNet", width: int) -> "ResNet":
    """Three 3x3 convolutions, of `width`, `width` and twice that, the first strided, in place of the 7x7.

    zhanghang1989/PyTorch-Encoding, encoding/models/backbone/resnet.py (`deep_stem`, `stem_width=64`), as in
    PSPNet; mmsegmentation's ResNetV1c has 32. The BN after the third convolution keeps its name, bn1, and has
    as many channels as that, as has the input of the first block.
    """
    net.conv1 = nn.Sequential(
        _conv(3, width, kernel_size=3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _conv(width, width, kernel_size=3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _conv(width, 2 * width, kernel_size=3),
    )
    net.bn1 = nn.BatchNorm2d(2 * width)
    first = net.layer1[0]
    first.conv1 = _conv(2 * width, first.conv1.out_channels, kernel_size=1)
    first.downsample[0] = _conv(2 * width, first.downsample[0].out_channels, kernel_size=1)
    return net


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """With the initial weights of torchvision's and of the authors' ResNets."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _dilate(stage: nn.Module, incoming: int) -> None:
    """Give up the stride of 2 of `stage`, whose input is already dilated by `incoming`, for dilation.

    The convolution that was strided keeps the dilation of its input and all after it double it, so the new
    features, taken at every second pixel, are the old ones. torchvision does the same for bottleneck blocks
    and refuses the basic blocks of resnet18 and resnet34.
    """
    for conv in stage.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        was_strided = conv.stride == (2, 2)
        dilation = incoming if was_strided else 2 * incoming
        conv.stride = (1, 1)
        conv.dilation = (dilation, dilation)
        conv.padding = (dilation * (conv.kernel_size[0] // 2),) * 2
