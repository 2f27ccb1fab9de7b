"""Heads to compare with EncNet: sizes, what trains, what a pixel sees, and the definitions they follow."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.config import Config, Head
from encsearch.model.decoders import RefineNet
from encsearch.model.encnet import EncNet
from encsearch.model.heads import build_head
from encsearch.model.pyramids import DeepLabV3, PSPNet

HEADS: tuple[Head, ...] = get_args(Head)
AT_FIRST_STAGE = ("deeplabv3plus", "unet", "refinenet")
POOLS_THE_IMAGE = ("pspnet", "deeplabv3", "deeplabv3plus")
CHANNELS = (4, 8, 12, 16)
SIZES = ((21, 33), (11, 17), (6, 9), (3, 5))
DILATED_SIZES = ((21, 33), (11, 17), (11, 17), (11, 17))
SMALLER_THAN_THE_BINS = ((4, 3), (2, 2), (1, 1), (1, 1))
ONE_SIZE = ((9, 7),) * 4


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    # CPU convolutions may differ in the last bit with the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def head(name: Head, channels: int = 10, stride: int = 8) -> nn.Module:
    return build_head(name, CHANNELS, channels, stride=stride, lateral=False)


def stages(sizes: tuple[tuple[int, int], ...], batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, width, *size) for width, size in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("sizes", [SIZES, DILATED_SIZES, SMALLER_THAN_THE_BINS, ONE_SIZE])
def test_features_are_as_large_as_the_first_or_the_last_stage(
    name: Head, sizes: tuple[tuple[int, int], ...]
) -> None:
    features = head(name)(stages(sizes))
    size = sizes[0] if name in AT_FIRST_STAGE else sizes[-1]
    assert features.shape == (2, 10, *size)
    assert features.isfinite().all()
    assert features.min() >= 0  # as a context module takes them


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("channels", [1, 10])
def test_every_parameter_is_trained(name: Head, channels: int) -> None:
    module = head(name, channels)
    module(stages(DILATED_SIZES)).square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_an_image_is_segmented_alike_alone_and_in_a_batch(name: Head) -> None:
    module = head(name).eval()
    batch = stages(SIZES)
    with torch.inference_mode():
        alone = module([stage[1:] for stage in batch])
        torch.testing.assert_close(module(batch)[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_only_pooling_heads_see_the_far_corner(name: Head) -> None:
    """192 px at stride 4: past the reach of U-Net's and RefineNet's convolutions and pooling."""
    model = EncNet("tiny", num_classes=5, head=name, context="none", channels=8, output_stride=4).eval()
    images = torch.randn(1, 3, 192, 192)
    changed = images.clone()
    changed[..., -4:, -4:] += 3
    with torch.inference_mode():
        far_corner = (model(images).logits - model(changed).logits)[..., :4, :4]
    assert bool(far_corner.abs().max() > 0) is (name in POOLS_THE_IMAGE)


@pytest.mark.parametrize("name", HEADS)
def test_a_context_module_stands_on_any_head(name: Head) -> None:
    model = EncNet("tiny", num_codewords=4, num_classes=5, head=name, channels=8, output_stride=4)
    output = model.train()(torch.randn(2, 3, 33, 47))
    assert output.logits.shape == (2, 5, 33, 47)
    assert output.presence_logits is not None
    assert output.presence_logits.shape == (2, 5)


def test_pyramid_pooling_is_the_papers() -> None:
    module = PSPNet(CHANNELS, channels=10).eval()
    features = stages(((1, 1), (1, 1), (1, 1), (12, 18)))
    stage4 = features[-1]
    levels = [stage4]
    for bins, level in zip((1, 2, 3, 6), module.pyramid, strict=True):
        parts = stage4.unflatten(2, (bins, 12 // bins)).unflatten(4, (bins, 18 // bins)).mean(dim=(3, 5))
        _, project = level
        levels.append(F.interpolate(project(parts), size=(12, 18), mode="bilinear"))
        assert levels[-1].shape[1] == CHANNELS[-1] // 4
    torch.testing.assert_close(module(features), module.fuse(torch.cat(levels, dim=1)))


@pytest.mark.parametrize(
    ("stride", "rates"), [(4, {24, 48, 72}), (8, {12, 24, 36}), (16, {6, 12, 18}), (32, {3, 6, 9})]
)
def test_atrous_rates_reach_equally_far_at_every_stride(stride: int, rates: set[int]) -> None:
    convolutions = [m for m in DeepLabV3(CHANNELS, 10, stride).pyramid.modules() if isinstance(m, nn.Conv2d)]
    assert {conv.dilation[0] for conv in convolutions} - {1} == rates


def test_refinenet_adds_up_the_chain_of_poolings() -> None:
    pooling, _ = RefineNet(CHANNELS, channels=10).eval().refine[0]
    features = torch.randn(2, 5, 9, 7)
    once, twice = pooling.pools
    kept = F.relu(features)
    expected = kept + once(kept) + twice(once(kept))
    torch.testing.assert_close(pooling(features), expected)
    spread = once[0](torch.eye(9)[None, None, :, 4:5].expand(1, 1, 9, 9))  # one row of ones
    assert spread[0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_lateral_connections_bring_stages_2_and_3() -> None:
    plain = build_head("fcn", CHANNELS, 10, stride=8, lateral=False).eval()
    lateral = build_head("fcn", CHANNELS, 10, stride=8, lateral=True).eval()
    features = stages(SIZES)
    for index, name in enumerate(("stage 1", "stage 2", "stage 3")):
        changed = list(features)
        changed[index] = changed[index] + 1
        assert torch.equal(plain(features), plain(changed)), name
        assert torch.equal(lateral(features), lateral(changed)) is (index == 0), name


def test_pooling_heads_do_not_train_on_one_image_a_worker() -> None:
    def config(name: Head, **scaling: float) -> Config:
        values = {"data": {"store": "s"}, "model": {"head": name}, "scaling": {"num_workers": 4, **scaling}}
        return Config.model_validate({**values, "train": {"global_batch_size": 4}})

    for name in HEADS:
        if name in POOLS_THE_IMAGE:
            with pytest.raises(ValueError, match=rf"model\.head={name} .* try global_batch_size=8"):
                config(name)
        else:
            config(name)
        config(name, gpus_per_worker=1)  # SyncBatchNorm sees the images of all workers
