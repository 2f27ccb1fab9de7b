"""What an importer takes, and the one line with which it refuses anything else."""

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.audit import check_store
from encsearch.data.importers.camvid import import_camvid
from encsearch.data.importers.folder import import_folder
from encsearch.data.store import Store
from encsearch.errors import UserError

CLASSES = ("sky", "road", "car")


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 6), seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def labels(size: tuple[int, int] = (8, 6), high: int = 3, seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, high, (height, width), dtype=np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight good pairs and the class names."""
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("sky\nroad\ncar\n\n")
    for number in range(8):
        picture(seed=number).save(root / "images" / f"{number}.png")
        labels(seed=number).save(root / "masks" / f"{number}.png")
    return root


class TestFolder:
    def test_pairs_become_samples(self, source: Path, tmp_path: Path) -> None:
        manifest = import_folder(source, tmp_path / "store", val_fraction=0.4)
        assert manifest.info.classes == CLASSES
        assert manifest.info.name == "source"
        assert sum(split.num_samples for split in manifest.splits.values()) == 8
        assert check_store(tmp_path / "store").problems == ()
        split = Store(tmp_path / "store").split("train")
        for index in range(len(split)):
            sample = split[index]
            np.testing.assert_array_equal(sample.image, np.asarray(picture(seed=int(sample.id))))
            np.testing.assert_array_equal(sample.mask, np.asarray(labels(seed=int(sample.id))))

    def test_a_sample_stays_in_its_split_when_others_come(self, source: Path, tmp_path: Path) -> None:
        import_folder(source, tmp_path / "before", val_fraction=0.4)
        for number in range(8, 20):
            picture(seed=number).save(source / "images" / f"{number}.png")
            labels(seed=number).save(source / "masks" / f"{number}.png")
        import_folder(source, tmp_path / "after", val_fraction=0.4)
        before, after = (Store(tmp_path / name).split("val") for name in ("before", "after"))
        assert {before[n].id for n in range(len(before))} <= {after[n].id for n in range(len(after))}

    def test_split_folders_are_the_splits(self, source: Path, tmp_path: Path) -> None:
        for kind in ("images", "masks"):
            for split, numbers in (("train", range(5)), ("val", range(5, 8))):
                (source / kind / split).mkdir()
                for number in numbers:
                    (source / kind / f"{number}.png").rename(source / kind / split / f"{number}.png")
        manifest = import_folder(source, tmp_path / "store")
        assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 5, "val": 3}

    def test_rgb_files_are_stored_as_they_are(self, source: Path, tmp_path: Path) -> None:
        (source / "images" / "0.png").unlink()
        picture().save(source / "images" / "0.JPG", "JPEG", quality=80)
        stored = import_and_get(source, tmp_path, "0")
        np.testing.assert_array_equal(stored[0], np.asarray(Image.open(source / "images" / "0.JPG")))

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_every_mode_becomes_rgb(self, mode: str, source: Path, tmp_path: Path) -> None:
        picture(mode).save(source / "images" / "0.png")
        stored = import_and_get(source, tmp_path, "0")
        np.testing.assert_array_equal(stored[0], np.asarray(picture(mode).convert("RGB")))

    def test_cmyk_becomes_rgb(self, source: Path, tmp_path: Path) -> None:
        (source / "images" / "0.png").unlink()
        picture("CMYK").save(source / "images" / "0.jpg")
        stored = import_and_get(source, tmp_path, "0")
        expected = Image.open(source / "images" / "0.jpg").convert("RGB")
        np.testing.assert_array_equal(stored[0], np.asarray(expected))

    def test_exif_rotation_is_applied_once(self, source: Path, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
        lying = picture(size=(6, 8))
        lying.save(source / "images" / "0.png", exif=exif)
        stored = import_and_get(source, tmp_path, "0")
        np.testing.assert_array_equal(stored[0], np.asarray(lying.rotate(-90, expand=True)))

    def test_palette_masks_are_their_indices(self, source: Path, tmp_path: Path) -> None:
        indices = np.asarray(labels()).copy()
        indices[0, 0] = 255
        mask = Image.fromarray(indices)
        mask.putpalette([255 - value for value in range(256) for _ in range(3)])
        mask.save(source / "masks" / "0.png")
        np.testing.assert_array_equal(import_and_get(source, tmp_path, "0")[1], indices)

    def test_small_palettes_too(self, source: Path, tmp_path: Path) -> None:
        mask = labels(high=2)
        mask.putpalette([0, 0, 0, 9, 9, 9])
        mask.save(source / "masks" / "0.png", bits=1)
        np.testing.assert_array_equal(import_and_get(source, tmp_path, "0")[1], np.asarray(labels(high=2)))


def import_and_get(
    source: Path, tmp_path: Path, sample_id: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image and mask of one sample after the import, whichever split it is in."""
    manifest = import_folder(source, tmp_path / "store", val_fraction=0.4)
    for name in manifest.splits:
        split = Store(tmp_path / "store").split(name)
        for sample in (split[index] for index in range(len(split))):
            if sample.id == sample_id:
                return sample.image, sample.mask
    raise AssertionError(f"{sample_id} is in no split")


def unlink(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def save(name: str, image: Image.Image) -> Callable[[Path], None]:
    return lambda root: image.save(root / name)


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).write_bytes(data)

    return apply


def png(image: Image.Image, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of some 200 bytes whose header, checksum and all, says that it is side x side."""
    data = bytearray(png(picture()))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


deep_grey = Image.fromarray(np.full((6, 8), 300, np.uint16))

SPOILED = {
    "missing mask": (unlink("masks/3.png"), r"images/3\.png: no mask .*masks/3\.png \(1 of 8 images"),
    "orphan mask": (
        unlink("images/3.png"),
        r"masks/3\.png: no image of that name in .*images \(1 of 8 masks",
    ),
    "size mismatch": (
        save("masks/3.png", labels((8, 5))),
        r"masks/3\.png: the image is 8x6 but its mask 8x5",
    ),
    "value out of range": (
        save("masks/3.png", labels(high=9)),
        r"masks/3\.png: mask value \d is not a class; the 3 classes are 0\.\.2, and 255 is ignored",
    ),
    "RGB mask": (save("masks/3.png", picture()), r"masks/3\.png: colours \(RGB\) are not class indices"),
    "RGBA mask": (save("masks/3.png", picture("RGBA")), r"masks/3\.png: colours \(RGBA\)"),
    "16-bit mask": (save("masks/3.png", deep_grey), r"masks/3\.png: a 16-bit grey mask; save the class"),
    "1-bit mask": (save("masks/3.png", labels(high=2).convert("1")), r"masks/3\.png: a 1-bit grey mask"),
    "JPEG as mask": (
        lambda root: labels().save(root / "masks/3.png", "JPEG"),
        r"masks/3\.png: a mask is a PNG, but this is JPEG",
    ),
    "16-bit image": (save("images/3.png", deep_grey), r"images/3\.png: a 16-bit grey image"),
    "empty image": (write("images/3.png", b""), r"images/3\.png: not a readable image \(0 bytes\)"),
    "text as image": (write("images/3.png", b"hello"), r"images/3\.png: not a readable image \(5 bytes\)"),
    "cut image": (write("images/3.png", png(picture())[:80]), r"images/3\.png: damaged PNG"),
    "cut mask": (write("masks/3.png", png(labels())[:50]), r"masks/3\.png: damaged PNG"),
    "bomb": (write("images/3.png", bomb(60000)), r"images/3\.png: over 67,108,864 pixels"),
    "large image": (write("images/3.png", bomb(8200)), r"images/3\.png: 8200x8200 is over 67,108,864 pixels"),
    "bomb as mask": (write("masks/3.png", bomb(60000)), r"masks/3\.png: over 67,108,864 pixels"),
    "two of a name": (save("images/3.jpg", picture()), r"images/3\.png: 3\.jpg has the same name"),
    "no classes.txt": (unlink("classes.txt"), r"classes\.txt: no such file; write one class name a line"),
    "Latin-1 classes": (write("classes.txt", b"stra\xdfe\n"), r"classes\.txt: cannot be read as UTF-8"),
    "class twice": (write("classes.txt", b"a\na\nb\n"), "class 'a' is named twice"),
    "no class": (write("classes.txt", b"\n"), "0 classes"),
    "no image folder": (lambda root: (root / "images").rename(root / "img"), r"images: no such folder"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED.keys())
def test_folder_refuses(spoil: Callable[[Path], object], message: str, source: Path, tmp_path: Path) -> None:
    """One line that names the file, and nothing is left behind."""
    spoil(source)
    with pytest.raises(UserError, match=message) as caught:
        import_folder(source, tmp_path / "store", val_fraction=0.4)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_folder_refuses_a_name_that_is_not_utf8(source: Path, tmp_path: Path) -> None:
    picture().save(source / "images" / "9.png")
    os.rename(os.fsencode(source / "images" / "9.png"), os.fsencode(source / "images") + b"/9\xff.png")
    with pytest.raises(UserError, match="is not printable UTF-8; rename it"):
        import_folder(source, tmp_path / "store")


def test_folder_refuses_a_split_without_samples(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val_fraction=1e-09 of 8 images leaves val empty"):
        import_folder(source, tmp_path / "store", val_fraction=1e-9)
    with pytest.raises(UserError, match=r"val_fraction=1\.5 must be between 0 and 1"):
        import_folder(source, tmp_path / "store", val_fraction=1.5)


def test_folder_refuses_no_images(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    with pytest.raises(UserError, match=r"images: no images here; they end in \.png, \.jpg, \.jpeg"):
        import_folder(tmp_path, tmp_path / "store", classes=CLASSES)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    root = tmp_path / "camvid"
    frames = {"train": ["0001TP_006690", "0016E5_00390"], "val": ["0016E5_07959"]}
    for split, names in frames.items():
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for name in names:
            picture(seed=len(name)).save(root / split / f"{name}.png")
            labels(high=12, seed=len(name)).save(root / f"{split}annot" / f"{name}.png")
    return root


class TestCamvid:
    def test_void_is_ignored_and_videos_are_groups(self, camvid: Path, tmp_path: Path) -> None:
        manifest = import_camvid(camvid, tmp_path / "store")
        assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 2, "val": 1}
        assert len(manifest.info.classes) == 11
        mask = np.asarray(labels(high=12, seed=12))
        np.testing.assert_array_equal(
            Store(tmp_path / "store").split("val")[0].mask, np.where(mask == 11, 255, mask)
        )
        leaks = [line for line in check_store(tmp_path / "store").warnings if line.startswith("group")]
        assert leaks == ["group 0016E5 is in train and val: its scores are optimistic"]

    def test_test_is_taken_where_there_is_one(self, camvid: Path, tmp_path: Path) -> None:
        for folder in ("test", "testannot"):
            (camvid / folder).mkdir()
        picture(seed=50).save(camvid / "test" / "Seq05VD_f00000.png")
        labels(high=12, seed=50).save(camvid / "testannot" / "Seq05VD_f00000.png")
        assert list(import_camvid(camvid, tmp_path / "store").splits) == ["train", "val", "test"]

    def test_the_original_colour_masks_are_refused(self, camvid: Path, tmp_path: Path) -> None:
        picture().save(camvid / "valannot" / "0016E5_07959.png")
        with pytest.raises(UserError, match=r"valannot/0016E5_07959\.png: colours \(RGB\)"):
            import_camvid(camvid, tmp_path / "store")
        assert not (tmp_path / "store").exists()

    def test_a_value_beyond_void_is_refused(self, camvid: Path, tmp_path: Path) -> None:
        Image.fromarray(np.full((6, 8), 12, np.uint8)).save(camvid / "valannot" / "0016E5_07959.png")
        with pytest.raises(UserError, match="mask value 12 is not a class"):
            import_camvid(camvid, tmp_path / "store")

    def test_a_folder_that_is_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="train: no such folder"):
            import_camvid(tmp_path, tmp_path / "store")
