"""The dictionary of visual words: what it must see in pictures where a colour is a class."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encsearch.config import Config, DataConfig, with_values
from encsearch.data.datasets import IGNORE, EncodedSample
from encsearch.data.store import Store, write_store
from encsearch.errors import PreflightError, TrainingError
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.inference.evaluation import ImagePresence, predict_presence
from encsearch.model.encnet import EncNet
from encsearch.search.ablation.words import score_scenes, score_words
from tests.conftest import TOY_INFO

PATTERN = r"-(\w+)$"
COLOURS = np.array(TOY_INFO.palette, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def samples(split: str, count: int) -> Iterator[EncodedSample]:
    """Every second picture has red, every third blue; the scene is warm with red. The last one is void."""
    rng = np.random.default_rng(len(split))
    for index in range(count):
        mask = np.zeros((32, 32), np.uint8)
        if index % 2:
            mask[2:14, 2:14] = 1
        if index % 3 == 0:
            mask[16:30, 16:30] = 2
        image = np.clip(COLOURS[mask] + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        if index == count - 1:
            mask[:] = IGNORE
        name = f"{split}-{index:03d}-{'warm' if index % 2 else 'cold'}"
        yield EncodedSample(name, png(image), png(mask), group=name)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", TOY_INFO, {"train": samples("train", 37), "val": samples("val", 19)})
    return tmp_path / "store"


@pytest.fixture
def data(store: Path) -> DataConfig:
    return DataConfig(store=str(store))


@pytest.fixture
def bundle(toy_config: Config, store: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = with_values(toy_config, {"data.store": str(store)})
    model = EncNet.from_config(config.model, 3)
    write_bundle(Bundle(model, config, TOY_INFO, "", {}), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("of_features", [False, True])
def test_words_tell_which_colours_a_picture_has_and_its_scene(
    of_features: bool, bundle: Path, data: DataConfig, tmp_path: Path
) -> None:
    picture, folder = tmp_path / "words.png", bundle if of_features else None
    found = score_words(data, folder, 12, 0, PATTERN, picture, "cpu")
    assert found["presence/mAP"] > 0.99
    assert found["presence/recall"] == 1
    assert found["scene/accuracy"] == 1
    with Image.open(picture) as sheet:
        assert sheet.width > 500
    assert score_words(data, folder, 12, 0, PATTERN, None, "cpu") == found
    assert "scene/accuracy" not in score_words(data, folder, 12, 1, None, None, "cpu")


def test_one_word_knows_nothing_but_how_often_a_class_is_there(data: DataConfig) -> None:
    found = score_words(data, None, 1, 0, None, None, "cpu")
    # Ground is in all 18 labelled pictures, red in 9 and blue in 6, which equal histograms cannot rank.
    assert found["presence/mAP"] == pytest.approx((1 + 9 / 18 + 6 / 18) / 3)


def test_too_many_words_are_refused_with_the_numbers(data: DataConfig) -> None:
    # 32 px have 7 x 7 patches of 8 px, 4 px apart; the void picture has no share in them.
    with pytest.raises(TrainingError, match="1764 descriptors of 37 images cannot have 2000 words"):
        score_words(data, None, 2000, 0, None, None, "cpu")


def test_images_smaller_than_a_patch_and_of_several_sizes_are_described(tmp_path: Path) -> None:
    def sized(split: str, count: int) -> Iterator[EncodedSample]:
        for index in range(count):
            side = 5 + 8 * (index % 3)
            mask = np.full((side, side + 3), index % 2, np.uint8)
            yield EncodedSample(f"{split}-{index}", png(COLOURS[mask]), png(mask), group=f"{split}-{index}")

    write_store(tmp_path / "sizes", TOY_INFO, {"train": sized("train", 12), "val": sized("val", 6)})
    found = score_words(DataConfig(store=str(tmp_path / "sizes")), None, 2, 0, None, None, "cpu")
    assert found["presence/mAP"] == 1


def test_no_labelled_training_image_is_named(tmp_path: Path) -> None:
    def void(split: str) -> Iterator[EncodedSample]:
        mask = np.full((16, 16), IGNORE if split == "train" else 0, np.uint8)
        yield EncodedSample(split, png(np.zeros((16, 16, 3), np.uint8)), png(mask), group=split)

    write_store(tmp_path / "void", TOY_INFO, {"train": void("train"), "val": void("val")})
    with pytest.raises(TrainingError, match="none of 1 training images has a labelled pixel"):
        score_words(DataConfig(store=str(tmp_path / "void")), None, 2, 0, None, None, "cpu")


def test_scenes_are_told_from_the_presence_of_classes_in_training_images() -> None:
    ids = tuple(f"{index}-{'warm' if index % 2 else 'cold'}" for index in range(8))
    told = torch.tensor([[0.9 - 0.8 * (index % 2), 0.5] for index in range(8)])
    present = told > 0.5
    train = ImagePresence(ids, told, present)
    assert score_scenes(train, train, PATTERN) == 1
    assert score_scenes(train, ImagePresence(ids, told.flip(0), present), PATTERN) == 0
    with pytest.raises(
        PreflightError, match="finds 0 scenes in the ids of 8 training images, such as 0-cold"
    ):
        score_scenes(train, train, r"_(\w+)$")


def test_presence_is_predicted_for_labelled_images_alone(bundle: Path, store: Path) -> None:
    found = predict_presence(read_bundle(bundle), Store(store), "val", device="cpu")
    assert len(found.ids) == len(found.probabilities) == len(found.present) == 18
    assert "val-018-cold" not in found.ids
    assert found.present[:, 1].tolist() == [name.endswith("warm") for name in found.ids]
