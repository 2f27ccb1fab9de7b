"""The Parquet store: what is written comes back, all of it or nothing, and damage is never silent."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encsearch.data.audit import check_store
from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.manifest import StoreError, read_manifest
from encsearch.data.rows import make_row
from encsearch.data.shards import ShardWriter
from encsearch.data.store import Store, write_store
from encsearch.errors import UserError

INFO = DatasetInfo("toy", ("sky", "road", "car"), ((0, 0, 9), (9, 9, 9), (9, 0, 0)), {"things": ("car",)})


def encoded(number: int, height: int = 6, width: int = 8, group: str = "") -> EncodedSample:
    """A sample that is different for every number."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (height, width))
    return EncodedSample(f"s{number:03d}", encode_png(image), encode_png(mask), group)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(
        tmp_path / "store",
        INFO,
        {"train": [encoded(n) for n in range(7)], "val": [encoded(n) for n in (20, 21)]},
        shard_bytes=1000,
    )
    return tmp_path / "store"


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


class TestRoundTrip:
    def test_samples_come_back_in_order(self, store: Path) -> None:
        split = Store(store).split("train")
        assert [split[n].id for n in range(len(split))] == [f"s{n:03d}" for n in range(7)]
        rng = np.random.default_rng(3)
        np.testing.assert_array_equal(split[3].image, rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        assert split[3].mask.dtype == np.uint8
        assert set(np.unique(split[3].mask)) <= {0, 1, 2, 255}

    def test_manifest_says_what_is_inside(self, store: Path) -> None:
        manifest = read_manifest(store)
        assert manifest.info == INFO
        assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 7, "val": 2}
        assert len(manifest.splits["train"].shards) > 1, "the fixture is meant to have several shards"
        assert Store(store).split("val").fingerprint == manifest.fingerprint

    def test_an_open_store_stays_as_it_was_opened(self, store: Path) -> None:
        opened = Store(store)
        assert opened.split("val") is opened.split("val")
        assert opened.stats("val") is opened.stats("val")
        shutil.rmtree(store)
        write_store(store, INFO, {"val": [encoded(30)]})
        assert len(opened.split("val")) == 2
        assert Store(store).fingerprint != opened.fingerprint

    def test_index_out_of_range(self, store: Path) -> None:
        with pytest.raises(IndexError, match="sample 7 of 7"):
            Store(store).split("train")[7]

    def test_fingerprint_names_the_content_and_not_the_files(self, store: Path, tmp_path: Path) -> None:
        splits = {"train": [encoded(n) for n in range(7)], "val": [encoded(n) for n in (20, 21)]}
        one_shard = write_store(tmp_path / "one", INFO, splits)
        assert one_shard.fingerprint == read_manifest(store).fingerprint
        swapped = {**splits, "val": splits["val"][::-1]}
        renamed = replace(INFO, classes=("sky", "road", "bus"), groups={})
        others = [
            write_store(tmp_path / "swapped", INFO, swapped),
            write_store(tmp_path / "renamed", renamed, splits),
        ]
        assert len({one_shard.fingerprint, *(other.fingerprint for other in others)}) == 3

    def test_samples_are_taken_one_at_a_time(self, tmp_path: Path) -> None:
        def endless_until_told() -> Iterator[EncodedSample]:
            for number in range(100):
                assert len(list(tmp_path.glob(".store.*.tmp/*.parquet"))) >= number // 4
                yield encoded(number)

        write_store(tmp_path / "store", INFO, {"train": endless_until_told()}, shard_bytes=1000)

    def test_many_threads_may_open_and_read_at_once(self, store: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            splits = list(pool.map(lambda _: Store(store).split("train"), range(16)))
            ids = list(pool.map(lambda n: splits[n % 16][n % 7].id, range(700)))
        assert ids == [f"s{n % 7:03d}" for n in range(700)]
        assert len(list((store / ".cache").iterdir())) == len(read_manifest(store).splits["train"].shards)

    def test_cache_is_elsewhere_when_the_store_is_read_only(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
        (store / ".cache").write_text("in the way, as a read-only file system would be for root too")
        assert Store(store).split("val")[0].id == "s020"
        assert list((tmp_path / "user" / "encsearch").glob("*.arrow"))


class TestAllOrNothing:
    def test_a_failing_source_leaves_nothing(self, tmp_path: Path) -> None:
        def breaks() -> Iterator[EncodedSample]:
            yield from (encoded(n) for n in range(5))
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            write_store(tmp_path / "store", INFO, {"train": breaks()}, shard_bytes=1000)
        assert list(tmp_path.iterdir()) == []

    def test_a_store_in_use_is_not_overwritten(self, store: Path) -> None:
        before = read_manifest(store)
        with pytest.raises(
            UserError, match=r"store: exists and is not empty; give another folder or delete it"
        ):
            write_store(store, INFO, {"train": [encoded(1)]})
        assert read_manifest(store) == before

    def test_an_empty_folder_may_be_filled(self, tmp_path: Path) -> None:
        write_store(tmp_path, INFO, {"train": [encoded(1)]})
        assert len(Store(tmp_path).split("train")) == 1

    def test_of_two_imports_at_once_one_wins(self, tmp_path: Path) -> None:
        def slower() -> Iterator[EncodedSample]:
            yield encoded(1)
            write_store(tmp_path / "store", INFO, {"train": [encoded(2)]})

        with pytest.raises(UserError, match="exists and is not empty"):
            write_store(tmp_path / "store", INFO, {"train": slower()})
        assert Store(tmp_path / "store").split("train")[0].id == "s002"

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write the store"):
            write_store(tmp_path / "file" / "store", INFO, {"train": [encoded(1)]})


class TestRefused:
    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            ([], "split train has no samples"),
            ([encoded(1), encoded(1)], "train/s001: the id is in the split twice"),
            ([replace(encoded(1), image=b"")], r"train/s001: not a readable image \(0 bytes\)"),
            ([replace(encoded(1), image=encoded(1).image[:-30])], "train/s001: damaged PNG"),
            ([replace(encoded(1), mask=encoded(1, height=5).mask)], "image is 8x6 but its mask 8x5"),
            (
                [replace(encoded(1), mask=encode_png(np.full((6, 8), 3, np.uint8)))],
                r"mask value 3 is not a class; the 3 classes are 0\.\.2, and 255 is ignored",
            ),
        ],
    )
    def test_unfit_samples(self, samples: list[EncodedSample], message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            write_store(tmp_path / "store", INFO, {"train": samples})
        assert list(tmp_path.iterdir()) == []

    def test_a_split_name_that_is_no_file_name(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"split '\.\./train'"):
            write_store(tmp_path / "store", INFO, {"../train": [encoded(1)]})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": ("a", "b", "a")}, "class 'a' is named twice"),
            ({"classes": ()}, "0 classes, but a mask holds 1 to 255"),
            ({"palette": ((0, 0, 0),)}, "1 colour for 3 classes"),
            ({"groups": {"g": ("bus",)}}, "group g names 'bus', which is not a class"),
        ],
    )
    def test_classes_that_do_not_fit(self, change: dict[str, tuple[str, ...]], message: str) -> None:
        with pytest.raises(UserError, match=message):
            replace(INFO, **change)


