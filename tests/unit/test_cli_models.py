"""`encsearch eval` and `predict`: overrides of the eval section, the tables, the JSON."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from encsearch.bundle import write_bundle
from encsearch.cli.main import main
from encsearch.config import Config
from encsearch.data.store import read_manifest
from encsearch.model.encnet import EncNet


@pytest.fixture
def model(toy_config: Config, tmp_path: Path) -> str:
    manifest = read_manifest(toy_config.data.store)
    torch.manual_seed(0)
    net = EncNet.from_config(toy_config.model, len(manifest.info.classes))
    with torch.no_grad():
        for _ in range(30):  # batch norm sees images, so that the logits depend on them
            net(torch.randn(8, 3, 32, 32))
        net.classifier[-1].bias -= net.eval()(torch.randn(8, 3, 32, 32)).logits.mean(dim=(0, 2, 3))
    folder = tmp_path / "bundle"
    write_bundle(folder, net, toy_config, manifest.info, fingerprint=manifest.fingerprint, metrics={})
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_eval_prints_classes_sizes_and_a_summary(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "eval", model, "eval.background=ground")
    assert code == 0
    classes, sizes, summary = out.strip().split("\n\n")
    assert " ".join(classes.split("\n")[0].split()) == "class IoU % accuracy % boundary IoU % presence AP %"
    assert [line.split()[0] for line in classes.splitlines()[2:]] == ["ground", "red", "blue"]
    assert [line.split()[0] for line in sizes.splitlines()[2:]] == ["small", "medium", "large"]
    for name in ("mIoU", "pixAcc", "mAcc", "fwIoU", "mIoU/objects", "foreground/mIoU", "presence/mAP"):
        assert f" {name} " in summary


def test_eval_json_holds_every_score_and_the_settings(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "eval", model, "eval.scales=[0.5,1]", "eval.flip=true", "eval.window=16", "--json"
    )
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["eval"]["scales"], found["eval"]["flip"], found["eval"]["window"]) == ([0.5, 1.0], True, 16)
    assert {"mean_iou", "class_iou", "class_boundary_iou", "sizes", "presence", "confusion"} <= found.keys()
    assert sum(map(sum, found["confusion"])) == 32 * (10 * 32 - 36)  # the void bands do not count
    assert found["metrics"]["mIoU"] == found["mean_iou"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1", "optim.lr=1: the model is trained; only paths below eval. can be changed"),
        ("eval.flp=true", "did you mean eval.flip?"),
        ("eval.scales=[0]", "greater than 0"),
        ("eval.background=sky", "eval.background=sky is none of"),
        ("eval.object_sizes=[0.5,0.1]", "0 < medium < large < 1 must hold, but got (medium=0.5, large=0.1)"),
    ],
)
def test_a_bad_override_is_one_line(
    model: str, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "eval", model, override)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_predict_takes_overrides_among_its_images(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 30), 80).convert("RGB").save("a.png")
    Image.new("RGB", (8, 8)).save("a.b=c.png")

    for out, *settings in (("plain",), ("changed", "eval.scales=[0.5,2]"), ("odd", "./a.b=c.png")):
        code, _, err = run(capsys, "predict", model, "a.png", *settings, "--out", out)
        assert (code, err) == (0, "")

    plain, other = (Path(out, "a.png").read_bytes() for out in ("plain", "changed"))
    assert plain != other
    assert Path("odd/a.b=c.png").exists()
    code, _, err = run(capsys, "predict", model, "a.png", "optim.lr=1", "--out", "x")
    assert code == 2
    assert "only paths below eval. can be changed" in err
    code, _, err = run(capsys, "predict", model, "eval.flip=true", "--out", "x")
    assert (code, err.strip()) == (2, "error: no images; name files or folders before the overrides")
