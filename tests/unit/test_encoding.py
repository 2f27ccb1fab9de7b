"""The encoding layer computes equations 1-2 of the paper, in any coordinates and any precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from encsearch.model.encoding import Encoding, encode, encode_definition

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def paper(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """The paper's equations, one pixel and codeword at a time."""
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


def value_and_gradients(function: Function, *values: Tensor) -> list[Tensor]:
    """The encoding and the three gradients of a weighted sum of it."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    encoding = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(encoding.shape, generator=generator, dtype=torch.float64).to(encoding.dtype)
    return [encoding.detach(), *torch.autograd.grad((encoding * weights).sum(), leaves)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("function", [encode, encode_definition])
def test_is_the_papers_definition_in_value_and_gradients(function: Function) -> None:
    values = inputs(num_pixels=10)
    for found, expected in zip(
        value_and_gradients(function, *values), value_and_gradients(paper, *values), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_own_backward_pass_agrees_with_autograd(
    dtype: torch.dtype, autocast: bool, channels_first: bool
) -> None:
    features, codewords, smoothing_factors = (value.to(dtype) for value in inputs(channels=16))
    smoothing_factors = smoothing_factors / 16  # every codeword takes a share of every pixel
    if channels_first:
        features = features.mT.contiguous().mT
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = value_and_gradients(encode, features, codewords, smoothing_factors)
    expected = value_and_gradients(encode_definition, features, codewords, smoothing_factors)
    tolerance = 20 * torch.finfo(dtype).eps
    for own, plain in zip(found, expected, strict=True):
        assert own.dtype == plain.dtype == dtype
        assert relative_error(own, plain) < tolerance


def test_gradients_of_features_codewords_and_smoothing_factors() -> None:
    leaves = [value.requires_grad_() for value in inputs(num_pixels=6, num_codewords=3, channels=2)]
    assert torch.autograd.gradcheck(encode, leaves)


def test_second_derivative_is_refused_and_the_definition_has_it() -> None:
    leaves = [value.requires_grad_() for value in inputs(num_pixels=4, num_codewords=2, channels=2)]
    first = torch.autograd.grad(encode(*leaves).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first[0].sum().backward()
    assert torch.autograd.gradgradcheck(encode_definition, leaves)


def test_backward_pass_keeps_one_number_a_pixel_and_codeword() -> None:
    given = [value.float().requires_grad_() for value in inputs(30, 5, channels=64)]
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        encoding = encode(*given)
    assert encoding.requires_grad
    beside = set(kept) - {value.untyped_storage().data_ptr() for value in given}
    assert sum(kept[place] for place in beside) == 2 * 30 * (5 + 1) * 4


@pytest.mark.parametrize("codeword_offset", [0.0, 100.0])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("function", [encode, encode_definition])
def test_keeps_float32_accuracy_far_from_zero_and_under_autocast(
    function: Function, codeword_offset: float, autocast: bool
) -> None:
    features, codewords, smoothing_factors = inputs(channels=16)
    features, codewords = (features + 100).float(), (codewords + codeword_offset).float()
    smoothing_factors = smoothing_factors.float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = function(features, codewords, smoothing_factors)
    expected = paper(features.double(), codewords.double(), smoothing_factors.double())
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-6


def test_logits_keep_their_digits_where_features_lie_far_from_the_codewords() -> None:
    features, codewords, _ = inputs(channels=16)
    features, codewords = (features + 100).float(), codewords.float()
    smoothing_factors = torch.full((5,), 1e-3)
    expected = paper(features.double(), codewords.double(), smoothing_factors.double())
    assert relative_error(encode(features, codewords, smoothing_factors), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_are_summed_in_float32(dtype: torch.dtype) -> None:
    features, codewords, smoothing_factors = inputs(channels=64)
    features = (100 * features).to(dtype)  # the squared norm is beyond float16
    values = value_and_gradients(encode, features, codewords.float(), smoothing_factors.float())
    exact = value_and_gradients(encode_definition, features.double(), codewords, smoothing_factors)
    assert [value.dtype for value in values] == [torch.float32, dtype, torch.float32, torch.float32]
    assert relative_error(values[0], exact[0]) < 1e-6
    for found, expected in zip(values[1:], exact[1:], strict=True):
        assert relative_error(found, expected) < 1e-2 if found.dtype == dtype else 1e-5


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


def test_shifting_features_and_codewords_together_changes_nothing() -> None:
    features, codewords, smoothing_factors = inputs()
    shift = torch.tensor([3.0, -70.0, 0.5, 11.0], dtype=torch.float64)
    for found, expected in zip(
        value_and_gradients(encode, features + shift, codewords + shift, smoothing_factors),
        value_and_gradients(encode, features, codewords, smoothing_factors),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    features, codewords, smoothing_factors = inputs()
    both = encode(features, codewords, smoothing_factors)
    for image, expected in zip(features, both, strict=True):
        torch.testing.assert_close(encode(image[None], codewords, smoothing_factors)[0], expected)


@pytest.mark.parametrize("function", [encode, encode_definition])
@pytest.mark.parametrize(
    "features",
    [torch.arange(4.0).expand(1, 1, 4), torch.ones(2, 9, 4), torch.full((1, 9, 4), 1e4)],
    ids=["one pixel", "constant", "large"],
)
@pytest.mark.parametrize(
    "codewords", [torch.eye(5, 4), torch.ones(1, 4), torch.ones(5, 4)], ids=["five", "one", "equal"]
)
@pytest.mark.parametrize("smoothing", [0.0, 1.0, -1.0])
def test_degenerate_input_gives_finite_values_and_gradients(
    function: Function, features: Tensor, codewords: Tensor, smoothing: float
) -> None:
    smoothing_factors = torch.full((len(codewords),), smoothing)
    for value in value_and_gradients(function, features, codewords, smoothing_factors):
        assert value.isfinite().all()


def test_layer_maps_a_feature_map_from_the_reference_initialisation() -> None:
    layer = Encoding(channels=6, num_codewords=8)
    assert layer(torch.randn(2, 6, 5, 3)).shape == (2, 8, 6)
    assert layer.codewords.abs().max() <= (8 * 6) ** -0.5
    assert layer.smoothing_factors.min() >= 0
    assert layer.smoothing_factors.max() <= 1


def mirror_tiled(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): each pixel four times, and no new edges."""
    wide = torch.cat([features, features.flip(3)], dim=3)
    return torch.cat([wide, wide.flip(2)], dim=2)


