"""`encsearch eval` and `predict`: overrides of the eval section, the tables, the JSON, folders of images."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from encsearch.cli.main import main
from encsearch.config import Config
from encsearch.data.manifest import read_manifest
from encsearch.inference.bundle import Bundle, write_bundle
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
    write_bundle(Bundle(net, toy_config, manifest.info, manifest.fingerprint, metrics={}), folder)
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

    settings_by_folder = {
        "plain": (),
        "changed": ("eval.scales=[0.5,2]",),
        "argument": ("eval.args.module:Metric.power=2",),
        "odd": ("./a.b=c.png",),
    }
    for out, settings in settings_by_folder.items():
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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two sub-folders with images of the same name and of three sizes, and one that is damaged."""
    folder = tmp_path / "photos"
    for name, size in {
        "a/x.png": (40, 30),
        "a/y.jpg": (40, 30),
        "b/x.png": (24, 32),
        "z.png": (9, 9),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 80).convert("RGB").save(folder / name)
    (folder / "b" / "broken.png").write_bytes((folder / "z.png").read_bytes()[:-30])
    return folder


def test_a_damaged_image_is_refused_before_anything_is_written(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "predict", model, str(photos), "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "broken.png: damaged PNG" in err
    assert err.strip().endswith("or leave such images out with --skip-bad")
    assert not (tmp_path / "out").exists()


def test_sub_folders_are_kept_apart_and_what_is_left_out_is_told(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("predict", model, str(photos), "--skip-bad", "--json", "--out", str(photos / "out"))
    code, out, err = run(capsys, *command)
    *found, skipped = json.loads(out)
    assert code == 0
    assert err.startswith("left out: ")
    assert "broken.png: damaged PNG" in err
    assert (skipped["image"], "damaged PNG" in skipped["skipped"]) == (str(photos / "b" / "broken.png"), True)
    written = {str(path.relative_to(photos / "out")) for path in (photos / "out").rglob("*.png")}
    names = ("a/x", "a/y", "b/x", "z")
    assert written == {f"{name}{end}" for name in names for end in (".png", ".overlay.png")}
    for row in found:
        assert (
            Image.open(row["labels"]).size == Image.open(row["overlay"]).size == Image.open(row["image"]).size
        )
        assert list(row["presence"]) == ["ground", "red", "blue"]
    again, out, _ = run(capsys, *command)
    assert (again, json.loads(out)) == (0, [*found, skipped]), "its own results are no images of the folder"


def test_the_batch_size_changes_no_label(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ("1", "4"):
        run(
            capsys,
            "predict",
            model,
            str(photos),
            "--skip-bad",
            "--batch-size",
            size,
            "--out",
            str(tmp_path / size),
        )
    for path in (tmp_path / "1").rglob("*.png"):
        if ".overlay" not in path.name:
            other = tmp_path / "4" / path.relative_to(tmp_path / "1")
            differing = ImageChops.difference(Image.open(path), Image.open(other)).getbbox()
            assert differing is None, path


def test_no_link_in_the_results_folder_leads_to_another_file(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(path for path in sorted(photos.rglob("*.png")) if path.parent == photos)
    out, other = tmp_path / "linked", tmp_path / "other"
    out.mkdir()
    other.write_text("kept")
    (out / image.name).symlink_to(other)
    code, _, err = run(capsys, "predict", model, str(image), "--out", str(out))
    assert code == 0, err
    assert other.read_text() == "kept"
    assert not (out / image.name).is_symlink()


def test_images_that_are_all_damaged_are_refused(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = str(photos / "b" / "broken.png")
    code, _, err = run(capsys, "predict", model, broken, "--skip-bad", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "none of the 1 images can be read; the first: " in err
