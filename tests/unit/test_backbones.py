"""Backbones keep their features when stride turns into dilation, and take weights from local files only."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from encsearch.errors import UserError
from encsearch.model.backbones import build_backbone
from encsearch.model.encnet import EncNet


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048)), ("tiny", (16, 32, 48, 48))],
)
def test_states_channels_and_stride_of_its_stages(name: str, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(name, output_stride=8).eval()
    with torch.inference_mode():
        stages = backbone(torch.randn(1, 3, 40, 57))
    assert tuple(stage.shape[1] for stage in stages) == backbone.channels == channels
    assert backbone.stride == 8
    assert stages[-1].shape[-2:] == (5, 8)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_features_at_every_nth_pixel_are_the_strided_ones(name: str, output_stride: int) -> None:
    strided = build_backbone(name, output_stride=32).double().eval()
    dilated = build_backbone(name, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 70, 65, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = strided(images)[-1], dilated(images)[-1]
    every = 32 // output_stride
    torch.testing.assert_close(found[..., ::every, ::every], expected)


def test_tiny_without_context_sees_twenty_pixels_and_no_more() -> None:
    """The generated scenes keep what decides farther away than that."""
    model = EncNet("tiny", num_classes=4, channels=8, output_stride=4, context="none").eval()
    for size, y, x in ((64, 0, 63), (64, 31, 34), (96, 57, 95)):
        images = torch.randn(1, 3, size, size, requires_grad=True)
        model(images).logits[0, :, y, x].sum().backward()
        assert images.grad is not None
        seen = images.grad.abs().sum(dim=(0, 1)).nonzero()
        assert 10 <= (seen - torch.tensor([y, x])).abs().max() <= 20


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_torchvision_weights_without_their_classifier(tmp_path: Path, suffix: str) -> None:
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    path = str(tmp_path / f"weights{suffix}")
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    backbone = build_backbone("resnet18", weights=path)
    assert torch.equal(backbone.stem[0].weight, state["conv1.weight"])
    assert torch.equal(backbone.stages[3][1].conv2.weight, state["layer4.1.conv2.weight"])


def test_loads_weights_that_lack_the_batch_counters(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    backbone = build_backbone("resnet18", weights=str(tmp_path / "old.pth"))
    assert torch.equal(backbone.stem[0].weight, state["conv1.weight"])


def test_loads_its_own_weights_for_tiny(tmp_path: Path) -> None:
    saved = build_backbone("tiny")
    torch.save(saved.state_dict(), tmp_path / "tiny.pth")
    loaded = build_backbone("tiny", weights=str(tmp_path / "tiny.pth"))
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such weights file"),
        (b"not a state dict", "cannot be read as weights"),
        (b"", "cannot be read as weights"),
        (b"G" * 4, "cannot be read as weights"),  # struct.error
        (b"0" * 8, "cannot be read as weights"),  # IndexError
        (b"X\x02\x00\x00\x00\xff\xff", "cannot be read as weights"),  # UnicodeDecodeError
        (b"h\x05", "cannot be read as weights"),  # KeyError
        ({1: torch.zeros(1)}, "holds more than tensors by name"),
        ({"state_dict": {}}, "holds more than tensors by name"),
        ({}, r"not the weights of tiny: \d+ keys missing, stem.0.weight the first"),
    ],
)
def test_unfit_weights_are_a_one_line_error(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as raised:
        build_backbone("tiny", weights=str(path))
    assert "\n" not in str(raised.value)


def test_unknown_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    state = build_backbone("tiny").state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "unknown.pth")
    torch.save({**state, "stem.0.weight": torch.zeros(1)}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match="1 keys unknown, extra the first"):
        build_backbone("tiny", weights=str(tmp_path / "unknown.pth"))
    with pytest.raises(UserError, match=r"1 keys of another shape, stem\.0\.weight the first"):
        build_backbone("tiny", weights=str(tmp_path / "shape.pth"))


def test_unreadable_safetensors_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="cannot be read as weights"):
        build_backbone("tiny", weights=str(path))


def test_unknown_name_or_stride_names_what_there_is() -> None:
    with pytest.raises(UserError, match="no backbone 'vgg'; try one of tiny, resnet18"):
        build_backbone("vgg")
    with pytest.raises(UserError, match=r"output_stride=4 does not exist for resnet50; try \(8, 16, 32\)"):
        build_backbone("resnet50", output_stride=4)
