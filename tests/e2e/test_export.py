"""ONNX files of every network, run by a program without this package; torch.compile against eager."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from encsearch.config import Config
from encsearch.data.datasets import DatasetInfo
from encsearch.data.transforms import to_image_tensor
from encsearch.inference.bundle import Bundle, write_bundle
from encsearch.inference.export import TOLERANCE, export_bundle
from encsearch.model.encnet import EncNet, EncNetOutput
from tests.e2e.shell import Shell

INFO = DatasetInfo("toy", ("ground", "red", "blue"), ((90, 90, 90), (200, 40, 40), (40, 40, 200)))

# Every head, context and preset, in few exports: each costs seconds.
NETWORKS = [
    {"head": "fcn", "context": "encoding", "preset": "reference", "rescale_encoding": True},
    {"head": "fcn", "context": "gate", "preset": "paper", "backbone": "resnet18", "output_stride": 32},
    {"head": "pspnet", "context": "none", "output_stride": 4},
    {"head": "deeplabv3", "context": "encoding", "preset": "mmseg"},
    {"head": "deeplabv3plus", "context": "none"},
    {"head": "unet", "context": "encoding", "preset": "paper"},
    {"head": "refinenet", "context": "gate"},
]

# What a user of the file writes: no torch, no encsearch.
PROGRAM = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"), dtype=np.float32) / 255
logits, presence = session.run(["logits", "presence_logits"], {"images": image.transpose(2, 0, 1)[None]})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
assert logits.shape == (1, len(classes), *image.shape[:2]) and presence.shape == (1, len(classes))
assert not {"torch", "encsearch"} & set(sys.modules)
Image.fromarray(logits[0].argmax(0).astype(np.uint8)).save(sys.argv[3])
"""


def untrained(**options: object) -> Bundle:
    """A small network whose batch norms have statistics that matter."""
    values = {"backbone": "tiny", "num_codewords": 4, "channels": 16, "dropout": 0, **options}
    exact = {"precision": "fp32"}  # as the files compute
    config = Config.model_validate({"data": {"store": "toy"}, "model": values, "train": exact})
    torch.manual_seed(0)
    model = EncNet.from_config(config.model, len(INFO.classes)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Bundle(model, config, INFO, "abc", {})


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_network_is_exported_for_every_size(tmp_path: Path, options: dict[str, object]) -> None:
    done = export_bundle(untrained(**options), tmp_path / "out", ("torch", "onnx"))
    assert done.files == ("model.json", "model.onnx", "model.pt2")
    assert {check.file for check in done.checks} == {"model.onnx", "model.pt2"}
    assert {check.shape[2:] for check in done.checks} >= {(97, 131), (160, 97)}
    assert all(check.difference <= TOLERANCE for check in done.checks)


def test_a_fixed_size_without_onnxruntime_is_written_and_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    done = export_bundle(untrained(), tmp_path / "out", ("onnx",), size=(48, 72))
    assert (done.checks, done.unchecked) == ((), {"model.onnx": "onnxruntime is not installed"})
    interface = json.loads((tmp_path / "out" / "model.json").read_text())
    assert interface["input"]["shape"] == ["batch", 3, 48, 72]
    assert interface["parity"]["unchecked"] == done.unchecked


def test_the_file_gives_another_program_the_label_map_that_predict_gives(tmp_path: Path) -> None:
    bundle = untrained(preset="reference")
    pixels = np.random.default_rng(0).integers(0, 256, (45, 77, 3), dtype=np.uint8)
    with torch.no_grad():  # without a lead for any class, each wins somewhere
        logits = bundle.model(to_image_tensor(pixels)[None]).logits
        bundle.model.classifier[-1].bias -= logits.mean(dim=(0, 2, 3))
    write_bundle(bundle, tmp_path / "bundle")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    shell = Shell(tmp_path)
    done = shell.encsearch("export", "bundle", "--format", "onnx", "--out", "out", "--json")
    assert json.loads(done.stdout)["files"] == ["model.json", "model.onnx"]
    shell.encsearch("predict", "bundle", "image.png", "--out", "predicted")
    program = [sys.executable, "-c", PROGRAM, "out/model.onnx", "image.png", "found.png"]
    subprocess.run(program, cwd=tmp_path, check=True, timeout=600)
    found = np.asarray(Image.open(tmp_path / "found.png"))
    predicted = np.asarray(Image.open(tmp_path / "predicted" / "image.png"))
    assert len(np.unique(predicted)) > 1
    assert (found == predicted).mean() > 0.999
    assert "exists already" in shell.refusal("export", "bundle", "--out", "out", code=2)


def outputs(output: EncNetOutput) -> list[torch.Tensor]:
    return [tensor for tensor in output if tensor is not None]


def test_a_compiled_network_computes_and_learns_what_the_eager_one_does() -> None:
    """aot_eager traces as inductor does, in seconds; inductor compiles a minute or more."""
    eager = untrained(auxiliary="se").model
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend="aot_eager")
    images = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(outputs(compiled(images)), outputs(eager(images)))
    for network, parameters in ((eager, eager), (compiled, model)):
        optimizer = torch.optim.SGD(parameters.train().parameters(), lr=0.1)
        trained = outputs(network(images))
        assert len(trained) == 3  # logits, and the presence logits of both context modules
        sum(tensor.square().mean() for tensor in trained).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-5)
