"""Published EncNets, as the network of this package: the authors' checkpoints and mmsegmentation's.

Both normalise images as `data.transforms.to_image_tensor` does, and both are dilated to stride 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from encsearch.config import ModelConfig
from encsearch.errors import UserError
from encsearch.model.backbones.resnet import DEEP_STEMS
from encsearch.model.backbones.weights import read_tensors, select_fitting
from encsearch.model.encnet import EncNet


@dataclass(frozen=True)
class Published:
    """A network in eval mode, its configuration and the origin of its weights."""

    origin: Literal["reference", "mmseg"]
    config: ModelConfig
    num_classes: int
    model: EncNet


@dataclass(frozen=True)
class _Layout:
    """How one code base names its tensors: the start of a name -> the start of ours, first match first.

    `unused` are starts of names that segmentation does not need; `preset` has what the shapes do not show.
    """

    preset: Literal["reference", "mmseg"]
    names: Mapping[str, str]
    unused: tuple[str, ...] = ()


# zhanghang1989/PyTorch-Encoding: encoding/models/sseg/encnet.py, fcn.py and base.py.
_REFERENCE = _Layout(
    preset="reference",
    names={
        "pretrained.conv1.": "backbone.stem.0.",
        "pretrained.bn1.": "backbone.stem.1.",
        **{f"pretrained.layer{i + 1}.": f"backbone.stages.{i}." for i in range(4)},
        "head.conv5.": "head.project.",
        "head.connect.": "head.connect.",
        "head.fusion.": "head.fuse.",
        "head.encmodule.encoding.0.": "context.semantics.conv.0.",
        "head.encmodule.encoding.1.": "context.semantics.conv.1.",
        "head.encmodule.encoding.3.": "context.semantics.encoding.",
        "head.encmodule.encoding.4.": "context.semantics.norm.",
        "head.encmodule.fc.0.": "context.weigh.",
        "head.encmodule.selayer.": "context.presence.",
        "head.conv6.1.": "classifier.1.",
        "auxlayer.conv5.0.": "aux_head.0.0.",
        "auxlayer.conv5.1.": "aux_head.0.1.",
        "auxlayer.conv5.4.": "aux_head.1.1.",
    },
    unused=("pretrained.fc.",),
)

# open-mmlab/mmsegmentation: mmseg/models/decode_heads/enc_head.py, fcn_head.py and backbones/resnet.py.
_MMSEG = _Layout(
    preset="mmseg",
    names={
        "backbone.conv1.": "backbone.stem.0.",
        "backbone.bn1.": "backbone.stem.1.",
        "backbone.stem.7.": "backbone.stem.1.",
        "backbone.stem.": "backbone.stem.0.",
        **{f"backbone.layer{i + 1}.": f"backbone.stages.{i}." for i in range(4)},
        "decode_head.bottleneck.conv.": "head.project.0.",
        "decode_head.bottleneck.bn.": "head.project.1.",
        "decode_head.lateral_convs.0.conv.": "head.connect.0.0.",
        "decode_head.lateral_convs.0.bn.": "head.connect.0.1.",
        "decode_head.lateral_convs.1.conv.": "head.connect.1.0.",
        "decode_head.lateral_convs.1.bn.": "head.connect.1.1.",
        "decode_head.fusion.conv.": "head.fuse.0.",
        "decode_head.fusion.bn.": "head.fuse.1.",
        "decode_head.enc_module.encoding_project.conv.": "context.semantics.conv.0.",
        "decode_head.enc_module.encoding_project.bn.": "context.semantics.conv.1.",
        "decode_head.enc_module.encoding.0.": "context.semantics.encoding.",
        "decode_head.enc_module.encoding.1.": "context.semantics.norm.",
        "decode_head.enc_module.fc.0.": "context.weigh.",
        "decode_head.se_layer.": "context.presence.",
        "decode_head.conv_seg.": "classifier.1.",
        "auxiliary_head.convs.0.conv.": "aux_head.0.0.",
        "auxiliary_head.convs.0.bn.": "aux_head.0.1.",
        "auxiliary_head.conv_seg.": "aux_head.1.1.",
    },
)

# Blocks a stage of the bottleneck networks (He et al., CVPR 2016, table 1). ResNet 18 and 34 are left out:
# mmsegmentation dilates the first convolution of their blocks and not the second one.
_RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}

_CODEWORDS = "context.semantics.encoding.codewords"
_SCALE = "context.semantics.encoding.scale"
_SMOOTHING_FACTORS = "context.semantics.encoding.smoothing_factors"
_COUNTER = "num_batches_tracked"  # of BN, not read here


def read_published(path: Path) -> Published:
    """The EncNet in a checkpoint of the authors' code or of mmsegmentation.

    Depth and stem of the backbone, C, K, the classes, lateral connections and the auxiliary head are read
    from the tensors. Raises UserError for a file that cannot be read or is not such an EncNet.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a .pth or .safetensors file")
    return convert(read_tensors(path), path)


