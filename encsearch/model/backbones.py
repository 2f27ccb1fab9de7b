"""Backbones: four stages of features, the last ones dilated instead of strided."""

import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encsearch.errors import UserError
from encsearch.model.heads import conv_bn_relu

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# What torch.load (2.15, weights_only) raises for junk, found by feeding it random and mutated files.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)
_TINY_CHANNELS = (16, 32, 48, 48)


class Backbone(nn.Module):
    """What every backbone is: images (B, 3, H, W) -> the features of four stages, finest first.

    Stage i has `channels[i]` channels; the last one is (ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], channels: Sequence[int], stride: int
    ) -> None:
        super().__init__()
        assert len(stages) == len(channels) == 4
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)
        self.stride = stride

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images)
        return [features := stage(features) for stage in self.stages]


def build_backbone(name: str, output_stride: int = 8, weights: str | None = None) -> Backbone:
    """The backbone `name` at a given stride of its last stage, randomly initialised or from a file.

    weights: a state dict (.safetensors, or .pth of tensors alone) of torchvision's network of that name, or
    of `tiny`. Nothing is ever downloaded.

    Raises UserError for an unknown name or stride, and for a file that is absent, unreadable or does not fit.
    """
    if name == "tiny":
        return _tiny(output_stride, weights)
    if name in _RESNETS:
        return _resnet(name, output_stride, weights)
    raise UserError(f"there is no backbone {name!r}; try one of {', '.join(('tiny', *_RESNETS))}")


def _resnet(name: str, output_stride: int, weights: str | None) -> Backbone:
    """torchvision's network; the deep stem of the reference code's "s" variants has no weights there."""
    _check_stride(name, output_stride, (8, 16, 32))
    net = torchvision.models.get_model(name, weights=None)
    channels = [net.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    net.fc = nn.Identity()
    if weights:
        _load_weights(net, name, weights)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    if output_stride <= 16:
        _dilate(stages[3], incoming=16 // output_stride)
    if output_stride == 8:
        _dilate(stages[2], incoming=1)
    return Backbone(stem, stages, channels, output_stride)


def _tiny(output_stride: int, weights: str | None) -> Backbone:
    """Five small convolutions for generated images of 64 to 96 px on a CPU.

    It must not see far: at stride 4 its features reach 23 px, those of an FCN head above it 31 px, and after
    upsampling a pixel's logits depend on no image pixel more than 20 px away, so that only a context module
    sees the rest (at stride 8: 23 px, 39 px, 30 px away).
    """
    _check_stride("tiny", output_stride, (4, 8))
    c1, c2, c3, c4 = _TINY_CHANNELS
    stem = conv_bn_relu(3, c1, kernel_size=3, stride=2)
    stages = [
        conv_bn_relu(c1, c1, kernel_size=3, stride=2),
        conv_bn_relu(c1, c2, kernel_size=3),
        conv_bn_relu(c2, c3, kernel_size=3),
        conv_bn_relu(c3, c4, kernel_size=1, stride=output_stride // 4),
    ]
    backbone = Backbone(stem, stages, _TINY_CHANNELS, output_stride)
    if weights:
        _load_weights(backbone, "tiny", weights)
    return backbone


def _check_stride(name: str, output_stride: int, allowed: tuple[int, ...]) -> None:
    if output_stride not in allowed:
        raise UserError(f"output_stride={output_stride} does not exist for {name}; try {allowed}")


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


def _load_weights(net: nn.Module, name: str, path: str) -> None:
    found = {key: value for key, value in _read_tensors(path).items() if not key.startswith("fc.")}
    # Files written before PyTorch 0.4.1 lack the BN counters, which nothing here reads.
    wanted = {
        key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in net.state_dict()]
    misshapen = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    for problem, keys in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen)):
        if keys:
            raise UserError(
                f"{path}: not the weights of {name}: {len(keys)} keys {problem}, {keys[0]} the first; "
                f"give the state dict of {'torchvision' if name in _RESNETS else 'encsearch'}'s {name}"
            )
    net.load_state_dict(found, strict=False)


def _read_tensors(path: str) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(
            f"{path}: no such weights file; model.weights names a local .safetensors or .pth file"
        )
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights ({reason}); save a plain state dict") from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path}: holds more than tensors by name; save the state dict alone")
    return state
