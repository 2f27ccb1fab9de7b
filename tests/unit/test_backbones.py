"""Every family has four stages at its strides; weights are files or cached; what is wrong is one line."""

import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from encsearch.config import BACKBONES
from encsearch.errors import PreflightError, UserError
from encsearch.model.backbones import Backbone, build_backbone, find_weights, sync_batch_norms
from encsearch.model.encnet import EncNet

CHANNELS = {"tiny": (16, 32, 48, 48), "resnet18": (64, 128, 256, 512), "resnet34": (64, 128, 256, 512)}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and a proxy at which nothing listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # An earlier test that has opened a page leaves an opener with the proxies of that time.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def build_on_meta(name: str, stride: int) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, stride).eval()


def check_stages(backbone: Backbone, stride: int, channels: tuple[int, ...]) -> None:
    """Of an image with odd sides; `backbone` is on the meta device."""
    with torch.device("meta"), torch.no_grad():
        stages = backbone(torch.empty(2, 3, 97, 131))
    assert tuple(stage.shape[1] for stage in stages) == backbone.channels == channels
    assert backbone.stride == stride
    assert stages[-1].shape[-2:] == (-(-97 // stride), -(-131 // stride))


@pytest.mark.parametrize("name", BACKBONES)
def test_states_channels_and_stride_of_its_stages(name: str) -> None:
    strides = {
        "tiny": (4, 8),
        "resnet18": (8, 16, 32),
        "resnext50_32x4d": (8, 16, 32),
        "resnet50s": (8, 16, 32),
    }
    for stride in strides.get(name, (8,)):
        check_stages(build_on_meta(name, stride), stride, CHANNELS.get(name, (256, 512, 1024, 2048)))


@pytest.mark.parametrize(
    ("name", "output_stride"), [("resnet18", 8), ("resnet18", 16), ("resnext50_32x4d", 8)]
)
def test_dilated_features_at_every_nth_pixel_are_the_strided_ones(name: str, output_stride: int) -> None:
    strided = build_backbone(name, output_stride=32).double().eval()
    dilated = build_backbone(name, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 33, 40, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = strided(images)[-1], dilated(images)[-1]
    every = 32 // output_stride
    torch.testing.assert_close(found[..., ::every, ::every], expected)


def test_dilation_of_the_authors_code() -> None:
    """Stage 3 has 1, then 2, stage 4 has 2, then 4: no multi-grid."""
    stages = build_on_meta("resnet50s", 8).stages
    found = [[block.conv2.dilation[0] for block in stage] for stage in stages]
    assert found == [[1] * 3, [1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]


def test_tiny_without_context_sees_twenty_pixels_and_no_more() -> None:
    """The generated scenes keep what decides farther away than that."""
    torch.manual_seed(0)  # with 2 of 300 seeds every ReLU on the way is shut, and nothing is seen
    model = EncNet("tiny", num_classes=4, channels=8, output_stride=4, context="none").eval()
    for size, y, x in ((64, 0, 63), (64, 31, 34), (96, 57, 95)):
        images = torch.randn(1, 3, size, size, requires_grad=True)
        model(images).logits[0, :, y, x].sum().backward()
        assert images.grad is not None
        seen = images.grad.abs().sum(dim=(0, 1)).nonzero()
        assert 10 <= (seen - torch.tensor([y, x])).abs().max() <= 20


# Files


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


def test_loads_a_file_in_the_layout_of_the_authors(tmp_path: Path) -> None:
    """zhanghang1989/PyTorch-Encoding names keys so; timm has the same network, built independently."""
    authors = timm.create_model("resnet50s", num_classes=7)
    named = authors.state_dict()
    assert [named[f"conv1.{i}.weight"].shape for i in (0, 1, 3, 4, 6)] == [
        (64, 3, 3, 3),
        (64,),
        (64, 64, 3, 3),
        (64,),
        (128, 64, 3, 3),
    ]
    torch.save(named, tmp_path / "resnet50s.pth", _use_new_zipfile_serialization=False)  # as of 2019
    ours = build_backbone("resnet50s", output_stride=32, weights=str(tmp_path / "resnet50s.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images)[-1], authors.eval().forward_features(images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not a state dict", r"cannot be read as weights \(damaged, or more than tensors\)"),
        (b"", "cannot be read as weights"),
        (b"G" * 4, "cannot be read as weights"),  # struct.error
        (b"0" * 8, "cannot be read as weights"),  # IndexError
        (b"X\x02\x00\x00\x00\xff\xff", "cannot be read as weights"),  # UnicodeDecodeError
        (b"h\x05", "cannot be read as weights"),  # KeyError
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS, not the weights",
        ),
        ({"stem": torch.tensor([float("nan")])}, "1 of 1 tensors hold NaN or infinity, stem the first"),
        ({1: torch.zeros(1)}, "holds more than tensors by name"),
        ({"state_dict": {}, "epoch": 3}, r"\d+ keys missing"),
        ({"optimizer": {}}, "holds more than tensors by name"),
        ({}, r"not the state dict of tiny: \d+ keys missing, stem.0.weight the first"),
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


# Published weights


def test_imagenet_is_torchvisions_file_in_torchs_cache(offline: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    cache = offline / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    assert find_weights("resnet18", "imagenet") == cache / "resnet18-f37072fd.pth"
    backbone = build_backbone("resnet18", weights="imagenet")
    assert torch.equal(backbone.stages[3][1].conv2.weight, state["layer4.1.conv2.weight"])


def test_imagenet_is_timms_file_in_the_hubs_cache(offline: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    source = timm.create_model(name)
    repository = "models--" + timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--")
    snapshot = offline / repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (offline / repository / "refs").mkdir()
    (offline / repository / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), snapshot / "model.safetensors")
    assert find_weights(f"timm:{name}", "imagenet") == snapshot / "model.safetensors"
    loaded = build_backbone(f"timm:{name}", 16, "imagenet")
    weight = next(value for value in source.state_dict().values() if value.dim() == 4)
    assert any(torch.equal(weight, parameter) for parameter in loaded.parameters())


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18", "timm:legacy_seresnet18"])
def test_published_weights_out_of_reach_are_one_line(offline: Path, name: str) -> None:
    with pytest.raises(PreflightError, match=r"is not in .*refused.*give model\.weights=FILE") as raised:
        find_weights(name, "imagenet")
    assert "\n" not in str(raised.value)
    assert str(offline) in str(raised.value)


@pytest.mark.parametrize(("name", "stride"), [("tiny", 4), ("resnet50s", 8), ("resnet101c", 8)])
def test_imagenet_where_torchvision_has_none_says_so(name: str, stride: int) -> None:
    with pytest.raises(UserError, match=f"torchvision has no weights of {name}; "):
        EncNet(name, output_stride=stride, weights="imagenet")


# timm


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("mobilenetv3_small_050", (8, 16, 32), (8, 16, 24, 288)),  # five levels
        ("convnext_atto", (8, 16, 32), (40, 80, 160, 320)),  # patches of 4 px
        ("swin_tiny_patch4_window7_224", (32,), (96, 192, 384, 768)),  # one size, channels last
        ("vit_tiny_patch16_224", (16,), (192, 192, 192, 192)),  # twelve levels, one size
    ],
)
def test_timm_networks_give_four_stages_for_any_size(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    for stride in strides:
        check_stages(build_on_meta(f"timm:{name}", stride), stride, channels)


def test_building_draws_the_same_numbers_whatever_was_built_before() -> None:
    """Finding out what a network of timm can do must not move the random stream: ranks start equal."""
    first, second = (
        (torch.manual_seed(0), build_backbone("timm:lcnet_035", 16), torch.rand(1)) for _ in range(2)
    )
    assert torch.equal(first[2], second[2])
    for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_timms_resnet_is_torchvisions(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        found = build_backbone("timm:resnet18", 8, weights).eval()(images)
        expected = build_backbone("resnet18", 8, weights).eval()(images)
    torch.testing.assert_close(found, expected)


def test_layers_after_the_features_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("lcnet_035").state_dict(), weights)
    build_backbone("timm:lcnet_035", 16, str(weights))
    assert not caplog.records


def test_timm_refuses_the_file_of_another_network(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"not the state dict of timm's resnet18: \d+ keys unknown, layer1\.2"
    ):
        build_backbone("timm:resnet18", weights=str(tmp_path / "weights.pth"))


def test_timm_networks_get_the_normalisation_they_were_trained_with() -> None:
    backbone = build_backbone("timm:vit_tiny_patch16_224", 16)
    seen: list[Tensor] = []
    backbone.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        backbone(black[:, None, None].expand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), -1.0))  # (0 - 0.5) / 0.5


def test_timm_networks_without_storage_are_whole_once_their_state_is_loaded() -> None:
    """As a bundle does it; Swin computes indices at construction and keeps them out of its state."""
    name = "timm:swin_tiny_patch4_window7_224"
    saved = build_backbone(name, 32).eval()
    loaded = build_on_meta(name, 32)
    loaded.load_state_dict(saved.state_dict(), assign=True)
    images = torch.randn(1, 3, 32, 40)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), saved(images), rtol=0, atol=0)


