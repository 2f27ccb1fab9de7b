"""Backbones: four stages of features, the last ones dilated instead of strided."""

from pathlib import Path

from torch import nn

from encsearch.config import DEEP_STEM_BACKBONES, IMAGENET, TIMM_PREFIX, TORCHVISION_BACKBONES
from encsearch.errors import PreflightError
from encsearch.model.backbones.base import Backbone, StagedBackbone
from encsearch.model.backbones.resnet import dilate_resnet, resnet
from encsearch.model.backbones.timm import TimmBackbone, find_published_timm_file, timm_backbone
from encsearch.model.backbones.tiny import tiny
from encsearch.model.backbones.weights import find_published_file, read_tensors, select_fitting

__all__ = [
    "Backbone",
    "StagedBackbone",
    "build_backbone",
    "find_weights",
    "load_own_weights",
    "sync_batch_norms",
]


def build_backbone(name: str, output_stride: int = 8, weights: str | None = None) -> Backbone:
    """The backbone `name` of `ModelConfig` at a given stride of its last stage; random weights, or a file's.

    weights: a state dict (.safetensors, or .pth of tensors alone) of the network of that name, which
    torchvision, EncNet's authors, timm or this package wrote; `imagenet` is what torchvision or timm has.

    Raises UserError for a stride or a name of timm that does not exist, and for a file that is absent,
    unreadable or does not fit.
    """
    path = find_weights(name, weights)
    if name.startswith(TIMM_PREFIX):
        timm_name = name.removeprefix(TIMM_PREFIX)
        return timm_backbone(timm_name, output_stride, path, published=weights == IMAGENET)
    if name == "tiny":
        backbone = tiny(output_stride)
        if path:
            _load(backbone, path, owner=name)
        return backbone
    net = resnet(name)
    if path:
        _load(net, path, owner=name if name in DEEP_STEM_BACKBONES else f"torchvision's {name}")
    return dilate_resnet(net, name, output_stride)


def find_weights(name: str, weights: str | None) -> Path | None:
    """The file that `model.weights` names for the backbone `name`; None for random weights.

    `imagenet` is torchvision's IMAGENET1K_V1 in torch's cache, or timm's default weights in the hub's, and
    is downloaded if it is not there. Raises PreflightError, within seconds, if the file is out of reach.
    """
    if weights is None:
        return None
    if weights != IMAGENET:
        if not Path(weights).is_file():
            raise PreflightError(f"model.weights={weights}: no such file")
        return Path(weights)
    if name.startswith(TIMM_PREFIX):
        return find_published_timm_file(name.removeprefix(TIMM_PREFIX))
    assert name in TORCHVISION_BACKBONES, name
    from torchvision.models import get_model_weights

    return find_published_file(get_model_weights(name).IMAGENET1K_V1.url)


def load_own_weights(backbone: nn.Module, name: str, weights: str | None) -> None:
    """Load the file that `model.weights` names into an own backbone. Raises as `build_backbone` does."""
    path = find_weights(name, weights)
    if path:
        _load(backbone, path, owner=name)


def sync_batch_norms(model: nn.Module) -> None:
    """Replace every batch norm below `model` by one that uses the statistics of all ranks.

    PyTorch's own conversion drops the activation that timm's batch norms hold; timm's keeps it.
    """
    if any(isinstance(module, TimmBackbone) for module in model.modules()):
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _load(net: nn.Module, path: Path, owner: str) -> None:
    tensors = select_fitting(read_tensors(path), net.state_dict(), owner=owner, path=path, classifiers=["fc"])
    net.load_state_dict(tensors, strict=False)  # without the classifier and, in old files, the BN counters
