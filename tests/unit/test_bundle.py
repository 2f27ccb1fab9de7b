"""Bundles and the predictor over them: what goes in comes out, and damage is one line."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from encsearch.config import Config, DataConfig, ModelConfig, with_values
from encsearch.data.datasets import DatasetInfo
from encsearch.data.manifest import read_manifest
from encsearch.data.store import Store
from encsearch.data.transforms import to_image_tensor
from encsearch.errors import PreflightError, UserError
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.inference.evaluation import open_same_store, score_bundle
from encsearch.model.encnet import EncNet
from encsearch.reports import RunSummary
from encsearch.tracking.registry.fetch import describe_unfinished, load
from encsearch.workflow.job import write_summary

INFO = DatasetInfo(
    name="toy",
    classes=("sky", "road", "car"),
    palette=((0, 0, 255), (9, 9, 9), (255, 0, 0)),
    groups={"things": ("car",)},
)
CONFIG = Config(
    data=DataConfig(store="store"),
    model=ModelConfig(backbone="tiny", output_stride=4, num_codewords=4, channels=8, weights="not-there.pth"),
)


@pytest.fixture(scope="module")
def model() -> EncNet:
    torch.manual_seed(0)
    return EncNet.from_config(CONFIG.model.model_copy(update={"weights": None}), len(INFO.classes)).eval()


@pytest.fixture
def folder(tmp_path: Path, model: EncNet) -> Path:
    path = tmp_path / "bundle"
    bundle = Bundle(
        model,
        CONFIG,
        INFO,
        fingerprint="abc",
        metrics={"mIoU": 0.5, "train/loss": 1.25},
        class_iou={"sky": 0.75, "road": 0.25},
        num_images={"train": 900, "val": 12},
    )
    write_bundle(bundle, path)
    return path


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_bundle_comes_back_whole_without_the_backbones_weight_file(folder: Path, model: EncNet) -> None:
    bundle = read_bundle(folder)
    assert (bundle.config, bundle.info, bundle.fingerprint) == (CONFIG, INFO, "abc")
    assert bundle.metrics == {"mIoU": 0.5, "train/loss": 1.25}
    assert (bundle.class_iou, bundle.num_images) == ({"sky": 0.75, "road": 0.25}, {"train": 900, "val": 12})
    assert not bundle.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor), name


def test_reading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    read_bundle(folder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("place", ["artifacts/bundle", "finalists/winner/artifacts/bundle"])
def test_the_folder_of_a_job_is_loaded_as_its_best_model(folder: Path, tmp_path: Path, place: str) -> None:
    job = tmp_path / "runs" / "toy-1"
    (job / place).parent.mkdir(parents=True)
    folder.rename(job / place)
    write_summary(
        job,
        RunSummary(
            kind="training",
            name="toy",
            metric="mIoU",
            value=0.5,
            fingerprint="abc",
            store="store",
            split="val",
            tracking_uri="sqlite:///mlflow.db",
            experiment_id="1",
            run="toy-1",
            run_id=None,
            bundle=place,
        ),
    )
    image = picture(16, 24)

    expected = load(job / place).predict(image)

    assert all(np.array_equal(load(source).predict(image), expected) for source in (job, str(job)))


@pytest.mark.parametrize(("mark", "kind"), [("study.json", "sweep"), ("trainings.jsonl", "ablation")])
def test_a_job_that_has_no_model_yet_is_to_be_resumed(tmp_path: Path, mark: str, kind: str) -> None:
    (tmp_path / mark).touch()
    for use in (load, describe_unfinished):
        with pytest.raises(
            UserError, match=rf"the {kind} has not finished; .* `encsearch resume {tmp_path}`"
        ):
            use(tmp_path)


def test_writing_replaces_an_older_bundle_and_leaves_nothing_else(folder: Path, model: EncNet) -> None:
    write_bundle(Bundle(model, CONFIG, INFO, "new", metrics={}), folder)
    assert read_bundle(folder).fingerprint == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_classes(folder: Path) -> None:
    path = folder / "dataset.json"
    info = DatasetInfo("other", ("a",), ((0, 0, 0),))
    path.write_text(json.dumps(info.to_dict() | {"fingerprint": "abc", "num_images": {}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (cut_weights, "not the weights of this model"),
        (other_classes, "not the weights of this model"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json: damaged"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "dataset.json: damaged"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "metrics.json: damaged"),
        (lambda folder: (folder / "metrics.json").write_text("{}"), "metrics.json: damaged"),
        (lambda folder: (folder / "weights.sha256").write_text("0  model.safetensors"), "SHA-256"),
        (lambda folder: (folder / "config.yaml").write_text("model: {depth: 3}"), "config.yaml: "),
    ],
)
def test_damage_is_told_in_one_line(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour_order": "BGR"}, "trained with colour_order=BGR, but this encsearch .* colour_order=RGB"),
        ({"mean": [0.5, 0.5, 0.5]}, r"trained with mean=\[0.5, 0.5, 0.5\]"),
        ({"gamma": 2.2}, "trained with gamma=2.2, but this encsearch prepares images with gamma=None"),
    ],
)
def test_a_model_of_other_preprocessing_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    path = folder / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


def test_the_preprocessing_that_is_written_is_what_is_done(folder: Path) -> None:
    written = json.loads((folder / "preprocessing.json").read_text())
    image = picture(2, 3)
    expected = (image / written["divide_by"] - written["mean"]) / written["std"]
    assert np.allclose(to_image_tensor(image).permute(1, 2, 0), expected, atol=1e-6)


def test_the_digest_is_one_that_sha256sum_checks(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "weights.sha256"], cwd=folder, check=True)


def test_the_card_tells_the_figures_and_the_limits_that_follow(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("# encnet\n")
    assert "| mIoU | 50.00 |" in card
    assert "train/loss" not in card
    assert "| sky | 75.00 |" in card
    assert "| car | - |" in card
    assert "On the val split (12 images)" in card
    assert "IoU below 50.00 %: road (25.00 %)." in card
    assert "Nothing is known about car: not in the val split, so mIoU is over 2 of 3 classes." in card
    assert "The figures come from 12 images" in card
    assert "data `abc`" in card


def test_what_the_store_lacked_is_in_the_card_and_comes_back(tmp_path: Path, model: EncNet) -> None:
    config = with_values(CONFIG, {"augment.crop": 64, "data.val_split": "train"})
    figures = {"mIoU": 0.5}, {"sky": 0.75}, {"train": 30}
    bundle = Bundle(model, config, INFO, "x", *figures, untrained=["road"], num_padded=20)
    write_bundle(bundle, tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Never trained on road: without a pixel in the training split." in card
    assert "Scored on the split it was trained on, train" in card
    assert "20 of 30 training images were smaller than that, and padded." in card
    again = read_bundle(tmp_path / "bundle")
    assert (list(again.untrained), again.num_padded) == (["road"], 20)


def test_the_card_of_an_imported_model_invents_nothing(tmp_path: Path, model: EncNet) -> None:
    write_bundle(Bundle(model, CONFIG, INFO, "unknown", metrics={}), tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "## Scores\n\nNone were recorded." in card
    assert "no IoU by class was recorded" in card
    assert "train split (an unknown number of images)" in card
    assert "## Training\n\nNot recorded." in card
    assert "was chosen by" not in card
    assert "Trained on" not in card


def test_label_maps_have_the_images_sizes_and_order(folder: Path, model: EncNet) -> None:
    images = [picture(33, 47, 0), picture(33, 47, 1), picture(16, 24, 2), picture(33, 47, 3)]
    masks = load(folder).predict(images)
    assert [mask.shape for mask in masks] == [image.shape[:2] for image in images]
    for image, mask in zip(images, masks, strict=True):
        assert mask.dtype == np.uint8
        with torch.no_grad():
            logits = model(to_image_tensor(image)[None]).logits
        # Batched and single convolutions may differ in the last bit, which can tip a tie.
        assert (mask == logits[0].argmax(0).numpy()).mean() > 0.99


def test_one_array_one_file_and_a_stack_are_taken(folder: Path, tmp_path: Path) -> None:
    image = picture(20, 30)
    Image.fromarray(image).save(tmp_path / "image.png")
    predictor = load(folder)
    expected = predictor.predict(image)
    assert len(expected) == 1
    for same in (tmp_path / "image.png", str(tmp_path / "image.png"), [image], image[None]):
        assert np.array_equal(predictor.predict(same)[0], expected[0])


def test_presence_is_a_probability_for_each_class(folder: Path) -> None:
    (presence,) = load(folder).predict_presence(picture(20, 30))
    assert list(presence) == list(INFO.classes)
    assert all(0 <= probability <= 1 for probability in presence.values())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), r"\(4, 4, 3\) float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\) uint8"),
        ("missing.png", "missing.png: cannot be read as an image"),
        (__file__, r"test_bundle\.py: not a readable image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(folder: Path, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(folder).predict([image])


def test_an_image_file_is_turned_upright(folder: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.fromarray(picture(20, 30)).save(tmp_path / "turned.jpg", exif=turned)
    assert load(folder).predict(tmp_path / "turned.jpg")[0].shape == (30, 20)


@pytest.mark.parametrize(
    ("device", "kind"), [("gpu9", UserError), ("mps", UserError), ("cuda:99", PreflightError)]
)
def test_a_device_that_is_not_here_is_refused(
    folder: Path, toy_store: Path, device: str, kind: type[UserError]
) -> None:
    for use in (
        lambda: load(folder, device=device),
        lambda: score_bundle(read_bundle(folder), Store(toy_store), "val", device=device),
    ):
        with pytest.raises(UserError, match=f"device={device}") as caught:
            use()
        assert type(caught.value) is kind


def test_a_store_that_was_changed_since_the_training_is_refused(
    model: EncNet, toy_config: Config, toy_store: Path
) -> None:
    same = Bundle(model, toy_config, INFO, read_manifest(toy_store).fingerprint, {})
    assert open_same_store(same).path == toy_store
    with pytest.raises(UserError, match="but the model was trained on abc"):
        open_same_store(dataclasses.replace(same, fingerprint="abc"))