def test_sync_batch_norms_keep_timms_activations() -> None:
    plain = build_backbone("timm:mobilenetv3_small_050", 8).eval()
    model = nn.Sequential(plain)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = plain(images)
        sync_batch_norms(model)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        torch.testing.assert_close(model(images), expected)


# Names and strides


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("resnet51", 8, "there is no backbone resnet51; did you mean resnet50 or"),
        ("vgg", 8, "there is no backbone vgg; try tiny, resnet18,"),
        ("resnet50", 4, r"output_stride=4 does not exist for resnet50; try 8, 16 or 32"),
        ("timm:resnet51", 8, "there is no backbone timm:resnet51; did you mean .*resnet50"),
        ("timm:resnet18.nobody", 8, r"no backbone timm:resnet18\.nobody; did you mean resnet18\."),
        ("timm:zzz", 8, r"timm:zzz; timm\.list_models\(\)"),
        ("timm:vgg11", 8, "output_stride=8 does not exist for timm:vgg11; try 32"),
        ("timm:pit_ti_224", 8, "timm:pit_ti_224 does not give four feature levels"),
        ("timm:mixer_s16_224", 16, "for images of any size .*match model"),
        ("timm:convmixer_768_32", 32, "they have not the sizes of the strides"),
    ],
)
def test_unknown_names_and_strides_are_one_line(name: str, stride: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message) as raised:
        EncNet(name, output_stride=stride)
    assert "\n" not in str(raised.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PreflightError, match=r"pip install 'encsearch\[timm\]'"):
        build_backbone("timm:resnet18")
