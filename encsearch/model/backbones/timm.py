"""Any network of timm through one adapter; timm is optional (`pip install encsearch[timm]`)."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.errors import PreflightError, UserError, first_line
from encsearch.model.backbones.base import Backbone, check_stride
from encsearch.model.backbones.weights import (
    check_reply,
    find_published_file,
    read_tensors,
    select_fitting,
    unreachable_error,
)

# Errors that timm's constructors and networks raise for an unknown argument or image size.
_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# Not square and no network's own size; divisible by 32, which every network with stages may ask for.
_PROBE_SIZE = (96, 160)

# Options that may make a network fit: any image size for transformers, dilation for convolutional networks.
_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {},
    {"dynamic_img_size": True},
    {"output_stride": 16},
    {"output_stride": 8},
)

_HUB_FILE = "model.safetensors"


class TimmBackbone(Backbone):
    """The last four feature levels of a timm network.

    - Images are normalised anew where the network was trained with another mean and deviation than
      ImageNet's.
    - Images are resized to multiples of the stride, since some networks drop the pixels beyond whole patches
      and others refuse them. Sizes that are multiples stay as they are.
    - Features in the order (B, H, W, C) are permuted.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, net: Any, stride: int) -> None:
        super().__init__(net.feature_info.channels(), stride)
        self.net = net
        self.channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        gain, shift = _compute_renormalisation(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
        self.register_buffer("gain", gain)
        self.register_buffer("shift", shift)
        # A bundle's model is built without storage and filled from its file, so all buffers must be there.
        for module in net.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer)

    def forward(self, images: Tensor) -> list[Tensor]:
        size = [-(-length // self.stride) * self.stride for length in images.shape[-2:]]
        images = F.interpolate(images * self.gain + self.shift, size=size, mode="bilinear")
        features: list[Tensor] = self.net(images)
        return [stage.permute(0, 3, 1, 2) for stage in features] if self.channels_last else features


def timm_backbone(name: str, output_stride: int, weights: Path | None, *, published: bool) -> TimmBackbone:
    """timm's network `name`, which may end with the tag of its weights, as in resnet18.a1_in1k.

    weights: a file from `find_published_timm_file`, in whatever layout timm converts, or (not `published`)
    the state dict of the network.

    Raises UserError for an unknown name, a network that does not give four stages for images of any size, a
    stride that it does not have and an unfit file, and PreflightError without timm.
    """
    _check_name(name)
    options = _find_options_by_stride(name)
    check_stride(f"timm:{name}", output_stride, sorted(options))
    if weights is None:
        return TimmBackbone(_create(name, **options[output_stride]), output_stride)
    tensors = read_tensors(weights)
    if not published:
        _check_fit(name, tensors, weights)
    overlay = {"file": str(weights), "custom_load": False}
    with _quiet_loading():
        net = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **options[output_stride])
    return TimmBackbone(net, output_stride)


def find_published_timm_file(name: str) -> Path:
    """The file of timm's weights for `name` in the cache of the hub or of torch, downloaded if needed.

    Raises UserError for an unknown name or one without weights, PreflightError if the file is out of reach.
    """
    timm = _import_timm()
    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"model.weights=imagenet: timm has no weights of {name}; give null or a file")
    if not config.hf_hub_id:
        return find_published_file(config.url)
    return _find_hub_file(config.hf_hub_id)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise PreflightError(
            "model.backbone=timm:NAME needs the package timm; pip install 'encsearch[timm]'"
        ) from None
    module: ModuleType = timm
    return module


def _check_name(name: str) -> None:
    known = _import_timm().list_models(include_tags="." in name)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them"
        raise UserError(f"there is no backbone timm:{name}; {hint}")


def _check_fit(name: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """timm itself loads what fits and leaves the rest random. Raises UserError if the file has other keys."""
    timm = _import_timm()
    classifier = timm.get_pretrained_cfg(name).classifier or ()
    with torch.device("meta"):
        net = timm.create_model(name)
    wanted = net.state_dict()
    # Some published files hold buffers that are computed since.
    computed = {key for key, _ in net.named_buffers()} - wanted.keys()
    found = {key: value for key, value in tensors.items() if key not in computed}
    names = [classifier] if isinstance(classifier, str) else classifier
    select_fitting(found, wanted, owner=f"timm's {name}", path=path, classifiers=names)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without timm's warning of unused keys: a file has those of the layers after the last feature level."""
    log = logging.getLogger("timm.models._builder")
    log.addFilter(_is_of_use)
    try:
        yield
    finally:
        log.removeFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Unexpected keys")


def _create(name: str, **options: Any) -> Any:
    """The module that gives the last four feature levels; its `feature_info` describes them."""
    return _import_timm().create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **options)


@cache
def _find_options_by_stride(name: str) -> dict[int, dict[str, Any]]:
    """The output strides of a network, with the arguments of `create_model` that give them.

    Found by building it: some of timm's constructors lack the arguments, some refuse their values, and some
    describe other features than they give. On the meta device it takes up to a second.
    """
    found: dict[int, dict[str, Any]] = {}
    refusals = []
    for options in _ATTEMPTS:
        try:
            found.setdefault(_measure_stride(name, options), options)
        except _REFUSALS as error:
            refusals.append(first_line(error))
    if not found:
        raise UserError(
            f"timm:{name} does not give four feature levels for images of any size ({refusals[0]}); "
            "try another, such as timm:convnext_tiny"
        )
    return found


@torch.no_grad()
def _measure_stride(name: str, options: dict[str, Any]) -> int:
    """The stride of the last stage; raises one of _REFUSALS unless all stages are what timm says of them."""
    with torch.device("meta"):
        net = _create(name, **options).eval()
        levels = TimmBackbone(net, stride=1)(torch.empty(1, 3, *_PROBE_SIZE))
    strides: list[int] = net.feature_info.reduction()
    described = zip(net.feature_info.channels(), strides, strict=True)
    expected = [(1, channels, *(-(-length // s) for length in _PROBE_SIZE)) for channels, s in described]
    if [tuple(level.shape) for level in levels] != expected:
        raise ValueError(f"they have not the sizes of the strides {strides}")
    return strides[-1]


def _compute_renormalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Gain and shift (3, 1, 1) that turn ImageNet's normalisation into one by `mean` and `std`."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    own_mean, own_std = torch.tensor(mean), torch.tensor(std)
    gain = torch.tensor(IMAGENET_DEFAULT_STD) / own_std
    shift = (torch.tensor(IMAGENET_DEFAULT_MEAN) - own_mean) / own_std
    return gain[:, None, None], shift[:, None, None]


def _find_hub_file(repository: str) -> Path:
    """From the hub's cache, or downloaded after one question: its client tries five times, for 24 s."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, _HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    url, folder = hf_hub_url(repository, _HUB_FILE), Path(constants.HF_HUB_CACHE)
    label = f"{_HUB_FILE} of {repository}"
    check_reply(url, label, folder)
    try:
        return Path(hf_hub_download(repository, _HUB_FILE))
    except OSError as error:
        raise unreachable_error(label, folder, url, error) from None
