"""A data set of one's own is copied into a store once, whole or not at all."""

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from encsearch.config import Config, load_config, with_values
from encsearch.data.own import STORES, with_own_store
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.tracking.lineage import data_tags

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = """
import numpy as np
from encsearch.data.datasets import DatasetInfo, Sample

class Set:
    fingerprint = "first"
    def __init__(self, split, number=3):
        self.info = DatasetInfo("made", ("dark", "bright"), ((0, 0, 0), (255, 255, 255)))
        self.split, self.number = split, number
    def __len__(self):
        return self.number
    def __getitem__(self, index):
        image = np.full((20, 24, 3), 10 * index + len(self.split), np.uint8)
        mask = np.full((20, 24), index % 2, np.uint8)
        return Sample(f"{self.split}-{index}", image, mask)
"""


@pytest.fixture
def config(toy_config: Config, tmp_path: Path) -> Config:
    return with_values(toy_config, {"data.store": "made_set:Set", "code": str(tmp_path / "code")})


def copy(config: Config, out: Path, source: str = SOURCE) -> Config:
    assert config.code
    Path(config.code).mkdir(exist_ok=True)
    (Path(config.code) / "made_set.py").write_text(source)
    return with_own_store(config, out)


def test_the_recipe_gets_a_store_with_the_samples(config: Config, tmp_path: Path) -> None:
    copied = copy(with_values(config, {"data.args.made_set:Set.number": 4}), tmp_path / "runs")
    store = Store(copied.data.store)
    assert copied.data.args == {}
    assert Path(copied.data.store).parent == tmp_path / "runs" / STORES
    assert store.info.classes == ("dark", "bright")
    for name in ("train", "val"):
        split = store.split(name)
        assert [split[index].id for index in range(len(split))] == [f"{name}-{index}" for index in range(4)]
        assert np.all(split[3].image == 30 + len(name))
        assert np.all(split[3].mask == 1)
    assert with_own_store(copied, tmp_path / "runs") is copied, "a store is taken as it is"


def test_runs_know_the_code_that_made_the_copy(config: Config, tmp_path: Path) -> None:
    store = Store(copy(config, tmp_path / "runs").data.store)
    tags = data_tags(store.manifest)
    assert tags["data.fingerprint"] == store.fingerprint
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    listed = hashlib.sha256(f"{digest}  made_set.py\n".encode()).hexdigest()
    assert re.fullmatch(rf"made_set:Set, code SHA-256 {listed}, numpy [0-9.]+", tags["data.origin"])
    other = SOURCE.replace('"first"', '"second"')
    again = data_tags(Store(copy(config, tmp_path / "runs", other).data.store).manifest)
    assert tags["data.origin"] != again["data.origin"]


def test_it_is_copied_once_and_again_when_its_fingerprint_changes(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    first, again = (copy(config, tmp_path / "runs") for _ in range(2))
    assert first == again
    assert [record.getMessage() for record in caplog.records] == [
        f"copying 6 samples of made_set:Set to {first.data.store}"
    ]
    other = copy(config, tmp_path / "runs", SOURCE.replace('"first"', '"second"'))
    assert other.data.store != first.data.store
    assert len(list((tmp_path / "runs" / STORES).iterdir())) == 2


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "def __len__",
            "def size",
            "train: has no __len__; it needs info, fingerprint, len and [index]",
        ),
        ('fingerprint = "first"', "other = 1", "split train: has no fingerprint; it needs info"),
        ('fingerprint = "first"', "fingerprint = 1", "but got DatasetInfo and int"),
        (
            "DatasetInfo(",
            "dict, (",
            "info must be a DatasetInfo of encsearch.data.datasets and fingerprint text, but got",
        ),
        ("return self.number", "return 0", "split train: has 0 samples"),
        (
            "np.uint8)\n        mask",
            "np.float32)\n        mask",
            "image (H, W, 3) and mask (H, W), both uint8, but has float32 (20, 24, 3) and uint8 (20, 24)",
        ),
        ("(20, 24), index", "(20, 24, 1), index", "but has uint8 (20, 24, 3) and uint8 (20, 24, 1)"),
        ("image, mask)", "image.tolist(), mask)", "but has list  and uint8 (20, 24)"),
        ("return Sample(", "return str(", "sample 0 cannot be read (TypeError: "),
        ("return Sample(", "return undefined(", "sample 0 cannot be read (NameError: name 'undefined'"),
        (
            "image = np.full(",
            "image = np.random.default_rng().integers(2, size=(20, 24, 3), dtype=np.uint8) + np.full(",
            "sample 0 differs when it is read again; random changes are `augment`'s",
        ),
        ('("dark", "bright")', '(split, "bright")', "its splits differ in `info`; classes must be the same"),
        ("return self.number", "return 'three'", "split train: cannot be read (TypeError: 'str' object"),
        ("(self, split, number=3)", "(self)", "too many positional arguments; it takes ()"),
        ('f"{self.split}-{index}"', "None", "sample 0 must have a text as its id, but has None"),
    ],
)
def test_what_is_no_data_set_is_one_line_and_nothing_is_written(
    config: Config, tmp_path: Path, old: str, new: str, line: str
) -> None:
    assert old in SOURCE
    with pytest.raises(UserError) as refused:
        copy(config, tmp_path / "runs", SOURCE.replace(old, new))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("index % 2", "index", "train-2"),
        ("(20, 24, 3), 10", "(20, 24 + index, 3), 10", "train-1: the image is 25x20 but its mask 24x20"),
        ('f"{self.split}-{index}"', '"same"', "same"),
        (
            "np.full((20, 24), index",
            "np.full((20, 24) if index < 2 else (20, 24, 1), index",
            "sample 2 must have image",
        ),
    ],
)
def test_a_later_sample_that_is_wrong_leaves_nothing_half_written(
    config: Config, tmp_path: Path, old: str, new: str, line: str
) -> None:
    assert old in SOURCE
    with pytest.raises(UserError, match=line) as refused:
        copy(config, tmp_path / "runs", SOURCE.replace(old, new))
    assert "\n" not in str(refused.value)
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []
    copy(config, tmp_path / "runs")


def test_the_example_is_copied(tmp_path: Path) -> None:
    config = with_values(load_config(EXAMPLES / "own.yaml"), {"code": str(EXAMPLES)})
    store = Store(with_own_store(config, tmp_path).data.store)
    assert (store.info.name, len(store.split("train")), len(store.split("val"))) == ("stripes", 16, 16)
