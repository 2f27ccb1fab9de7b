"""What a store's columns say: classes together, drift, leaks, rare classes; and the page that shows it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.manifest import Origin
from encsearch.data.statistics import class_pairs, find_gaps, split_drift
from encsearch.data.store import Store, write_store
from encsearch.report.dataset import find_facts, write_page

INFO = DatasetInfo(
    "toy", ("sea", "boat", "road", "car"), ((0, 0, 200), (200, 0, 0), (90, 90, 90), (0, 200, 0))
)
SEA, BOAT, ROAD, CAR = range(4)


def sample(name: str, labels: Sequence[int], group: str = "", seed: int | None = None) -> EncodedSample:
    """A mask with a column of each label."""
    rng = np.random.default_rng(abs(hash(name)) if seed is None else seed)
    mask = np.tile(np.array(labels, np.uint8), (4, 1))
    image = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    return EncodedSample(name, encode_png(image), encode_png(mask), group)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """8 of 10 images of the sea have a boat, all 10 of a road have a car; in val there is no boat."""
    train = [sample(f"s{n}", [SEA, SEA, BOAT if n < 8 else SEA, 255], group=f"g{n}") for n in range(10)]
    train += [sample(f"r{n}", [ROAD, CAR, CAR, CAR], group=f"h{n}") for n in range(10)]
    val = [
        sample("v0", [SEA, SEA, ROAD, CAR], group="g3"),
        sample("s1", [SEA] * 4, seed=1),
        sample("v2", [CAR] * 4),
    ]
    val[1] = EncodedSample("copy", train[0].image, val[1].mask, "")
    write_store(tmp_path / "store", INFO, {"val": val, "train": train})
    return Store(tmp_path / "store")


def test_what_the_splits_lack_is_said_with_the_names(store: Store) -> None:
    train, val = store.stats("train"), store.stats("val")
    assert find_gaps(train, val) == [
        "1 of 4 classes without a pixel in val, not scored: boat; mIoU is over the other 3, and over one of "
        "these, with 0, where it is predicted"
    ]
    learnt, known, _ = find_gaps(val, val)
    assert learnt == "val is trained on and scored, so scores show what is known by heart"
    assert known == "1 of 4 classes without a pixel in val, not learnt: boat"
    assert find_gaps(train, train)[1:] == []


def test_classes_together(store: Store) -> None:
    stats = store.stats("train")
    assert stats.together == ((10, 8, 0, 0), (8, 8, 0, 0), (0, 0, 10, 10), (0, 0, 10, 10))
    first, second = class_pairs(stats)
    assert (first.first, first.second, first.images, first.lift, first.phi) == (
        "road",
        "car",
        10,
        2.0,
        pytest.approx(1),
    )
    # P(sea) = 1/2, P(boat) = 2/5, P(both) = 2/5: lift 2, phi (0.4 - 0.2) / sqrt(0.25 * 0.24)
    assert (second.first, second.images, second.lift) == ("sea", 8, 2.0)
    assert second.phi == pytest.approx(0.2 / np.sqrt(0.06))


def test_drift(store: Store) -> None:
    drift = split_drift(store.stats("train"), store.stats("val"))
    # train: sea 22/70, boat 8/70, road 10/70, car 30/70; val: sea 6/12, road 1/12, car 5/12
    assert drift.distance == pytest.approx(6 / 12 - 22 / 70)
    assert drift.largest == "sea"
    assert drift.shares == pytest.approx((22 / 70, 6 / 12))


def test_leaks_by_pixels_and_by_group(store: Store) -> None:
    assert store.leaks() == [
        "val and train share 1 image, by their pixels, as copy = s0",
        "val and train share 1 group, such as g3",
    ]


def test_leaks_between_any_two_splits(tmp_path: Path) -> None:
    one = sample("a", [SEA, ROAD], seed=1)
    splits = {
        name: [one, sample(f"{name}-own", [SEA, CAR], seed=n)]
        for n, name in ((2, "train"), (3, "val"), (4, "test"))
    }
    splits["val"].append(EncodedSample("again", one.image, one.mask, ""))
    write_store(tmp_path / "store", INFO, splits)
    assert Store(tmp_path / "store").leaks() == [
        "train and val share 1 image, by their pixels, as a = a",
        "train and test share 1 image, by their pixels, as a = a",
        "val and test share 1 image, by their pixels, as a = a",
    ]


def test_the_rarest_classes_are_looked_at(store: Store) -> None:
    rarest = store.rare("train", 1)
    assert [store.split("train")[index].id for index in rarest] == ["s0"]  # the first one with most of `boat`
    assert store.rare("val", 9) == [0, 1, 2]  # road, sea, car


def test_facts_and_page(store: Store, tmp_path: Path) -> None:
    facts = find_facts(store)
    assert list(facts.splits) == ["train", "val"]
    assert facts.absent == {"train": (), "val": ("boat",)}
    text = write_page(facts, store, tmp_path / "page.html").read_text()
    for expected in (
        "val: boat",
        "share 1 group, such as g3",
        "road, car",
        "Generated, or written by a program",
    ):
        assert expected in text
    assert text.count("data:image/png;base64,") == 5  # two charts for light and dark paper, and a sheet


def test_the_page_says_where_the_data_is_from(store: Store, tmp_path: Path) -> None:
    manifest = store.manifest
    object.__setattr__(manifest, "origin", Origin("voc", "some <licence>", ("said",), ("train/x: damaged",)))
    text = write_page(find_facts(store), store, tmp_path / "page.html").read_text()
    assert "some &lt;licence&gt;" in text
    assert "train/x: damaged" in text