def convert(tensors: Mapping[str, Tensor], path: Path) -> Published:
    """`read_published` for tensors in memory, which the model may share; `path` is for the errors."""
    layout = _find_layout(tensors, path)
    state = _rename_tensors(tensors, layout, path)
    config = _read_config(state, layout, path)
    num_classes = len(_get_tensor(state, "classifier.1.weight", 4, path))
    with torch.device("meta"):
        model = EncNet.from_config(config, num_classes)
    model.load_state_dict(
        select_fitting(state, model.state_dict(), owner="an EncNet", path=path), assign=True
    )
    return Published(layout.preset, config, num_classes, model.eval())


def _find_layout(tensors: Mapping[str, Tensor], path: Path) -> _Layout:
    for start, layout in (("decode_head.enc_module.", _MMSEG), ("head.encmodule.", _REFERENCE)):
        if any(name.startswith(start) for name in tensors):
            return layout
    first = next(iter(tensors), "none")
    raise UserError(
        f"{path}: of its {len(tensors)} tensors, {first} the first, none is named head.encmodule.* (the "
        "authors' EncNet) or decode_head.enc_module.* (mmsegmentation's); give a checkpoint of one of them"
    )


def _rename_tensors(tensors: Mapping[str, Tensor], layout: _Layout, path: Path) -> dict[str, Tensor]:
    """The tensors under our names, in float32, the smoothing factors with the paper's sign."""
    state = {}
    strangers = []
    for name, tensor in tensors.items():
        if name.endswith(_COUNTER) or name.startswith(layout.unused):
            continue
        start = next((start for start in layout.names if name.startswith(start)), None)
        if start is None:
            strangers.append(name)
        else:
            state[layout.names[start] + name.removeprefix(start)] = tensor.float()
    if strangers:
        raise UserError(
            f"{path}: {len(strangers)} of {len(tensors)} tensors belong to no EncNet of the published code, "
            f"{strangers[0]} the first; only unchanged networks can be imported"
        )
    if _SCALE in state:
        # Both code bases multiply the squared distance by the scale, the paper by -s.
        state[_SMOOTHING_FACTORS] = -state.pop(_SCALE)
    return state


def _read_config(state: Mapping[str, Tensor], layout: _Layout, path: Path) -> ModelConfig:
    num_codewords, channels = _get_tensor(state, _CODEWORDS, 2, path).shape
    try:
        return ModelConfig(
            backbone=_read_backbone(state, path),
            output_stride=8,
            preset=layout.preset,
            num_codewords=num_codewords,
            rescale_encoding=False,  # a checkpoint does not hold the size of its training crops
            channels=channels,
            lateral=any(name.startswith("head.connect.") for name in state),
            auxiliary="fcn" if any(name.startswith("aux_head.") for name in state) else "none",
        )
    except ValidationError as error:
        raise UserError(f"{path}: K={num_codewords}, C={channels}: {error.errors()[0]['msg']}") from None


def _read_backbone(state: Mapping[str, Tensor], path: Path) -> str:
    blocks = tuple(
        sum(name.startswith(f"backbone.stages.{stage}.") and name.endswith(".conv3.weight") for name in state)
        for stage in range(4)
    )
    if blocks not in _RESNETS:
        raise UserError(
            f"{path}: a backbone with {blocks} bottleneck blocks a stage is not known; known are ResNet 50, "
            "101 and 152"
        )
    resnet = _RESNETS[blocks]
    if "backbone.stem.0.weight" in state:
        return resnet
    width = len(_get_tensor(state, "backbone.stem.0.0.weight", 4, path))
    suffixes = {channels: suffix for suffix, channels in DEEP_STEMS.items()}
    if width not in suffixes:
        raise UserError(f"{path}: a deep stem of {width} channels is not known; known are {[*suffixes]}")
    return resnet + suffixes[width]


def _get_tensor(state: Mapping[str, Tensor], name: str, ndim: int, path: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != ndim:
        found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
        raise UserError(f"{path}: {name} {found}, but an EncNet has it with {ndim} dimensions")
    return tensor