class TestDamage:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="nowhere: no such store"):
            read_manifest(tmp_path / "nowhere")
        with pytest.raises(StoreError, match=r"not a store, it has no manifest\.json"):
            read_manifest(tmp_path)

    def test_unknown_split(self, store: Path) -> None:
        with pytest.raises(StoreError, match="split 'test' is not in the store; it has train, val"):
            Store(store).split("test")

    def test_another_version(self, store: Path) -> None:
        values = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps(values | {"version": 9}))
        with pytest.raises(StoreError, match="version 9, but this program reads version 1"):
            read_manifest(store)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda text: text[: len(text) // 2],
            lambda text: text.replace('"road"', '"rood"'),
            lambda text: text.replace('"palette"', '"pallete"'),
            lambda _: "[]",
        ],
        ids=["cut", "class", "key", "list"],
    )
    def test_damaged_manifest(self, store: Path, edit: Callable[[str], str]) -> None:
        file = store / "manifest.json"
        file.write_text(edit(file.read_text()))
        with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
            read_manifest(store)

    def test_any_flipped_byte_of_a_shard_is_noticed(self, store: Path) -> None:
        shard = store / "val-00000.parquet"
        whole = shard.read_bytes()
        for position in np.linspace(0, len(whole) - 1, 40).astype(int):
            flip(shard, position)
            with pytest.raises(StoreError, match=r"val-00000\.parquet: damaged, its sha256 is"):
                Store(store).split("val")
            assert "damaged, its sha256" in check_store(store).problems[0]
            shard.write_bytes(whole)
        assert check_store(store).problems == ()

    def test_a_shard_that_is_cut_or_gone(self, store: Path) -> None:
        shard = store / "val-00000.parquet"
        Store(store).split("val")  # fills the cache, which does not excuse the shard
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(StoreError, match=r"damaged, [\d,]+ bytes but the manifest says [\d,]+"):
            Store(store).split("val")
        shard.unlink()
        with pytest.raises(StoreError, match="cannot be read"):
            Store(store).split("val")
        assert len(check_store(store).problems) == 1

    def test_a_flipped_byte_never_gives_wrong_statistics(self, store: Path) -> None:
        """They read only some columns, so most flips do not concern them."""
        truth = Store(store).stats("val")
        shard = store / "val-00000.parquet"
        whole = shard.read_bytes()
        noticed = 0
        for position in np.linspace(0, len(whole) - 1, 600).astype(int):
            flip(shard, position)
            try:
                assert Store(store).stats("val") == truth
            except StoreError:
                noticed += 1
            shard.write_bytes(whole)
        assert noticed > 20

    def test_a_flipped_byte_of_the_cache_never_gives_a_wrong_sample(self, store: Path) -> None:
        truth = Store(store).split("val")[1]
        (cache,) = (store / ".cache").iterdir()
        whole = cache.read_bytes()
        noticed = 0
        for position in np.linspace(0, len(whole) - 1, 150).astype(int):
            flip(cache, position)
            try:
                sample = Store(store).split("val")[1]
                assert sample.id == truth.id
                np.testing.assert_array_equal(sample.image, truth.image)
                np.testing.assert_array_equal(sample.mask, truth.mask)
            except StoreError:
                noticed += 1
            replaced = cache.with_suffix(".new")
            replaced.write_bytes(whole)
            os.replace(replaced, cache)
        assert noticed > 10


