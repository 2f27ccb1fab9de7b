"""The encoding layer computes equations 1-2 of the paper, in any coordinates and any precision."""

import pytest
import torch
from torch import Tensor

from encsearch.model.encoding import Encoding, encode


def paper(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """The definition, one pixel and codeword at a time."""
    encoding = torch.zeros(len(features), *codewords.shape, dtype=features.dtype)
    for b, image in enumerate(features):
        for x in image:
            residuals = [x - d for d in codewords]
            squared_distances = torch.stack([r @ r for r in residuals])
            assignment = torch.softmax(-smoothing_factors * squared_distances, dim=0)
            for k, residual in enumerate(residuals):
                encoding[b, k] += assignment[k] * residual
    return encoding


def inputs(num_pixels: int = 30, num_codewords: int = 5, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, num_pixels, channels, generator=generator, dtype=torch.float64)
    codewords = torch.randn(num_codewords, channels, generator=generator, dtype=torch.float64)
    smoothing_factors = torch.rand(num_codewords, generator=generator, dtype=torch.float64)
    return features, codewords, smoothing_factors


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_is_the_papers_definition() -> None:
    torch.testing.assert_close(encode(*inputs()), paper(*inputs()))


def test_gradients_of_features_codewords_and_smoothing_factors() -> None:
    leaves = [value.requires_grad_() for value in inputs(num_pixels=6, num_codewords=3, channels=2)]
    assert torch.autograd.gradcheck(encode, leaves)


@pytest.mark.parametrize("codeword_offset", [0.0, 100.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_keeps_float32_accuracy_far_from_zero_and_under_autocast(
    codeword_offset: float, autocast: bool
) -> None:
    features, codewords, smoothing_factors = inputs(channels=16)
    features, codewords = (features + 100).float(), (codewords + codeword_offset).float()
    smoothing_factors = smoothing_factors.float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = encode(features, codewords, smoothing_factors)
    expected = paper(features.double(), codewords.double(), smoothing_factors.double())
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-6


def test_low_precision_features_are_summed_in_float32() -> None:
    features, codewords, smoothing_factors = inputs()
    found = encode(features.bfloat16(), codewords.float(), smoothing_factors.float())
    expected = encode(features.bfloat16().double(), codewords, smoothing_factors)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-6


def test_one_codeword_takes_every_pixel() -> None:
    features, codewords, smoothing_factors = inputs(num_pixels=30, num_codewords=1)
    expected = features.sum(dim=1, keepdim=True) - 30 * codewords
    torch.testing.assert_close(encode(features, codewords, smoothing_factors), expected)


def test_order_of_pixels_does_not_matter() -> None:
    features, codewords, smoothing_factors = inputs()
    shuffled = features[:, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(
        encode(shuffled, codewords, smoothing_factors), encode(features, codewords, smoothing_factors)
    )


def test_image_tiled_two_by_two_has_four_times_the_encoding() -> None:
    layer = Encoding(channels=3, num_codewords=4)
    features = torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(layer(features.tile(1, 1, 2, 2)), 4 * layer(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "features", [torch.arange(4.0).expand(1, 1, 4), torch.ones(2, 9, 4), torch.full((1, 9, 4), 1e4)]
)
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_degenerate_features_give_finite_values_and_gradients(features: Tensor, smoothing: float) -> None:
    _, codewords, _ = inputs()
    leaves = [features.clone(), codewords.float(), torch.full((5,), smoothing)]
    encoding = encode(*(leaf.requires_grad_() for leaf in leaves))
    encoding.sum().backward()
    assert encoding.isfinite().all()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_layer_maps_a_feature_map_from_the_reference_initialisation() -> None:
    layer = Encoding(channels=6, num_codewords=8)
    assert layer(torch.randn(2, 6, 5, 3)).shape == (2, 8, 6)
    assert layer.codewords.abs().max() <= (8 * 6) ** -0.5
    assert layer.smoothing_factors.min() >= 0
    assert layer.smoothing_factors.max() <= 1
