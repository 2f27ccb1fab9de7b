"""The public data sets in miniature, in their official layouts: right labels, value for value."""

import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from encsearch.data.audit import check_store
from encsearch.data.importers.labels import shipped_table
from encsearch.data.importers.plan import ImportPlan
from encsearch.data.importers.sets import SETS, SetOptions, context_table, plan_set
from encsearch.data.importers.write import ImportSettings, OnBad, write_plan
from encsearch.data.manifest import Manifest
from encsearch.data.store import Store
from encsearch.errors import UserError

SIZE = (12, 8)  # width, height


def image(path: Path, mode: str = "RGB", size: tuple[int, int] = SIZE) -> None:
    """A picture that only this folder and name have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-2:]).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def stripes(*values: int, size: tuple[int, int] = SIZE, dtype: Any = np.uint8) -> NDArray[Any]:
    """Columns of equal width, a value each."""
    width, height = size
    row = np.repeat(np.array(values, dtype), -(-width // len(values)))[:width]
    return np.tile(row, (height, 1))


def mask(path: Path, values: NDArray[Any], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(path)


def planned(name: str, root: Path, on_bad: OnBad = "fail", **options: bool) -> ImportPlan:
    return plan_set(name, [root], root.parent / "scratch", SetOptions(**options), on_bad=on_bad)


def imported(plan: ImportPlan, store: Path) -> tuple[Manifest, dict[str, dict[str, NDArray[np.uint8]]]]:
    """The manifest, and split -> id -> mask."""
    manifest = write_plan(plan, store)
    assert check_store(store).problems == ()
    opened = Store(store)
    masks = {
        name: {(sample := split[index]).id: sample.mask for index in range(len(split))}
        for name in manifest.splits
        for split in [opened.split(name)]
    }
    return manifest, masks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def write_voc(root: Path, year: str, train: list[str], val: list[str]) -> Path:
    voc = root / "VOCdevkit" / year
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(train) + "\n")
    (lists / "val.txt").write_text("\n".join(val) + "\n")
    for sample_id in (*train, *val):
        image(voc / "JPEGImages" / f"{sample_id}.jpg")
        mask(voc / "SegmentationClass" / f"{sample_id}.png", stripes(0, 15, 20, 255), palette=True)
    return voc


def write_sbd(root: Path, train: list[str], val: list[str]) -> None:
    sbd = root / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("\n".join(train) + "\n")
    (sbd / "val.txt").write_text("\n".join(val) + "\n")
    for sample_id in (*train, *val):
        image(sbd / "img" / f"{sample_id}.jpg")
        truth = {"Segmentation": stripes(0, 15, 20), "Boundaries": 0}
        savemat(sbd / "cls" / f"{sample_id}.mat", {"GTcls": truth})


class TestVoc:
    def test_indices_and_the_border(self, root: Path, tmp_path: Path) -> None:
        voc = write_voc(root, "VOC2012", ["2007_000032"], ["2007_000033"])
        image(voc / "JPEGImages" / "2008_000001.jpg")
        (voc / "Annotations").mkdir()
        (voc / "Annotations" / "2007_000032.xml").write_text("<boxes/>")
        plan = planned("voc", root)
        manifest, masks = imported(plan, tmp_path / "store")
        np.testing.assert_array_equal(masks["train"]["2007_000032"], stripes(0, 15, 20, 255))
        assert manifest.info.classes[15] == "person"
        assert manifest.info.classes[20] == "tvmonitor"
        assert manifest.info.palette[15] == (192, 128, 128)
        assert manifest.origin is not None
        assert manifest.origin.licence.startswith("PASCAL VOC 2012")
        assert "splits: train 1 (officially 1,464), val 1 (officially 1,449)" in manifest.origin.lines
        left_out = "\n".join(plan.left_out.lines())
        assert "not read: VOCdevkit/VOC2012/Annotations/ (2007_000032.xml)" in left_out
        assert "not read: VOCdevkit/VOC2012/JPEGImages/ (2008_000001.jpg)" in left_out

    def test_sbd_is_added_without_the_val_images(self, root: Path, tmp_path: Path) -> None:
        """VOC's own mask where both have one: only that has the ignored border."""
        voc = write_voc(root, "VOC2012", ["2007_000032"], ["2007_000033"])
        image(voc / "JPEGImages" / "2008_000002.jpg")
        write_sbd(root, ["2007_000032", "2008_000002"], ["2007_000033", "2008_000003"])
        manifest, masks = imported(planned("voc", root, with_sbd=True), tmp_path / "store")
        assert list(masks["train"]) == ["2007_000032", "2008_000002", "2008_000003"]
        assert list(masks["val"]) == ["2007_000033"]
        np.testing.assert_array_equal(masks["train"]["2007_000032"], stripes(0, 15, 20, 255))
        np.testing.assert_array_equal(masks["train"]["2008_000003"], stripes(0, 15, 20))
        assert manifest.info.name == "voc2012-aug"
        assert manifest.origin is not None
        assert "splits: train 3 (officially 10,582), val 1 (officially 1,449)" in manifest.origin.lines

    def test_sbd_that_is_not_there(self, root: Path) -> None:
        write_voc(root, "VOC2012", ["a"], ["b"])
        with pytest.raises(
            UserError, match=r"VOC without SBD; add benchmark_RELEASE/dataset or benchmark\.tgz"
        ):
            planned("voc", root, with_sbd=True)

    def test_a_listed_file_that_is_missing(self, root: Path, tmp_path: Path) -> None:
        voc = write_voc(root, "VOC2012", ["a", "b", "c"], ["d"])
        (voc / "SegmentationClass" / "b.png").unlink()
        with pytest.raises(
            UserError, match=r"SegmentationClass/b\.png: not in the source \(1 of 8 files are"
        ):
            planned("voc", root)
        manifest = write_plan(
            planned("voc", root, on_bad="skip"), tmp_path / "store", ImportSettings("skip", bad_limit=0.5)
        )
        assert manifest.origin is not None
        (line,) = manifest.origin.quarantine
        assert line.startswith("train/b: VOCdevkit/VOC2012/SegmentationClass/b.png: not in the source")