class TestCheck:
    def test_a_sound_store(self, store: Path) -> None:
        found = check_store(store)
        assert found.counts == {"train": 7, "val": 2}
        assert (found.problems, found.warnings) == ((), ())

    def test_leaks_and_empty_masks(self, tmp_path: Path) -> None:
        unlabelled = encode_png(np.full((6, 8), 255, np.uint8))
        copied = replace(encoded(3), id="copy")
        write_store(
            tmp_path / "store",
            INFO,
            {
                "train": [encoded(1, group="video1"), encoded(3), replace(encoded(4), mask=unlabelled)],
                "val": [encoded(2, group="video1"), copied, replace(copied, id="copy2")],
            },
        )
        found = check_store(tmp_path / "store")
        assert found.problems == (
            "val/copy: the same image as train/s003, so one split leaks into the other",
            "val/copy2: the same image as train/s003, so one split leaks into the other",
        )
        assert found.warnings == (
            "train/s004: no pixel is labelled",
            "group video1 is in train and val: its scores are optimistic",
        )

    def test_a_class_that_never_occurs(self, tmp_path: Path) -> None:
        only_sky = replace(encoded(1), mask=encode_png(np.zeros((6, 8), np.uint8)))
        write_store(tmp_path / "store", INFO, {"train": [only_sky]})
        assert check_store(tmp_path / "store").warnings == (
            "class road has no pixel in any sound shard",
            "class car has no pixel in any sound shard",
        )

    def test_a_store_of_another_writer_is_judged_by_its_samples(self, store: Path) -> None:
        """A shard whose hash is right may still hold what `write_store` would have refused."""
        row = make_row(encoded(20), 3, "")
        bad_mask = encode_png(np.full((6, 8), 7, np.uint8))
        writer = ShardWriter(store / "val-00000.parquet", INFO)
        writer.write(replace(row, width=9))
        writer.write(replace(row, mask=bad_mask))
        shard = writer.close()
        values = json.loads((store / "manifest.json").read_text())
        values["splits"]["val"]["shards"] = [vars(shard)]
        (store / "manifest.json").write_text(json.dumps(values))
        assert check_store(store).problems == (
            "val/s020: its columns do not describe its image and mask",
            "val/s020: the id is in the split twice",
            "val/s020: mask value 7 is not a class; the 3 classes are 0..2, and 255 is ignored",
            "val: the samples do not match the fingerprint in the manifest",
        )


def test_split_stats_counts_pixels_images_and_sizes(tmp_path: Path) -> None:
    left = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    right = np.array([[0, 0], [0, 0], [1, 1]], dtype=np.uint8)
    samples = [
        EncodedSample(f"s{n}", encode_png(np.full((*mask.shape, 3), n, np.uint8)), encode_png(mask), "")
        for n, mask in enumerate([left, right, right])
    ]
    write_store(tmp_path / "store", INFO, {"train": samples})
    stats = Store(tmp_path / "store").stats("train")
    sky, road, car = stats.classes
    assert (sky.pixels, road.pixels, car.pixels) == (10, 5, 0)
    assert (sky.pixel_share, sky.image_share, car.image_share) == (10 / 15, 1.0, 0.0)
    assert stats.num_samples == 3
    assert stats.ignored_share == pytest.approx(1 / 16)
    assert stats.sizes == (((3, 2), 2), ((1, 4), 1))


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    name = "a" * 300

    with pytest.raises(StoreError, match="cannot be read"):
        read_manifest(name)
    with pytest.raises(UserError, match="cannot write the store"):
        write_store(name, INFO, {})
