"""Published EncNets give here what they give in the code that published them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from encsearch.cli.main import main
from encsearch.data.transforms import MEAN, STD
from encsearch.errors import UserError
from encsearch.inference.bundle import read_bundle
from encsearch.model.published import convert
from encsearch.tracking.registry.fetch import load

NUM_CLASSES, K, C = 5, 6, 24
STAGE2, STAGE3, STAGE4 = 512, 1024, 2048
FILE = Path("file.pth")


class PublishedEncoding(nn.Module):
    """scale_k ||x - d_k||^2 through a softmax over k, then the sum over pixels of a_ik (x - d_k)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(torch.randn(K, channels) * 0.1)
        self.scale = nn.Parameter(-torch.rand(K) * 0.05)

    def forward(self, features: Tensor) -> Tensor:
        x = features.flatten(2).transpose(1, 2)
        residuals = x[:, :, None] - self.codewords
        assignment = torch.softmax(self.scale * residuals.square().sum(-1), dim=2)
        return (assignment[..., None] * residuals).sum(1)


class Reference(nn.Module):
    """The authors' EncNet by its definition and its names: `pretrained`, `head`, `auxlayer`."""

    def __init__(self, lateral: bool) -> None:
        super().__init__()
        self.pretrained = deep_resnet50(64)
        self.head = nn.Module()
        self.head.conv5 = layer(STAGE4, C, 3)
        if lateral:
            self.head.connect = nn.ModuleList(layer(width, C, 1) for width in (STAGE2, STAGE3))
            self.head.fusion = layer(3 * C, C, 3)
        self.head.encmodule = nn.Module()
        self.head.encmodule.encoding = nn.Sequential(
            *layer(C, C, 1), PublishedEncoding(C), nn.BatchNorm1d(K), nn.ReLU()
        )
        self.head.encmodule.fc = nn.Sequential(nn.Linear(C, C), nn.Sigmoid())
        self.head.encmodule.selayer = nn.Linear(C, NUM_CLASSES)
        self.head.conv6 = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(C, NUM_CLASSES, 1))
        quarter = STAGE3 // 4
        self.auxlayer = nn.Module()
        self.auxlayer.conv5 = nn.Sequential(
            *layer(STAGE3, quarter, 3), nn.Dropout2d(0.1), nn.Conv2d(quarter, NUM_CLASSES, 1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, head = self.pretrained, self.head
        c1 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        c2 = net.layer2(c1)
        c3 = net.layer3(c2)
        x = head.conv5(net.layer4(c3))
        if hasattr(head, "connect"):
            x = head.fusion(torch.cat([x, head.connect[0](c2), head.connect[1](c3)], 1))
        encoding = head.encmodule.encoding(x).mean(dim=1)
        y = head.encmodule.fc(encoding)[:, :, None, None]
        logits, presence = head.conv6(F.relu(x + x * y)), head.encmodule.selayer(encoding)
        size = images.shape[2:]
        upsampled = [
            F.interpolate(part, size, mode="bilinear", align_corners=True)
            for part in (logits, self.auxlayer.conv5(c3))
        ]
        return upsampled[0], presence, upsampled[1]


class ConvModule(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv, self.bn, _ = layer(in_channels, channels, kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(features)))


class MMSeg(nn.Module):
    """mmsegmentation's EncoderDecoder with EncHead, by definition and names."""

    def __init__(self, lateral: bool) -> None:
        super().__init__()
        net = deep_resnet50(32)
        self.backbone = nn.Module()
        self.backbone.stem = nn.Sequential(*net.conv1, net.bn1, nn.ReLU())
        for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.backbone.add_module(name, getattr(net, name))
        self.decode_head = nn.Module()
        self.decode_head.bottleneck = ConvModule(STAGE4, C, 3)
        if lateral:
            self.decode_head.lateral_convs = nn.ModuleList(
                ConvModule(width, C, 1) for width in (STAGE2, STAGE3)
            )
            self.decode_head.fusion = ConvModule(3 * C, C, 3)
        self.decode_head.enc_module = nn.Module()
        self.decode_head.enc_module.encoding_project = ConvModule(C, C, 1)
        self.decode_head.enc_module.encoding = nn.Sequential(
            PublishedEncoding(C), nn.BatchNorm1d(K), nn.ReLU()
        )
        self.decode_head.enc_module.fc = nn.Sequential(nn.Linear(C, C), nn.Sigmoid())
        self.decode_head.se_layer = nn.Linear(C, NUM_CLASSES)
        self.decode_head.conv_seg = nn.Conv2d(C, NUM_CLASSES, 1)
        quarter = STAGE3 // 4
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.convs = nn.Sequential(ConvModule(STAGE3, quarter, 3))
        self.auxiliary_head.conv_seg = nn.Conv2d(quarter, NUM_CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, head, aux = self.backbone, self.decode_head, self.auxiliary_head
        c2 = net.layer2(net.layer1(net.maxpool(net.stem(images))))
        c3 = net.layer3(c2)
        x = head.bottleneck(net.layer4(c3))
        if hasattr(head, "fusion"):
            x = head.fusion(torch.cat([x, head.lateral_convs[0](c2), head.lateral_convs[1](c3)], 1))
        encoding = head.enc_module.encoding(head.enc_module.encoding_project(x)).mean(dim=1)
        y = head.enc_module.fc(encoding)[:, :, None, None]
        logits, presence = head.conv_seg(F.relu(x + x * y)), head.se_layer(encoding)
        upsampled = [
            F.interpolate(part, images.shape[2:], mode="bilinear", align_corners=False)
            for part in (logits, aux.conv_seg(aux.convs(c3)))
        ]
        return upsampled[0], presence, upsampled[1]


def deep_resnet50(stem: int) -> nn.Module:
    """torchvision's, at stride 8, with three 3x3 of `stem`, `stem` and 2 `stem` channels for the 7x7."""
    net = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    first = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
    second, third = (nn.Conv2d(stem, out, 3, padding=1, bias=False) for out in (stem, 2 * stem))
    norms = [nn.BatchNorm2d(stem) for _ in range(2)]
    net.conv1 = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), third)
    net.bn1 = nn.BatchNorm2d(2 * stem)
    net.layer1[0].conv1 = nn.Conv2d(2 * stem, 64, 1, bias=False)
    net.layer1[0].downsample[0] = nn.Conv2d(2 * stem, 256, 1, bias=False)
    return net


def layer(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


NETWORKS: dict[str, Callable[[bool], nn.Module]] = {"reference": Reference, "mmseg": MMSeg}


def trained(origin: str, lateral: bool) -> nn.Module:
    """Random weights with the BN statistics of two random images."""
    torch.manual_seed(0)
    network = NETWORKS[origin](lateral).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        network(torch.randn(2, 3, 49, 41))
    return network.eval()


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return trained("reference", lateral=True)


@pytest.mark.parametrize("origin", ["reference", "mmseg"])
@pytest.mark.parametrize("lateral", [False, True])
def test_outputs_are_those_of_the_published_network(origin: str, lateral: bool) -> None:
    network = trained(origin, lateral)
    published = convert(network.state_dict(), FILE)
    published.model.training = True  # for the auxiliary logits; the parts of the model stay in eval mode
    images = torch.randn(2, 3, 33, 57)
    with torch.no_grad():
        logits, presence_logits, aux_logits = network(images)
        output = published.model(images)
    for found, expected in zip(output, (logits, presence_logits, aux_logits), strict=True):
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_network_is_read_from_the_shapes(reference: nn.Module) -> None:
    tensors = {name: value for name, value in reference.state_dict().items() if "auxlayer" not in name}
    published = convert(tensors, FILE)
    config = published.config
    assert (published.origin, published.num_classes) == ("reference", NUM_CLASSES)
    assert (config.backbone, config.num_codewords, config.channels) == ("resnet50s", K, C)
    assert (config.lateral, config.auxiliary, config.align_corners) == (True, "none", True)
    assert published.model.aux_head is None


def test_smoothing_factors_have_the_papers_sign(reference: nn.Module) -> None:
    smoothing_factors = convert(
        reference.state_dict(), "f"
    ).model.context.semantics.encoding.smoothing_factors
    assert smoothing_factors.min() > 0


def test_half_precision_becomes_single(reference: nn.Module) -> None:
    tensors = {name: value.half() for name, value in reference.state_dict().items()}
    assert {value.dtype for value in convert(tensors, FILE).model.parameters()} == {torch.float32}


def without(start: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head.encmodule"), r"none is named head\.encmodule"),
        (lambda t: {}, "of its 0 tensors, none the first"),
        (lambda t: {**t, "jpu.conv.weight": t["head.conv5.0.weight"]}, "1 of .* jpu.conv.weight the first"),
        (without("head.encmodule.selayer"), r"of an EncNet: 2 keys missing, context\.presence\.weight"),
        (without("head.encmodule.encoding.3.codewords"), r"encoding\.codewords is missing"),
        (without("pretrained.layer3.5"), r"\(3, 4, 5, 3\) bottleneck blocks a stage is not known"),
        (without("pretrained.layer1.0.conv3"), r"\(2, 4, 6, 3\) bottleneck blocks a stage is not known"),
        (without("pretrained.conv1.0.weight"), r"stem\.0\.0\.weight is missing"),
        (
            lambda t: {**t, "pretrained.bn1.weight": torch.ones(3)},
            r"1 keys of another shape, backbone\.stem\.1",
        ),
        (
            lambda t: {**t, "pretrained.layer1.0.conv1.bias": torch.ones(64)},
            r"1 keys unknown, backbone\.stages\.0\.0\.conv1\.bias",
        ),
        (lambda t: {**t, "head.encmodule.encoding.3.codewords": torch.ones(3)}, r"has the shape \(3,\)"),
        (lambda t: {**t, "head.encmodule.encoding.3.codewords": torch.ones(2000, 24)}, "K=2000, C=24"),
        (lambda t: {**t, "pretrained.conv1.0.weight": torch.ones(16, 3, 3, 3)}, "stem of 16 channels"),
    ],
)
def test_another_network_is_refused_in_one_line(
    reference: nn.Module, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(UserError, match=r"^file\.pth: ") as caught:
        convert(change(dict(reference.state_dict())), FILE)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_images_are_normalised_as_by_the_publishers() -> None:
    assert (MEAN, STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the authors' base.py
    mmseg_mean, mmseg_std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    assert np.allclose(np.multiply(MEAN, 255), mmseg_mean, rtol=1e-6)
    assert np.allclose(np.multiply(STD, 255), mmseg_std, rtol=1e-6)


@pytest.fixture(scope="module")
def checkpoint(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors' training saves it; `reference` has the backbone's classifier, which nothing needs."""
    path = tmp_path_factory.mktemp("published") / "encnet.pth"
    state = {f"module.{name}": value for name, value in reference.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["import-weights", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_imported_file_predicts_as_the_published_network(
    checkpoint: Path, reference: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["sky", "road", "car", "tree", "person"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n\n")
    assert run(checkpoint, tmp_path / "model", "--classes", tmp_path / "names.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": str(tmp_path / "model"),
        "origin": "reference",
        "num_classes": NUM_CLASSES,
        "backbone": "resnet50s",
        "num_codewords": K,
        "channels": C,
        "lateral": True,
        "auxiliary": "fcn",
    }
    predictor = load(tmp_path / "model")
    assert list(predictor.info.classes) == names
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    normalised = (torch.from_numpy(image).permute(2, 0, 1) / 255 - column(MEAN)) / column(STD)
    with torch.no_grad():
        logits, *_ = reference(normalised[None])
    expected = logits[0].argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    assert (predictor.predict(image)[0] == expected).mean() > 0.99  # rounding can tip a tie


def column(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def test_classes_are_numbered_where_nothing_names_them(checkpoint: Path, tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path / "model") == 0
    info = read_bundle(tmp_path / "model").info
    assert info.classes == ("class0", "class1", "class2", "class3", "class4")
    assert len(set(info.palette)) == NUM_CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "{store}"], "3 classes, but {file} has 5"),
        (["--classes", "{folder}/two.txt"], "two.txt: 2 classes, but {file} has 5"),
        (["--classes", "{folder}/none.txt"], "none.txt: cannot read the class names"),
        (["--classes", "{file}"], "encnet.pth: the class names are not UTF-8"),
        (["--classes", "{folder}/two.txt", "--store", "{store}"], "give one of them"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(
    checkpoint: Path,
    toy_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    places = {"store": toy_store, "folder": tmp_path, "file": checkpoint}
    assert run(checkpoint, tmp_path / "model", *(option.format(**places) for option in options)) == 2
    assert message.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_what_stands_at_the_place_of_the_model_is_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert run(checkpoint, tmp_path) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "numbers.pth")
    torch.save({"a": torch.ones(2), "b": torch.ones(2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"a": torch.ones(2, device="meta")}, tmp_path / "empty.pth")
    for name, message in (
        ("none.pth", "none.pth: no such file"),
        ("junk.pth", "junk.pth: cannot be read as weights"),
        ("numbers.pth", "numbers.pth: holds more than tensors by name"),
        ("sparse.pth", "sparse.pth: 1 tensors are sparse, quantized, complex or without data, b the first"),
        ("empty.pth", "empty.pth: 1 tensors are sparse, quantized, complex or without data, a the first"),
    ):
        assert run(tmp_path / name, tmp_path / "model") == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
