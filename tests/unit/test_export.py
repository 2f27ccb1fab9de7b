"""Exported files compute what the model computes, say how to use them, and run nothing when they are read."""

import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encsearch
from encsearch.cli.main import cli
from encsearch.config import Config, with_values
from encsearch.data.datasets import DatasetInfo
from encsearch.data.transforms import MEAN, STD
from encsearch.errors import PreflightError, UserError
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.inference.export import TOLERANCE, compare, export_bundle
from encsearch.inference.graph import InferenceGraph, adaptive_avg_pool2d, trace
from encsearch.inference.predictor import Predictor
from encsearch.model.encnet import EncNet

INFO = DatasetInfo("toy", ("ground", "red", "blue"), ((90, 90, 90), (200, 40, 40), (40, 40, 200)))
CONFIG = Config.model_validate(
    {
        "data": {"store": "toy"},
        "model": {"backbone": "tiny", "preset": "reference", "num_codewords": 4, "channels": 16},
    }
)


def untrained(config: Config = CONFIG) -> Bundle:
    torch.manual_seed(0)
    model = EncNet.from_config(config.model, len(INFO.classes)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Bundle(model, config, INFO, "abc", {"mIoU": 0.5})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    done = export_bundle(untrained(), out, ("torch", "safetensors"))
    assert set(done.files) == {path.name for path in out.iterdir()}
    assert not done.unchecked
    return out


def test_the_archive_predicts_what_the_model_predicts_on_any_size(exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    for height, width in ((97, 131), (9, 40), (64, 64)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        outputs = program(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        assert outputs["presence_logits"].shape == (1, 3)
        (label_map,) = Predictor(untrained()).predict(image)
        # Normalising in another order may tip a tie.
        assert (outputs["logits"].argmax(1)[0].numpy() == label_map).mean() > 0.999


def test_the_archive_holds_no_pickle_no_path_and_no_auxiliary_head(exported: Path) -> None:
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        contents = {Path(name).name: archive.read(name) for name in archive.namelist()}
    weights = json.loads(contents["model_weights_config.json"])["config"]
    assert not [name for name, weight in weights.items() if weight["use_pickle"]]
    assert not [name for name in weights if "aux" in name]
    assert contents["model.pt"] == b""  # where torch.export.save pickles the example images
    here = str(Path(encsearch.__file__).parent).encode()
    assert not [name for name, data in contents.items() if here in data]


def test_the_interface_tells_what_goes_in_and_out(exported: Path) -> None:
    interface = json.loads((exported / "model.json").read_text())
    assert interface["input"]["shape"] == ["batch", 3, "height", "width"]
    assert interface["input"]["least_side_px"] == 9
    assert interface["outputs"] == {
        "logits": ["batch", 3, "height", "width"],
        "presence_logits": ["batch", 3],
    }
    assert (tuple(interface["classes"]), interface["palette"][1]) == (INFO.classes, [200, 40, 40])
    checks = interface["parity"]["checks"]
    assert [1, 3, 97, 131] in [check["shape"] for check in checks]
    assert all(check["difference"] <= TOLERANCE for check in checks)


def test_the_folder_is_a_bundle_of_the_same_model(exported: Path) -> None:
    bundle = read_bundle(exported)
    assert (bundle.config, bundle.info, bundle.fingerprint) == (CONFIG, INFO, "abc")
    for name, tensor in untrained().model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor), name


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for size in ((8, 64), (64, 4096)):
        with pytest.raises(UserError, match=f"size={size[0]}x{size[1]}: .* 9 to 2048 px"):
            export_bundle(untrained(), out, ("torch",), size)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(PreflightError, match=r"format=onnx needs onnxscript: pip install 'encsearch\[onnx"):
        export_bundle(untrained(), out, ("onnx",))
    diverged = untrained()
    nn.init.constant_(diverged.model.classifier[-1].bias, torch.nan)
    with pytest.raises(UserError, match=r"model.pt2 differs from the model by nan on 1x3x16x24"):
        export_bundle(diverged, out, ("torch", "safetensors"), (16, 24))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, message in ((tmp_path, "exists already"), (tmp_path / "file", "exists already")):
        with pytest.raises(UserError, match=message):
            export_bundle(untrained(), out, ("safetensors",))
    with pytest.raises(UserError, match="cannot be written"):
        export_bundle(untrained(), tmp_path / "file" / "out", ("safetensors",))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_is_off_by_more_than_the_tolerance_is_refused() -> None:
    graph = InferenceGraph(untrained().model)

    def scaled(factor: float, images: Tensor) -> dict[str, Tensor]:
        return {name: tensor * factor for name, tensor in graph(images).items()}

    (check,) = compare("a.onnx", lambda images: scaled(1 + TOLERANCE / 2, images), graph, [(2, 20, 30)])
    assert check.shape == (2, 3, 20, 30)
    assert 0 < check.difference <= TOLERANCE
    with pytest.raises(UserError, match=r"a.onnx differs from the model by 0\.0\d+ on 2x3x20x30, more"):
        compare("a.onnx", lambda images: scaled(1.1, images), graph, [(2, 20, 30)])


def test_a_module_that_scales_stage_3_is_exported_with_the_rest() -> None:
    model = untrained(
        with_values(CONFIG, {"model.attention_stages": [3, 4], "model.attention": "both"})
    ).model
    program = trace(InferenceGraph(model), least_side=9).module()
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(program(images)["logits"], model((images - mean) / std).logits)


def test_a_map_of_just_as_many_pixels_as_pspnet_has_bins_is_a_size_like_any_other() -> None:
    config = with_values(CONFIG, {"model.head": "pspnet", "model.context": "none"})
    graph = InferenceGraph(untrained(config).model)
    program = trace(graph, least_side=9).module()
    for side in (9, 48):  # 2 x 2 and 6 x 6 at stride 8
        images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(program(images), graph(images))


@pytest.mark.parametrize("size", [(12, 17), (6, 6), (3, 5), (1, 1)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_by_matrix_products_is_adaptive_pooling(size: tuple[int, int], bins: int) -> None:
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool2d(features, bins)
    torch.testing.assert_close(adaptive_avg_pool2d(features, (bins, bins)), expected)


class Payload:
    """What unpickling executes: it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_the_place_of_the_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    write_bundle(untrained(), tmp_path / "bundle")
    touched = tmp_path / "touched"
    data = pickle.dumps(Payload(touched))
    for write in (lambda path: path.write_bytes(data), lambda path: torch.save(Payload(touched), path)):
        write(tmp_path / "bundle" / "model.safetensors")
        with pytest.raises(UserError, match="not the weights of this model"):
            read_bundle(tmp_path / "bundle")
        assert not touched.exists()
    pickle.loads(data)
    assert touched.exists()  # the payload works


def test_a_size_on_the_command_line_is_height_by_width(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="size=480 is not of the form HEIGHTxWIDTH"):
        cli.main(["export", "model", "--out", str(tmp_path / "out"), "--size", "480"], standalone_mode=False)
