"""Views of an image are averaged as probabilities, at the pixels that they show, whatever the sizes."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import EvalConfig
from encsearch.inference.segment import segment
from encsearch.model.encnet import EncNet


@pytest.fixture(scope="module")
def model() -> EncNet:
    """Not trained, but with logits and presence that differ from place to place and image to image."""
    torch.manual_seed(0)
    net = EncNet("tiny", num_codewords=4, num_classes=5, output_stride=4, channels=8)
    with torch.no_grad():
        for parameter in (net.classifier[-1].weight, net.context.presence.weight):
            parameter.mul_(10)
    net.train()
    for _ in range(30):  # the running statistics of batch norm
        net(torch.randn(4, 3, 40, 40))
    return net.eval()


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def close(found: Tensor | None, expected: Tensor) -> bool:
    assert found is not None
    return torch.allclose(found, expected, atol=2e-6)


SIZES = [(97, 131), (1, 1), (3, 50), (24, 24), (25, 48)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_default_is_the_model_itself(model: EncNet, height: int, width: int) -> None:
    batch = images(height, width)
    with torch.no_grad():
        output = model(batch)

    found = segment(model, batch, EvalConfig())

    assert torch.equal(found.labels, output.logits.argmax(dim=1))
    assert torch.equal(found.probabilities, output.logits.softmax(dim=1))
    assert found.presence is not None
    assert torch.equal(found.presence, output.presence_logits.sigmoid())


def test_labels_of_one_view_are_those_of_logits_that_probabilities_cannot_tell_apart() -> None:
    class Close(EncNet):
        def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
            output = super().forward(images)
            logits = torch.zeros_like(output.logits)
            logits[:, 3] = 1e-9
            return output._replace(logits=logits)

    net = Close("tiny", num_codewords=2, num_classes=5, output_stride=4, channels=8).eval()
    found = segment(net, images(8, 8), EvalConfig())
    assert (found.labels == 3).all()
    assert (found.probabilities.argmax(dim=1) == 0).all()


def naive_windows(model: EncNet, batch: Tensor, side: int, stride: int) -> tuple[Tensor, Tensor]:
    """Pixel by pixel: the mean over the windows that hold it, whose corners are found by counting on."""
    *_, height, width = batch.shape

    def corners(length: int) -> list[int]:
        found, at = [], 0
        while at + side < length:
            found.append(at)
            at += stride
        return [*found, max(0, length - side)]

    with torch.no_grad():
        windows = [
            (top, left, model(batch[:, :, top : top + side, left : left + side]))
            for top in corners(height)
            for left in corners(width)
        ]
    pixels = torch.zeros(len(batch), 5, height, width)
    for y, x in product(range(height), range(width)):
        holding = [
            output.logits[:, :, y - top, x - left].softmax(dim=1)
            for top, left, output in windows
            if top <= y < top + side and left <= x < left + side
        ]
        pixels[:, :, y, x] = torch.stack(holding).mean(dim=0)
    presence = torch.stack([output.presence_logits.sigmoid() for _, _, output in windows]).amax(dim=0)
    return pixels, presence


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("overlap", "stride"), [(1 / 3, 16), (0.0, 24), (0.5, 12)])
def test_windows_are_averaged_where_they_overlap(
    model: EncNet, height: int, width: int, overlap: float, stride: int
) -> None:
    batch = images(height, width)
    pixels, presence = naive_windows(model, batch, 24, stride)

    found = segment(model, batch, EvalConfig(window=24, overlap=overlap))

    assert close(found.probabilities, pixels)
    assert torch.equal(found.labels, found.probabilities.argmax(dim=1))
    assert close(found.presence, presence)


def test_an_image_that_fits_into_the_window_is_seen_whole(model: EncNet) -> None:
    batch = images(20, 23)
    windowed = segment(model, batch, EvalConfig(window=24))
    whole = segment(model, batch, EvalConfig())
    assert close(windowed.probabilities, whole.probabilities)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scales_and_directions_are_averaged(model: EncNet, height: int, width: int) -> None:
    batch = images(height, width)
    pixels, presence = torch.zeros(2, 5, height, width), torch.zeros(2, 5)
    for scale in (0.5, 1.0, 1.75):
        size = (max(1, round(scale * height)), max(1, round(scale * width)))
        zoomed = F.interpolate(batch, size=size, mode="bilinear", align_corners=False)
        for mirror in (False, True):
            with torch.no_grad():
                output = model(zoomed.flip(3) if mirror else zoomed)
            probabilities = output.logits.softmax(dim=1)
            probabilities = probabilities.flip(3) if mirror else probabilities
            back = F.interpolate(probabilities, size=(height, width), mode="bilinear", align_corners=False)
            pixels, presence = pixels + back / 6, presence + output.presence_logits.sigmoid() / 6

    found = segment(model, batch, EvalConfig(scales=(0.5, 1.0, 1.75), flip=True))

    assert close(found.probabilities, pixels)
    assert close(found.presence, presence)
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(2, height, width), atol=1e-5)


def test_with_flip_a_mirrored_image_is_the_mirrored_result(model: EncNet) -> None:
    batch = images(33, 47)
    settings = EvalConfig(flip=True)
    found, mirrored = segment(model, batch, settings), segment(model, batch.flip(3), settings)
    assert close(mirrored.probabilities.flip(3), found.probabilities)
    assert not close(
        segment(model, batch.flip(3), EvalConfig()).probabilities.flip(3),
        segment(model, batch, EvalConfig()).probabilities,
    ), "the net alone is not symmetric"


def test_windows_scales_and_directions_go_together(model: EncNet) -> None:
    batch = images(31, 40)
    zoomed = F.interpolate(batch, size=(62, 80), mode="bilinear", align_corners=False)
    straight = segment(model, zoomed, EvalConfig(window=24)).probabilities
    turned = segment(model, zoomed.flip(3), EvalConfig(window=24)).probabilities.flip(3)
    expected = F.interpolate((straight + turned) / 2, size=(31, 40), mode="bilinear", align_corners=False)

    found = segment(model, batch, EvalConfig(scales=(2.0,), flip=True, window=24))

    assert close(found.probabilities, expected)


def test_large_logits_stay_finite(model: EncNet) -> None:
    assert math.isinf(torch.tensor(89.0).exp().item()), "what the sum of exp(logits) would give"
    batch = 1000 * images(24, 30)
    with torch.no_grad():
        assert model(batch).logits.max() > 89
    found = segment(model, batch, EvalConfig(scales=(1.0, 1.5), flip=True))
    assert found.probabilities.isfinite().all()


def test_a_model_without_context_module_tells_no_presence() -> None:
    net = EncNet("tiny", num_classes=3, output_stride=4, channels=8, context="none").eval()
    for settings in (EvalConfig(), EvalConfig(window=8, flip=True)):
        assert segment(net, images(16, 12), settings).presence is None