def write_context_json(root: Path, segments: Mapping[str, list[tuple[int, NDArray[np.uint8]]]]) -> None:
    """Segments of each image, by name; the last image is of val."""
    from pycocotools.mask import encode

    images, annotations = [], []
    for number, (name, found) in enumerate(segments.items()):
        phase = "val" if number == len(segments) - 1 else "train"
        images.append({"image_id": 20080 + number, "file_name": f"{name}.jpg", "phase": phase})
        image(root / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{name}.jpg")
        for category, where in found:
            encoded = encode(np.asfortranarray(where.astype(np.uint8)))
            packed = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            annotations.append({"image_id": 20080 + number, "category_id": category, "segmentation": packed})
    content = {"images": images, "annos_segmentation": annotations, "categories": []}
    (root / "trainval_merged.json").write_text(json.dumps(content))


class TestPascalContext:
    def test_a_television_is_a_television(self, root: Path, tmp_path: Path) -> None:
        """mmsegmentation numbers by id but names in VOC's order: its 2008_000002 shows a truck."""
        left, middle = stripes(1, 0, 0), stripes(0, 1, 0)
        write_context_json(
            root, {"2008_000002": [(427, left), (458, middle)], "2008_000003": [(2, left)], "v": [(9, left)]}
        )
        manifest, masks = imported(planned("pascal-context", root), tmp_path / "store")
        found = masks["train"]["2008_000002"]
        assert [manifest.info.classes[value] for value in (found[0, 0], found[0, 5])] == ["tvmonitor", "wood"]
        assert found[0, 11] == 255  # what no segment covers is background
        assert manifest.info.name == "pascal-context-59"
        assert len(manifest.info.classes) == 59
        assert manifest.info.ids[manifest.info.classes.index("tvmonitor")] == 427
        assert sorted(masks) == ["train", "val"]

    def test_60_classes_count_the_background(self, root: Path, tmp_path: Path) -> None:
        write_context_json(root, {"a": [(427, stripes(1, 0))], "b": [(2, stripes(1, 0))]})
        manifest, masks = imported(planned("pascal-context", root, background=True), tmp_path / "store")
        assert manifest.info.name == "pascal-context-60"
        assert manifest.info.classes[:2] == ("background", "aeroplane")
        np.testing.assert_array_equal(masks["val"]["b"], stripes(1, 0))

    def test_from_the_459_classes(self, root: Path, tmp_path: Path) -> None:
        voc = root / "VOCdevkit" / "VOC2010"
        (voc / "ImageSets" / "Main").mkdir(parents=True)
        (voc / "ImageSets" / "Main" / "train.txt").write_text("a\nno_mask\n")
        (voc / "ImageSets" / "Main" / "val.txt").write_text("b\n")
        for name in "ab":
            image(voc / "JPEGImages" / f"{name}.jpg")
            (root / "trainval").mkdir(exist_ok=True)
            # 100 is one of the 400 classes that are not among the 59; np.digitize would make it a cup.
            savemat(root / "trainval" / f"{name}.mat", {"LabelMap": stripes(2, 100, 458, dtype=np.uint16)})
        _, masks = imported(planned("pascal-context", root), tmp_path / "store")
        np.testing.assert_array_equal(masks["train"]["a"], stripes(0, 255, 58))
        _, masks = imported(planned("pascal-context", root, background=True), tmp_path / "store60")
        np.testing.assert_array_equal(masks["train"]["a"], stripes(1, 0, 59))

    def test_an_id_that_does_not_exist(self, root: Path, tmp_path: Path) -> None:
        write_context_json(root, {"a": [(460, stripes(1, 0))], "b": [(2, stripes(1, 0))]})
        with pytest.raises(
            UserError, match=r"trainval_merged\.json: a\.jpg: mask value 460 of 48 pixels is not"
        ):
            write_plan(planned("pascal-context", root), tmp_path / "store")

    def test_another_json(self, root: Path) -> None:
        write_context_json(root, {"a": [(2, stripes(1, 0))]})
        (root / "trainval_merged.json").write_text('{"images": [{"id": 1}]}')
        with pytest.raises(UserError, match="not the annotations of PASCAL-Context"):
            planned("pascal-context", root)

    def test_the_table_is_alphabetical_by_id(self) -> None:
        table = shipped_table("pascal-context")
        ids = [label.code for label in table.labels]
        assert ids == sorted(ids)
        assert list(table.classes) == sorted(table.classes)
        assert len(context_table(background=True).classes) == 60


class TestAde20k:
    def test_zero_is_ignored_and_the_others_move_down(self, root: Path, tmp_path: Path) -> None:
        ade = root / "ADEChallengeData2016"
        for split, short in (("training", "train"), ("validation", "val")):
            name = f"ADE_{short}_00000001"
            image(ade / "images" / split / f"{name}.jpg")
            mask(ade / "annotations" / split / f"{name}.png", stripes(0, 1, 90, 150))
        (ade / "objectInfo150.txt").write_text("Idx\tRatio\n")
        manifest, masks = imported(planned("ade20k", root), tmp_path / "store")
        np.testing.assert_array_equal(masks["val"]["ADE_val_00000001"], stripes(255, 0, 89, 149))
        names = manifest.info.classes
        assert (names[0], names[89], names[149]) == ("wall", "television", "flag")
        assert manifest.info.ids == tuple(range(1, 151))

    def test_255_is_no_label(self, root: Path, tmp_path: Path) -> None:
        ade = root / "ADEChallengeData2016"
        for split in ("training", "validation"):
            image(ade / "images" / split / "x.jpg")
            mask(ade / "annotations" / split / "x.png", stripes(0, 255))
        with pytest.raises(
            UserError, match=r"x\.png: mask value 255 of 48 pixels is not in the table of labels"
        ):
            write_plan(planned("ade20k", root), tmp_path / "store")


CITYSCAPES_19 = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class TestCityscapes:
    def write(self, root: Path, split: str, city: str, values: NDArray[np.uint8]) -> str:
        name = f"{city}_000000_000019"
        image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        mask(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", values)
        mask(
            root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", values.astype(np.uint16) * 1000
        )
        (root / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")
        return name

    def test_label_ids_become_train_ids(self, root: Path, tmp_path: Path) -> None:
        size = (34, 8)
        ids = np.tile(np.arange(34, dtype=np.uint8), (8, 1))
        name = self.write(root, "train", "aachen", ids)
        image(root / "leftImg8bit" / "train" / "aachen" / f"{name}_leftImg8bit.png", size=size)
        self.write(root, "val", "lindau", stripes(7, 0))
        manifest, masks = imported(planned("cityscapes", root), tmp_path / "store")
        expected = np.full(34, 255)
        expected[list(CITYSCAPES_19)] = range(19)
        np.testing.assert_array_equal(masks["train"][name], np.tile(expected, (8, 1)))
        assert manifest.info.ids == CITYSCAPES_19
        assert manifest.info.classes[13] == "car"

    def test_void_test_masks_come_along(self, root: Path, tmp_path: Path) -> None:
        self.write(root, "train", "aachen", stripes(7, 0))
        self.write(root, "test", "berlin", stripes(0, 1, 2, 3))
        plan = planned("cityscapes", root)
        assert any("test are void" in line for line in plan.lines)
        _, masks = imported(plan, tmp_path / "store")
        assert (masks["test"]["berlin_000000_000019"] == 255).all()
        assert plan.splits["test"][0].group == "berlin_000000"


class TestCocoStuff:
    def write(self, root: Path) -> None:
        for split, number in (("train", 9), ("val", 139)):
            name = f"{number:012d}"
            image(root / "images" / f"{split}2017" / f"{name}.jpg", "L" if split == "train" else "CMYK")
            mask(root / "annotations" / f"{split}2017" / f"{name}.png", stripes(0, 10, 12, 91, 181, 255))
            mask(root / "annotations" / f"{split}2017" / f"{name}_labelTrainIds.png", stripes(0, 1))

    def test_the_gaps_close_up(self, root: Path, tmp_path: Path) -> None:
        self.write(root)
        manifest, masks = imported(planned("coco-stuff", root), tmp_path / "store")
        found = masks["val"]["000000000139"]
        np.testing.assert_array_equal(found, stripes(0, 10, 11, 80, 170, 255))
        names = manifest.info.classes
        assert [names[value] for value in (0, 10, 11, 80, 170)] == [
            "person", "fire hydrant", "stop sign", "banner", "wood",
        ]  # fmt: skip
        assert len(names) == 171
        gaps = set(range(182)) - set(manifest.info.ids)
        assert gaps == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}

    def test_a_mask_of_another_size_is_quarantined(self, root: Path, tmp_path: Path) -> None:
        self.write(root)
        image(root / "images" / "train2017" / "000000000025.jpg")
        mask(root / "annotations" / "train2017" / "000000000025.png", stripes(0, 1, size=(8, 12)))
        plan = planned("coco-stuff", root)
        with pytest.raises(UserError, match=r"000000000025\.png: the image is 12x8 but its mask 8x12"):
            write_plan(plan, tmp_path / "store")
        manifest = write_plan(plan, tmp_path / "store", ImportSettings("skip", bad_limit=0.5))
        assert manifest.origin is not None
        (line,) = manifest.origin.quarantine
        assert line.startswith("train/000000000025: ")


class TestCamvid:
    def write_grey(self, root: Path, **splits: list[str]) -> None:
        for split, names in splits.items():
            for name in names:
                image(root / split / f"{name}.png")
                mask(root / f"{split}annot" / f"{name}.png", stripes(0, 5, 10, 11))

    def test_void_is_ignored_and_videos_are_groups(self, root: Path, tmp_path: Path) -> None:
        self.write_grey(root, train=["0001TP_006690", "0016E5_00390"], val=["0016E5_07959"])
        manifest, masks = imported(planned("camvid", root), tmp_path / "store")
        assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 2, "val": 1}
        np.testing.assert_array_equal(masks["val"]["0016E5_07959"], stripes(0, 5, 10, 255))
        leaks = [line for line in check_store(tmp_path / "store").warnings if line.startswith("group")]
        assert leaks == ["group 0016E5 is in train and val: its scores are optimistic"]

    def test_without_val_that_is_said(self, root: Path) -> None:
        self.write_grey(root, train=["0001TP_006690"])
        plan = planned("camvid", root)
        assert plan.lines == ("splits: train 1 (officially 367)", "warning: there is no val split")

    def test_test_is_taken_where_there_is_one(self, root: Path) -> None:
        self.write_grey(root, train=["0001TP_006690"], val=["0016E5_07959"], test=["Seq05VD_f00000"])
        assert list(planned("camvid", root).splits) == ["train", "val", "test"]

    def test_a_value_beyond_void_is_refused(self, root: Path, tmp_path: Path) -> None:
        self.write_grey(root, train=["a"], val=["b"])
        mask(root / "valannot" / "b.png", stripes(12))
        with pytest.raises(
            UserError, match=r"b\.png: mask value 12 of 96 pixels is not in the table of labels"
        ):
            write_plan(planned("camvid", root), tmp_path / "store")

    def test_the_original_in_32_colours(self, root: Path, tmp_path: Path) -> None:
        names = {
            "0001TP_006690": "train",
            "0001TP_008550": "test",
            "0006R0_f00930": "train",
            "0016E5_07959": "val",
            "0016E5_07960": "train",
            "0016E5_08159": "val",
            "0016E5_08161": "train",
            "Seq05VD_f00000": "test",
        }
        colours = np.array([(64, 192, 0), (128, 0, 192), (64, 128, 192), (0, 0, 0)], np.uint8)
        for name in names:
            image(root / "701_StillsRaw_full" / f"{name}.png")
            mask(root / "LabeledApproved_full" / f"{name}_L.png", colours[stripes(0, 1, 2, 3)])
        (root / "label_colors.txt").write_text("64 128 64 Animal\n")
        manifest, masks = imported(planned("camvid", root), tmp_path / "store")
        found = {name: split for split, samples in masks.items() for name in samples}
        assert found == names
        shown = masks["test"]["Seq05VD_f00000"]
        classes = manifest.info.classes
        # Wall, LaneMkgsDriv, SUVPickupTruck, Void
        assert [classes[shown[0, x]] for x in (0, 3, 6)] == ["Building", "Road", "Car"]
        assert shown[0, 11] == 255
        assert classes == shipped_table("camvid").classes

    def test_an_unknown_colour(self, root: Path, tmp_path: Path) -> None:
        image(root / "701_StillsRaw_full" / "0001TP_006690.png")
        mask(root / "LabeledApproved_full" / "0001TP_006690_L.png", np.full((8, 12, 3), 7, np.uint8))
        with pytest.raises(UserError, match=r"_L\.png: colour #070707 of 96 pixels is not in the table"):
            write_plan(planned("camvid", root), tmp_path / "store")


def zipped(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))


