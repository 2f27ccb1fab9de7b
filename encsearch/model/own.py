"""Own backbones, heads and context modules: they are made, and tried once on images of zeros.

    backbone   Part(output_stride, **args), if it takes output_stride; it has `channels`, four numbers
               (B, 3, H, W) -> four features, finest first, the last one of stride `stride`
    head       Part(stage_channels, channels, **args)
               four features -> (B, channels, h, w)
    context    Part(channels, **args)
               (B, C, H, W) -> (B, C), one vector for each image, which scales channels and predicts presence

Each is an nn.Module of which nothing but the outputs is looked at. `EncNet` takes a backbone as a module too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encsearch.config import ModelConfig
from encsearch.errors import UserError, one_line
from encsearch.parts import Kind, PartName, load_part, make_part, takes
from encsearch.text import format_given

PROBE = 2, 3, 128, 192  # images of a size that is divisible by 64 and not square


def own_backbone(name: PartName, model: ModelConfig) -> Any:
    """Make the backbone. Raises UserError for what is none, and for another stride than the recipe's."""
    args = model.args.get(name, {})
    if takes(load_part("backbone", name), "output_stride"):
        args = {"output_stride": model.output_stride, **args}
    backbone = check_backbone(make_part("backbone", name, args), name)
    if backbone.stride != model.output_stride:
        raise UserError(
            f"backbone {name}: its last stage has stride {backbone.stride}, but model.output_stride="
            f"{model.output_stride}; set that to {backbone.stride}, or make the part of another stride"
        )
    return backbone


def own_head(name: PartName, model: ModelConfig, stage_channels: Sequence[int]) -> nn.Module:
    """Make the head, for stages of these channels. Raises UserError for what is none."""
    args = model.args.get(name, {})
    head = _module("head", name, make_part("head", name, args, stage_channels, model.channels))
    strides = [min(4 * 2**number, model.output_stride) for number in range(4)]
    stages = [
        torch.zeros(PROBE[0], channels, PROBE[2] // stride, PROBE[3] // stride)
        for channels, stride in zip(stage_channels, strides, strict=True)
    ]
    found = _try("head", name, head, stages)
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[:2] != (PROBE[0], model.channels):
        raise _refuse("head", name, f"features (B, {model.channels}, h, w)", found)
    return head


def own_context(name: PartName, model: ModelConfig, channels: int) -> nn.Module:
    """Make the module from features to the context vector. Raises UserError for what is none."""
    context = _module("context", name, make_part("context", name, model.args.get(name, {}), channels))
    found = _try("context", name, context, torch.zeros(PROBE[0], channels, 8, 12))
    if not isinstance(found, Tensor) or found.shape != (PROBE[0], channels):
        raise _refuse("context", name, f"a vector for each image, (B, {channels})", found)
    return context


def check_backbone(given: Any, name: str) -> Any:
    """The module itself, with `channels`, and `stride`, which is measured where it has none.

    Raises UserError.
    """
    backbone: Any = _module("backbone", name, given)
    channels: Any = getattr(backbone, "channels", None)
    is_four = isinstance(channels, Sequence) and len(channels) == 4
    if not is_four or not all(isinstance(number, int) for number in channels):
        raise UserError(
            f"backbone {name}: `channels` must be four numbers, the channels of its stages, but is "
            f"{channels!r}"
        )
    found = _try("backbone", name, backbone, torch.zeros(PROBE))
    is_four = isinstance(found, Sequence) and len(found) == 4 and all(isinstance(f, Tensor) for f in found)
    if not is_four or any(
        f.ndim != 4 or f.shape[:2] != (PROBE[0], c) for f, c in zip(found, channels, strict=True)
    ):
        wanted = ", ".join(f"(B, {number}, h, w)" for number in channels)
        raise _refuse("backbone", name, f"four features {wanted}", found)
    strides = [PROBE[2] / feature.shape[2] for feature in found]
    if strides != sorted(strides) or strides != [PROBE[3] / feature.shape[3] for feature in found]:
        raise _refuse("backbone", name, "features from the finest to the coarsest, each of one stride", found)
    stride = getattr(backbone, "stride", strides[-1])
    if stride != strides[-1] or not strides[-1].is_integer():
        raise UserError(
            f"backbone {name}: its `stride` is {stride}, but its last features have "
            f"{format_given(strides[-1])}"
        )
    if not hasattr(backbone, "stride"):
        backbone.stride = int(stride)
    return backbone


def _module(kind: Kind, name: str, made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UserError(f"{kind} {name}: must make an nn.Module, but got {type(made).__name__}")
    return made


def _try(kind: Kind, name: str, module: nn.Module, given: Any) -> Any:
    """What the module makes of zeros, without dropout and with nothing learnt."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(given)
    except Exception as error:
        raise UserError(f"{kind} {name}: fails on {_describe(given)} ({one_line(error)})") from None
    finally:
        module.train(was_training)


def _refuse(kind: Kind, name: str, wanted: str, found: Any) -> UserError:
    return UserError(f"{kind} {name}: must return {wanted}, but got {_describe(found)}")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_describe, value))}]"
    return type(value).__name__