def test_without_rescaling_four_times_the_pixels_have_four_times_the_encoding() -> None:
    layer = Encoding(channels=3, num_codewords=4)
    features = torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(layer(mirror_tiled(features)), 4 * layer(features), rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) == {"codewords", "smoothing_factors"}


def test_rescaling_makes_evaluation_independent_of_the_size() -> None:
    layer = Encoding(channels=3, num_codewords=4, rescale=True)
    features = torch.randn(2, 3, 5, 7)
    trained_on = layer.train()(features)
    torch.testing.assert_close(trained_on, encode(features.flatten(2).mT, *layer.parameters()))
    layer.eval()
    torch.testing.assert_close(layer(features), trained_on)
    torch.testing.assert_close(layer(mirror_tiled(features)), trained_on, rtol=1e-5, atol=1e-5)


def test_rescaling_follows_the_last_training_step_and_needs_one() -> None:
    layer = Encoding(channels=3, num_codewords=4, rescale=True)
    features = torch.randn(1, 3, 4, 4)
    plain = layer.eval()(features)
    layer.train()(features.new_zeros(1, 3, 2, 2))
    torch.testing.assert_close(layer.eval()(features), plain / 4)
    layer.train()(features.new_zeros(1, 3, 4, 2))
    torch.testing.assert_close(layer.eval()(features), plain / 2)


def test_size_of_training_travels_with_the_state() -> None:
    trained = Encoding(channels=3, num_codewords=4, rescale=True)
    trained(torch.randn(1, 3, 4, 4))
    features = torch.randn(1, 3, 7, 5)
    with torch.device("meta"):
        loaded = Encoding(channels=3, num_codewords=4, rescale=True)
    loaded.load_state_dict(trained.state_dict(), assign=True)
    torch.testing.assert_close(loaded.eval()(features), trained.eval()(features))
    loaded.train()(features)
    assert loaded.num_pixels is not None
    assert loaded.num_pixels == 35


@pytest.mark.parametrize("training", [True, False])
def test_compiled_layer_has_the_same_values_and_gradients(training: bool) -> None:
    # aot_eager traces forward and backward as inductor does, and needs no C++ compiler.
    layer = Encoding(channels=3, num_codewords=4, rescale=True).train(training)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((4, 5), (6, 3)):
        found, expected = [], []
        for call, results in ((compiled, found), (layer, expected)):
            features = torch.linspace(-1, 1, 6 * size[0] * size[1]).reshape(2, 3, *size).requires_grad_()
            encoding = call(features)
            gradients = torch.autograd.grad(encoding.square().sum(), [features, *layer.parameters()])
            results.extend([encoding, *gradients])
        torch.testing.assert_close(found, expected)
        assert layer.num_pixels == (size[0] * size[1] if training else 0)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_layer_takes_any_height_and_width(strict: bool) -> None:
    layer = Encoding(channels=3, num_codewords=4, rescale=True)
    layer(torch.randn(1, 3, 8, 8))
    layer.eval()
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(layer, (torch.randn(2, 3, 6, 5),), dynamic_shapes=(free,), strict=strict)
    features = torch.randn(3, 3, 9, 4)
    torch.testing.assert_close(exported.module()(features), layer(features))


def test_unit_codewords_compare_directions_alone() -> None:
    torch.manual_seed(0)
    layer = Encoding(channels=6, num_codewords=4, init="unit")
    features = torch.randn(2, 6, 5, 7)
    encoding = layer(features)
    torch.testing.assert_close(layer(3 * features), encoding)
    with torch.no_grad():
        layer.codewords *= 5
    torch.testing.assert_close(layer(features), encoding)
    x = features.flatten(2).mT / features.flatten(2).mT.norm(dim=-1, keepdim=True)
    d = layer.codewords / layer.codewords.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoding, encode(x, d, torch.full((4,), 10.0)))


def test_unit_codewords_keep_their_digits_under_autocast() -> None:
    layer = Encoding(channels=6, num_codewords=4, init="unit")
    features = torch.randn(2, 6, 5, 7, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(features)
    torch.testing.assert_close(found, layer(features.float()))
    assert layer(torch.zeros(1, 6, 2, 2)).isfinite().all()