def tarred(folder: Path, archive: Path, mode: str = "w") -> None:
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            file.add(path, path.name)


class TestArchives:
    """The official archives give the same store as what is in them."""

    def same(self, name: str, root: Path, pack: Callable[[Path, Path], None], **options: bool) -> None:
        unpacked = write_plan(planned(name, root, **options), root.parent / "unpacked")
        packed = root.parent / "packed"
        packed.mkdir()
        pack(root, packed)
        manifest = write_plan(planned(name, packed, **options), root.parent / "from-archives")
        assert manifest.fingerprint == unpacked.fingerprint
        assert check_store(root.parent / "from-archives").problems == ()

    def test_voc_and_sbd(self, root: Path) -> None:
        write_voc(root, "VOC2012", ["a"], ["b"])
        write_sbd(root, ["c"], ["b"])

        def pack(source: Path, target: Path) -> None:
            archives = {
                "VOCdevkit": ("VOCtrainval_11-May-2012.tar", "w"),
                "benchmark_RELEASE": ("benchmark.tgz", "w:gz"),
            }
            for folder, (name, mode) in archives.items():
                part = source.parent / f"part-{folder}"
                part.mkdir()
                shutil.copytree(source / folder, part / folder)
                tarred(part, target / name, mode)

        self.same("voc", root, pack, with_sbd=True)

    def test_ade20k(self, root: Path) -> None:
        for split in ("training", "validation"):
            image(root / "ADEChallengeData2016" / "images" / split / "x.jpg")
            mask(root / "ADEChallengeData2016" / "annotations" / split / "x.png", stripes(0, 1))
        self.same("ade20k", root, lambda source, target: zipped(source, target / "ADEChallengeData2016.zip"))

    def test_coco_whose_archives_have_the_same_folders(self, root: Path) -> None:
        TestCocoStuff().write(root)

        def pack(source: Path, target: Path) -> None:
            for split in ("train", "val"):
                part = source.parent / split
                shutil.copytree(source / "images" / f"{split}2017", part / f"{split}2017")
                zipped(part, target / f"{split}2017.zip")
            zipped(source / "annotations", target / "stuffthingmaps_trainval2017.zip")

        self.same("coco-stuff", root, pack)

    def test_cityscapes(self, root: Path) -> None:
        for split, city in (("train", "aachen"), ("val", "lindau")):
            TestCityscapes().write(root, split, city, stripes(7, 26))

        def pack(source: Path, target: Path) -> None:
            for kind in ("leftImg8bit", "gtFine"):
                part = source.parent / kind
                shutil.copytree(source / kind, part / kind)
                zipped(part, target / f"{kind}_trainvaltest.zip")

        self.same("cityscapes", root, pack)

    def test_an_archive_that_is_cut_off(self, root: Path) -> None:
        (root / "ADEChallengeData2016.zip").write_bytes(b"PK\3\4 and no more")
        with pytest.raises(UserError, match=r"ADEChallengeData2016\.zip: not a whole archive"):
            planned("ade20k", root)
        (root / "ADEChallengeData2016.zip").unlink()
        (root / "VOCtrainval_11-May-2012.tar").write_bytes(b"x" * 700)
        with pytest.raises(UserError, match=r"VOCtrainval_11-May-2012\.tar: not a whole archive"):
            planned("voc", root)

    def test_a_member_that_is_damaged(self, root: Path, tmp_path: Path) -> None:
        for split in ("training", "validation"):
            image(root / "ADEChallengeData2016" / "images" / split / "x.jpg", size=(64, 64))
            mask(
                root / "ADEChallengeData2016" / "annotations" / split / "x.png", stripes(0, 1, size=(64, 64))
            )
        archive = tmp_path / "ADEChallengeData2016.zip"
        zipped(root, archive)
        data = bytearray(archive.read_bytes())
        place = data.index(b"\xff\xd8\xff") + 300
        data[place] ^= 0xFF
        archive.write_bytes(bytes(data))
        plan = plan_set("ade20k", [archive], tmp_path / "scratch")
        with pytest.raises(
            UserError, match=r"zip:ADEChallengeData2016/images/.*: cannot be read \(Bad CRC-32"
        ):
            write_plan(plan, tmp_path / "store")


@pytest.mark.parametrize("name", SETS)
def test_another_layout_is_one_line(name: str, root: Path) -> None:
    """It says what was expected, and what is there."""
    image(root / "pictures" / "a.png")
    with pytest.raises(UserError, match=rf"source: not {name}; expected .*, but found pictures"):
        planned(name, root)


@pytest.mark.parametrize("name", ["voc", "ade20k", "cityscapes", "coco-stuff", "camvid", "camvid-32"])
def test_tables_are_whole(name: str) -> None:
    """Train ids without gaps, and no two classes of one colour (of ADE20K's own colours two are the same)."""
    table = shipped_table(name)
    info = table.info(name)
    assert len(set(info.classes)) == len(info.classes)
    assert len(set(info.palette)) >= len(info.palette) - (name == "ade20k")
