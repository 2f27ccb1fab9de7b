"""What an importer takes, and the one line with which it refuses anything else."""

import io
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.audit import check_store
from encsearch.data.codec import decode_raw_mask
from encsearch.data.importers import write as writing
from encsearch.data.importers.folder import plan_folder
from encsearch.data.importers.labels import LabelTable
from encsearch.data.importers.pairs import PairSettings
from encsearch.data.importers.parquet import plan_parquet
from encsearch.data.importers.plan import ImportPlan, Pair, read_row
from encsearch.data.importers.write import ImportSettings, OnBad, write_plan
from encsearch.data.manifest import Manifest, read_manifest
from encsearch.data.rows import StoreRow
from encsearch.data.scenes import generate_scenes
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.files import hold_lock

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


def plan(source: Path, settings: PairSettings | None = None, **options: Any) -> ImportPlan:
    return plan_folder(source, settings or PairSettings(val_fraction=0.4), **options)


def import_folder(source: Path, store: Path, *, on_bad: OnBad = "fail", **settings: Any) -> Manifest:
    planned = plan(source, PairSettings(**settings), on_bad=on_bad)
    return write_plan(planned, store, ImportSettings(on_bad, bad_limit=0.5))


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


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def chunks(colour_type: int, *parts: bytes, bits: int = 8) -> bytes:
    """An 8 x 6 PNG of these chunks, with a header and an end."""
    header = (8).to_bytes(4, "big") + (6).to_bytes(4, "big") + bytes([bits, colour_type, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    """One bit of the pixels flipped."""
    place = data.index(b"IDAT") + 8
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def short_of_pixels() -> bytes:
    """Whole chunks, with right checksums, that hold two of six rows."""
    return chunks(0, chunk(b"IDAT", zlib.compress(bytes(9 * 2))))


def late_palette() -> bytes:
    return chunks(3, chunk(b"IDAT", zlib.compress(bytes(9 * 6))), chunk(b"PLTE", bytes(9)))


def deep_colours() -> bytes:
    return chunks(2, chunk(b"IDAT", zlib.compress(bytes((1 + 8 * 6) * 6))), bits=16)


deep_grey = Image.fromarray(np.full((6, 8), 300, np.uint16))

SPOILED = {
    "missing mask": (
        unlink("masks/3.png"),
        r"images/3\.png: no mask masks/\{id\} for it \(1 of 8 images without\)",
    ),
    "orphan mask": (unlink("images/3.png"), r"masks/3\.png: no image images/\{id\} for it \(1 of 8 masks w"),
    "size mismatch": (
        save("masks/3.png", labels((8, 5))),
        r"masks/3\.png: the image is 8x6 but its mask 8x5; mend it, or give --on-bad skip",
    ),
    "value out of range": (
        save("masks/3.png", labels(high=5)),
        r"masks/3\.png: mask value \d is not a class; known are values 0\.\.2, 255; 1 of 8 masks have it; "
        "not known are 3 and 4",
    ),
    "RGB mask": (
        save("masks/3.png", picture()),
        r"masks/3\.png: 48 colours, but colours are not class indices; give --colours TABLE",
    ),
    "transparent mask": (
        save("masks/3.png", Image.new("RGBA", (8, 6), (1, 1, 1, 0))),
        r"masks/3\.png: 48 pixels of the mask are transparent",
    ),
    "16-bit mask": (save("masks/3.png", deep_grey), r"masks/3\.png: mask value 300 is not a class"),
    "JPEG as mask": (
        lambda root: labels().save(root / "masks/3.png", "JPEG"),
        r"masks/3\.png: a lossy JPEG smears the values of a mask; save masks as PNG",
    ),
    "lossy WebP as mask": (
        lambda root: labels().convert("RGB").save(root / "masks/3.png", "WEBP", quality=90),
        r"masks/3\.png: a lossy WEBP smears",
    ),
    "16-bit colours as mask": (write("masks/3.png", deep_colours()), r"masks/3\.png: colours of 16 bits"),
    "animation": (
        lambda root: picture().save(
            root / "images/3.png", "GIF", save_all=True, append_images=[picture(seed=9)]
        ),
        r"images/3\.png: 2 pictures in one GIF; save the one that you mean",
    ),
    "FIFO": (
        lambda root: (unlink("images/3.png")(root), os.mkfifo(root / "images/3.png")),
        r"images/3\.png: a FIFO, not a regular file; remove it",
    ),
    "device": (
        lambda root: (unlink("images/3.png")(root), (root / "images/3.png").symlink_to("/dev/zero")),
        r"images/3\.png: a device, not a regular file",
    ),
    "broken link": (
        lambda root: (unlink("images/3.png")(root), (root / "images/3.png").symlink_to("nowhere")),
        r"images/3\.png: cannot be read \(No such file or directory\)",
    ),
    "folder named like an image": (
        lambda root: (root / "images/9.png").mkdir(),
        r"images/9\.png: a folder that is named like a picture",
    ),
    "16-bit image": (save("images/3.png", deep_grey), r"images/3\.png: a 16-bit grey image"),
    "empty image": (write("images/3.png", b""), r"images/3\.png: not a readable image \(0 bytes\)"),
    "text as image": (write("images/3.png", b"hello"), r"images/3\.png: not a readable image \(5 bytes\)"),
    "cut image": (write("images/3.png", png(picture())[:80]), r"images/3\.png: damaged PNG \(cut off at 80"),
    "no end": (write("masks/3.png", png(labels())[:-12]), r"masks/3\.png: damaged PNG \(cut off"),
    "wrong checksum": (
        write("masks/3.png", flipped(png(labels()))),
        r"masks/3\.png: damaged PNG \(the check",
    ),
    "few pixels": (
        write("masks/3.png", short_of_pixels()),
        r"masks/3\.png: damaged PNG \(it holds 18 of 54 bytes of pix",
    ),
    "palette after pixels": (
        write("masks/3.png", late_palette()),
        r"masks/3\.png: damaged PNG \(b'PLTE' is in",
    ),
    "cut mask": (write("masks/3.png", png(labels())[:50]), r"masks/3\.png: damaged PNG"),
    "bomb": (write("images/3.png", bomb(60000)), r"images/3\.png: over 67,108,864 pixels"),
    "large image": (write("images/3.png", bomb(8200)), r"images/3\.png: 8200x8200 is over 67,108,864 pixels"),
    "bomb as mask": (write("masks/3.png", bomb(60000)), r"masks/3\.png: over 67,108,864 pixels"),
    "two of a name": (save("images/3.jpg", picture()), r"images/3\.png: 3\.jpg has the same name"),
    "no classes.txt": (unlink("classes.txt"), r"classes\.txt: no such file; write one class name a line"),
    "Latin-1 classes": (write("classes.txt", b"stra\xdfe\n"), r"classes\.txt: cannot be read as UTF-8"),
    "class twice": (write("classes.txt", b"a\na\nb\n"), "class 'a' is named twice"),
    "no class": (write("classes.txt", b"\n"), "0 classes"),
    "control characters": (
        write("classes.txt", b"sky\nro\x07ad\ncar\n"),
        r"class 'ro\\x07ad': a name has letters",
    ),
    "no image folder": (
        lambda root: (root / "images").rename(root / "img"),
        r"source: no files like images/\{id\} that end in .*; it has files in \., img, masks; give ",
    ),
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
    with pytest.raises(UserError, match="--val-fraction 1e-09 of 8 images leaves val empty"):
        import_folder(source, tmp_path / "store", val_fraction=1e-9)
    with pytest.raises(UserError, match=r"--val-fraction 1\.5 must be between 0 and 1"):
        import_folder(source, tmp_path / "store", val_fraction=1.5)


def test_folder_refuses_no_images(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    with pytest.raises(
        UserError, match=r"no files like images/\{id\} that end in \.png, .*; give --images and"
    ):
        import_folder(tmp_path, tmp_path / "store", classes=CLASSES)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Eight images and no masks; `write_masks` adds those."""
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(8):
        picture(seed=number).save(root / "images" / f"{number}.png")
    return root


def write_masks(root: Path, values: NDArray[Any], name: str = "{}.png") -> None:
    for number in range(8):
        Image.fromarray(values).save(root / "masks" / name.format(number))


def only_mask(manifest: Manifest, store: Path) -> NDArray[np.uint8]:
    return Store(store).split(next(iter(manifest.splits)))[0].mask


ROWS = np.arange(6, dtype=np.uint8)[:, None].repeat(8, axis=1) // 2  # values 0, 1, 2 in two rows each
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
COLOURS = np.array([RED, GREEN, BLUE], np.uint8)


class TestMasks:
    """However people save masks, the same labels arrive."""

    @pytest.mark.parametrize("name", ["{}.png", "{}.tif", "{}.bmp", "{}.webp"])
    def test_every_format_of_grey(self, name: str, bare: Path, tmp_path: Path) -> None:
        for number in range(8):
            options = {"lossless": True} if name.endswith("webp") else {}
            picture_of = Image.fromarray(ROWS).convert("RGB" if options else "L")
            picture_of.save(bare / "masks" / name.format(number), **options)
        manifest = import_folder(bare, tmp_path / "store", classes=CLASSES, val_fraction=0.4)
        np.testing.assert_array_equal(only_mask(manifest, tmp_path / "store"), ROWS)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_grey_of_few_bits_is_not_stretched(self, bits: int, bare: Path, tmp_path: Path) -> None:
        values = ROWS.clip(max=2**bits - 1)
        packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(6, -1), axis=1)
        data = b"".join(b"\0" + row.tobytes() for row in packed)
        for number in range(8):
            (bare / "masks" / f"{number}.png").write_bytes(
                chunks(0, chunk(b"IDAT", zlib.compress(data)), bits=bits)
            )
        manifest = import_folder(bare, tmp_path / "store", classes=CLASSES, val_fraction=0.4)
        np.testing.assert_array_equal(only_mask(manifest, tmp_path / "store"), values)

    def test_16_bits_with_a_table(self, bare: Path, tmp_path: Path) -> None:
        for kind in ("png", "tif"):
            write_masks(bare, (ROWS.astype(np.uint16) + 1) * 1000, f"{{}}.{kind}")
            table = tmp_path / "labels.csv"
            table.write_text("id,name,train_id\n1000,sky,1\n2000,road,0\n3000,nothing,\n")
            store = tmp_path / kind
            manifest = import_folder(bare, store, labels=table, val_fraction=0.4)
            assert manifest.info.classes == ("road", "sky")
            assert manifest.info.ids == (2000, 1000)
            np.testing.assert_array_equal(only_mask(manifest, store), np.array([1, 0, 255], np.uint8)[ROWS])
            for file in (bare / "masks").iterdir():
                file.unlink()

    def test_colours_by_a_table(self, bare: Path, tmp_path: Path) -> None:
        write_masks(bare, COLOURS[ROWS])
        tables = {
            "a.csv": "name,r,g,b\nred,200,0,0\ngreen,0,200,0\nblue,0,0,200\n",
            "b.json": '{"red": [200, 0, 0], "green": "#00c800", "blue": [0, 0, 200]}',
        }
        for name, text in tables.items():
            (tmp_path / name).write_text(text)
            store = tmp_path / f"store-{name[0]}"
            manifest = import_folder(bare, store, colours=tmp_path / name, val_fraction=0.4)
            assert manifest.info.classes == ("red", "green", "blue")
            assert manifest.info.palette == (RED, GREEN, BLUE)
            np.testing.assert_array_equal(only_mask(manifest, store), ROWS)

    def test_a_colour_that_is_in_no_table(self, bare: Path, tmp_path: Path) -> None:
        write_masks(bare, COLOURS[ROWS])
        (tmp_path / "a.csv").write_text("name,r,g,b\nred,200,0,0\ngreen,0,200,0\n")
        with pytest.raises(
            UserError, match=r"colour #0000c8 is not a class; known are 2 colours; 8 of 8 masks"
        ):
            plan(bare, PairSettings(colours=tmp_path / "a.csv", val_fraction=0.4))

    def test_binary_masks_are_two_classes(self, bare: Path, tmp_path: Path) -> None:
        write_masks(bare, (ROWS > 0).astype(np.uint8) * 255)
        planned = plan(bare, PairSettings(classes=("background", "thing"), val_fraction=0.4))
        assert (
            "the masks are binary: 0 is class background, and 255 is class thing, not ignored"
            in planned.lines
        )
        manifest = write_plan(planned, tmp_path / "store")
        np.testing.assert_array_equal(only_mask(manifest, tmp_path / "store"), ROWS > 0)

    def test_zero_is_ignored(self, bare: Path, tmp_path: Path) -> None:
        write_masks(bare, ROWS)
        manifest = import_folder(
            bare, tmp_path / "store", classes=("road", "car"), ignore=(0,), val_fraction=0.4
        )
        assert manifest.info.ids == (1, 2)
        np.testing.assert_array_equal(
            only_mask(manifest, tmp_path / "store"), np.array([255, 0, 1], np.uint8)[ROWS]
        )

    def test_exif_turns_image_and_mask_alike(self, bare: Path, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        for number in range(8):
            Image.fromarray(ROWS).save(bare / "masks" / f"{number}.png", exif=exif)
            picture(seed=number).save(bare / "images" / f"{number}.png", exif=exif)
        manifest = import_folder(bare, tmp_path / "store", classes=CLASSES, val_fraction=0.4)
        np.testing.assert_array_equal(only_mask(manifest, tmp_path / "store"), ROWS[::-1, ::-1])

    def test_exif_of_the_image_alone_is_said(self, bare: Path) -> None:
        write_masks(bare, ROWS)
        exif = Image.Exif()
        exif[0x0112] = 3
        picture().save(bare / "images" / "5.png", exif=exif)
        lines = plan(bare, PairSettings(classes=CLASSES, val_fraction=0.4)).lines
        assert any(
            "1 pair with an EXIF orientation in the image or the mask only, such as 5" in x for x in lines
        )

    def test_a_palette_gives_the_colours(self, bare: Path) -> None:
        for number in range(8):
            mask = Image.fromarray(ROWS)
            mask.putpalette(COLOURS.tobytes())
            mask.save(bare / "masks" / f"{number}.png")
        assert plan(bare, PairSettings(classes=CLASSES, val_fraction=0.4)).info.palette == (RED, GREEN, BLUE)

    def test_a_class_without_pixels_is_said(self, bare: Path) -> None:
        write_masks(bare, ROWS)
        lines = plan(bare, PairSettings(classes=(*CLASSES, "tree"), val_fraction=0.4)).lines
        assert "warning: no mask has a pixel of class tree" in lines

    def test_photographs_as_masks(self, bare: Path) -> None:
        for number in range(8):
            picture(size=(80, 60), seed=number).save(bare / "images" / f"{number}.png")
            picture(size=(80, 60), seed=number).save(bare / "masks" / f"{number}.png")
        table = bare / "t.csv"
        table.write_text("name,r,g,b\nred,200,0,0\n")
        with pytest.raises(UserError, match="over 1000 different values or colours, so they are no labels"):
            plan(bare, PairSettings(colours=table, val_fraction=0.4))

    def test_interlaced_pngs_are_whole(self, bare: Path) -> None:
        """Written by hand: PIL reads them and writes none."""
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        rows = []
        for left, top, step_x, step_y in passes:
            rows += [b"\0" + row.tobytes() for row in ROWS[top::step_y, left::step_x] if row.size]
        header = (8).to_bytes(4, "big") + (6).to_bytes(4, "big") + bytes([8, 0, 0, 0, 1])
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
        np.testing.assert_array_equal(decode_raw_mask(data, "x", colours=False).codes, ROWS)

    def test_what_smears_or_cuts_off_values_is_refused(self, bare: Path) -> None:
        write_masks(bare, ROWS)
        Image.fromarray(ROWS).save(bare / "masks" / "3.png", "TIFF", compression="jpeg")
        settings = PairSettings(classes=CLASSES, val_fraction=0.4)
        with pytest.raises(UserError, match=r"masks/3\.png: a TIFF of compression jpeg, which may smear"):
            plan(bare, settings)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
            Image.fromarray(ROWS).save(bare / "masks" / "3.png", "TIFF", compression=compression)
            plan(bare, settings)
        Image.fromarray(np.zeros((6, 8), np.float32)).save(bare / "images" / "3.png", "TIFF")
        with pytest.raises(UserError, match=r"images/3\.png: a floating-point grey image"):
            plan(bare, settings)

    def test_one_name_for_binary_masks_is_not_enough(self, bare: Path) -> None:
        write_masks(bare, (ROWS > 0).astype(np.uint8) * 255)
        with pytest.raises(
            UserError, match=r"the masks hold 0 and 255, of which one is crack; name both: --classes b"
        ):
            plan(bare, PairSettings(classes=("crack",), val_fraction=0.4))

    def test_an_orientation_of_0_is_none(self, bare: Path) -> None:
        write_masks(bare, ROWS)
        exif = Image.Exif()
        exif[0x0112] = 0
        picture().save(bare / "images" / "5.png", "JPEG", exif=exif)
        lines = plan(bare, PairSettings(classes=CLASSES, val_fraction=0.4)).lines
        assert not any("EXIF" in line for line in lines)

    def test_a_cameras_jpeg_with_a_preview_is_its_first_picture(self, bare: Path, tmp_path: Path) -> None:
        write_masks(bare, ROWS)
        first, second = picture(seed=5), picture(seed=6)
        first.save(bare / "images" / "5.png", "MPO", save_all=True, append_images=[second], quality=100)
        manifest = import_folder(bare, tmp_path / "store", classes=CLASSES, val_fraction=0.4)
        assert sum(split.num_samples for split in manifest.splits.values()) == 8


class TestNames:
    def test_patterns_for_suffixes_and_nested_folders(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        for split, numbers in (("train", range(5)), ("valid", range(5, 7))):
            for number in numbers:
                folder = root / "frames" / split / f"city{number % 2}"
                folder.mkdir(parents=True, exist_ok=True)
                picture(seed=number).save(folder / f"{number}_img.png")
                Image.fromarray(ROWS).save(folder / f"{number}_gtFine_labelIds.png")
        (root / "frames" / "train" / "notes.txt").write_text("hello")
        planned = plan(
            root,
            PairSettings(classes=CLASSES),
            images="frames/{split}/{id}_img.png",
            masks="frames/{split}/{id}_gtFine_labelIds.png",
        )
        assert {name: len(entries) for name, entries in planned.splits.items()} == {"train": 5, "val": 2}
        assert planned.splits["train"][0].id == "city0/0"
        (line,) = planned.left_out.lines()
        assert line.startswith("1 file: neither frames/{split}/{id}_img.png nor")
        assert "frames/train/notes.txt" in line

    def test_images_and_masks_in_one_folder(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        root.mkdir()
        for number in range(6):
            picture(seed=number).save(root / f"a.{number}.jpg")
            Image.fromarray(ROWS).save(root / f"a.{number}_mask.png")
        settings = PairSettings(classes=CLASSES, val_fraction=0.4)
        planned = plan(root, settings, images="{id}.jpg", masks="{id}_mask.png")
        assert sorted(e.id for s in planned.splits.values() for e in s) == [f"a.{n}" for n in range(6)]

    @pytest.mark.parametrize("pattern", ["images/*", "{id}/{id}", "{split}/{split}/{id}"])
    def test_a_pattern_that_cannot_be(self, pattern: str, source: Path) -> None:
        with pytest.raises(UserError, match=r"pattern .*: needs one \{id\} and at most one \{split\}"):
            plan(source, images=pattern)

    def test_an_archive_with_a_folder_around_all(self, source: Path, tmp_path: Path) -> None:
        for kind in ("zip", "tar", "gztar"):
            archive = Path(shutil.make_archive(str(tmp_path / kind / "data"), kind, tmp_path, "source"))
            planned = plan(archive, PairSettings(val_fraction=0.4), scratch=tmp_path / "scratch")
            assert planned.num_samples == 8
            manifest = write_plan(planned, tmp_path / f"store-{kind}")
            assert manifest.info.classes == CLASSES
            assert manifest.info.name == "data"

    def test_a_macs_archive(self, source: Path, tmp_path: Path) -> None:
        packed = tmp_path / "packed"
        shutil.copytree(source, packed / "My Data")
        (packed / "__MACOSX" / "My Data" / "images").mkdir(parents=True)
        (packed / "__MACOSX" / "My Data" / "images" / "._0.png").write_bytes(b"x")
        archive = Path(shutil.make_archive(str(tmp_path / "Data"), "zip", packed))
        archive = archive.rename(archive.with_suffix(".ZIP"))
        planned = plan(archive, PairSettings(val_fraction=0.4), scratch=tmp_path / "scratch")
        assert planned.num_samples == 8

    def test_a_pattern_that_says_more_wins(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        root.mkdir()
        for number in range(6):
            picture(seed=number).save(root / f"{number}_rgb.png")
            Image.fromarray(ROWS).save(root / f"{number}.png")
        settings = PairSettings(classes=CLASSES, val_fraction=0.4)
        planned = plan(root, settings, images="{id}_rgb.*", masks="{id}.png")
        assert sorted(p.id for s in planned.splits.values() for p in s) == [str(n) for n in range(6)]

    def test_a_split_in_the_name(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True)
        for name in ("train_cam_0", "train_cam_1", "val_cam_0", "dev_cam_0"):
            picture().save(root / "images" / f"{name}.png")
            Image.fromarray(ROWS).save(root / "masks" / f"{name}.png")
        pattern = "/{split}_{id}.png"
        planned = plan(
            root, PairSettings(classes=CLASSES), images=f"images{pattern}", masks=f"masks{pattern}"
        )
        assert {k: [p.id for p in v] for k, v in planned.splits.items()} == {
            "train": ["cam_0", "cam_1"],
            "val": ["cam_0"],
        }
        assert any("is not the name of a split" in line for line in planned.left_out.lines())

    def test_hidden_and_foreign_files_are_named(self, source: Path) -> None:
        (source / "images" / ".DS_Store").write_bytes(b"x")
        (source / "images" / "8.heic").write_bytes(b"x")
        (source / "README").write_text("hello")
        lines = "\n".join(plan(source).left_out.lines())
        assert "hidden (images/.DS_Store)" in lines
        assert "its suffix is not one of .png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp (images/8.heic)" in lines
        assert "neither images/{id} nor masks/{id} (README)" in lines

    def test_a_loop_of_links_ends(self, source: Path) -> None:
        (source / "images" / "again").symlink_to(source)
        planned = plan(source, on_bad="skip")
        assert planned.num_samples == 8
        assert any("a link that leads back" in line for line in planned.left_out.lines())


class TestSplits:
    def test_lists_by_any_form_of_the_name(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("0\nimages/1.png masks/1.png\n/some/where/2.png\n3\n")
        (tmp_path / "val.txt").write_text("\ufeff4.png\r\n5\r\n")
        lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
        planned = plan(source, PairSettings(split_lists=lists))
        assert {k: [e.id for e in v] for k, v in planned.splits.items()} == {
            "train": ["0", "1", "2", "3"],
            "val": ["4", "5"],
        }
        assert list(planned.left_out.lines()) == ["2 files: a pair in no list (images/6.png, images/7.png)"]

    def test_lists_beside_split_folders_mean_the_right_files(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        for split, value in (("train", 0), ("val", 1)):
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True)
            for number in range(4):
                picture(seed=10 * value + number).save(root / "images" / split / f"{number}.png")
                mask = Image.fromarray(np.full((6, 8), value, np.uint8))
                mask.save(root / "masks" / split / f"{number}.png")
        (tmp_path / "train.txt").write_text("train/0\nimages/train/1.png\n")
        (tmp_path / "val.txt").write_text("val/2\n")
        lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
        settings = PairSettings(classes=CLASSES, split_lists=lists)
        planned = plan(root, settings)
        assert [p.name for p in planned.splits["train"]] == ["images/train/0.png", "images/train/1.png"]
        assert [p.name for p in planned.splits["val"]] == ["images/val/2.png"]
        assert "5 files: a pair in no list" in "".join(planned.left_out.lines())
        (tmp_path / "val.txt").write_text("2\n")
        with pytest.raises(
            UserError, match=r"2 can be images/train/2\.png and images/val/2\.png; write the name"
        ):
            plan(root, settings)

    def test_names_with_spaces_and_of_an_archive(self, source: Path, tmp_path: Path) -> None:
        for kind in ("images", "masks"):
            (source / kind / "1.png").rename(source / kind / "a name.png")
        archive = Path(shutil.make_archive(str(tmp_path / "data"), "zip", source))
        (tmp_path / "train.txt").write_text("0.png\nimages/a name.png\n")
        (tmp_path / "val.txt").write_text("masks/2.png\n")
        lists = {name: tmp_path / f"{name}.txt" for name in ("train", "val")}
        for place in (source, archive):
            planned = plan(place, PairSettings(split_lists=lists))
            assert {k: [p.id for p in v] for k, v in planned.splits.items()} == {
                "train": ["0", "a name"],
                "val": ["2"],
            }

    def test_a_split_that_is_not_there_is_said(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("0\n1\n")
        lines = plan(source, PairSettings(split_lists={"train": tmp_path / "train.txt"})).lines
        assert "warning: there is no val split" in lines

    def test_lists_that_cannot_be(self, source: Path, tmp_path: Path) -> None:
        one, two = tmp_path / "one.txt", tmp_path / "two.txt"
        one.write_text("0\n1\n")
        two.write_text("1\n")
        with pytest.raises(UserError, match=r"two\.txt: 1 is in the list of train too"):
            plan(source, PairSettings(split_lists={"train": one, "val": two}))
        two.write_text("77\n")
        with pytest.raises(UserError, match=r"two\.txt: 77 is not the name of a pair"):
            plan(source, PairSettings(split_lists={"train": one, "val": two}))

    def test_a_group_stays_in_one_split(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True)
        for video in "abcdef":
            for number in range(4):
                picture().save(root / "images" / f"clip{video}_{number:03d}.png")
                Image.fromarray(ROWS).save(root / "masks" / f"clip{video}_{number:03d}.png")
        warned = plan(root, PairSettings(classes=CLASSES, val_fraction=0.4))
        assert any("names look like frames of 6 videos (clipa_..., " in line for line in warned.lines)
        grouped = plan(root, PairSettings(classes=CLASSES, val_fraction=0.4, group=r"^(.*\D)\d+\D*$"))
        assert not any("look like frames" in line for line in grouped.lines)
        groups = {name: {entry.group for entry in found} for name, found in grouped.splits.items()}
        assert groups["train"] | groups["val"] == {f"clip{video}_" for video in "abcdef"}
        assert not groups["train"] & groups["val"]

    def test_a_group_for_each_sample_is_said(self, source: Path) -> None:
        lines = plan(source, PairSettings(val_fraction=0.4, group="^(.*)$")).lines
        assert "groups: 8; warning: every sample is a group of its own" in lines

    def test_numbers_alone_do_not_look_like_frames(self, source: Path) -> None:
        assert not any("look like frames" in line for line in plan(source).lines)

    def test_a_group_that_a_name_does_not_have(self, source: Path) -> None:
        with pytest.raises(
            UserError, match=r"--group x\(\.\): not found in the name 0; every name needs a group"
        ):
            plan(source, PairSettings(group="x(.)"))
        with pytest.raises(UserError, match=r"--group \(: not a regular expression"):
            plan(source, PairSettings(group="("))

    def test_limit(self, source: Path) -> None:
        limited = plan(source, PairSettings(val_fraction=0.4)).limited(2)
        assert {len(entries) for entries in limited.splits.values()} == {2}
        assert limited.lines[-1] == "limited to 2 samples a split, evenly spaced, of 8 samples"


class TestBad:
    def test_skipped_samples_are_named_in_the_manifest(self, source: Path, tmp_path: Path) -> None:
        (source / "images" / "3.png").write_bytes(b"")
        (source / "masks" / "5.png").unlink()
        manifest = import_folder(source, tmp_path / "store", on_bad="skip", val_fraction=0.4)
        assert manifest.origin is not None
        unread, lone = sorted(manifest.origin.quarantine, key=lambda line: line.split("/")[1])
        assert re.match(r"(train|val)/3: .*images/3\.png: not a readable image \(0 bytes\)", unread)
        assert re.match(r"(train|val)/5: mask of 5: not in the source", lone)
        assert sum(split.num_samples for split in manifest.splits.values()) == 6
        assert read_manifest(tmp_path / "store") == manifest

    def test_too_many_bad_ones_end_it(self, source: Path, tmp_path: Path) -> None:
        for number in range(3):
            (source / "images" / f"{number}.png").write_bytes(b"")
        planned = plan(source, on_bad="skip")
        with pytest.raises(
            UserError, match=r"split \w+: \d of \d samples cannot be used, over the limit of 10 %"
        ):
            write_plan(planned, tmp_path / "store", ImportSettings("skip", bad_limit=0.1))
        assert [file.name for file in tmp_path.iterdir()] == ["source"]


class TestWriting:
    def test_processes_write_the_same_store(self, source: Path, tmp_path: Path, small_shards: None) -> None:
        one = write_plan(plan(source), tmp_path / "one")
        two = write_plan(plan(source), tmp_path / "two", ImportSettings(processes=2))
        assert replace(one, origin=None) == replace(two, origin=None)
        assert len(one.splits["train"].shards) > 2
        assert check_store(tmp_path / "two").problems == ()

    def test_the_cache_is_written_too(self, source: Path, tmp_path: Path) -> None:
        manifest = write_plan(plan(source), tmp_path / "store")
        shards = {shard.sha256 for split in manifest.splits.values() for shard in split.shards}
        cached = {file.stem for file in (tmp_path / "store" / ".cache").iterdir()}
        assert cached == shards
        assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [
            ".cache",
            "manifest.json",
            "train-00000.parquet",
            "val-00000.parquet",
        ]

    def test_an_import_that_was_killed_goes_on(
        self, source: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = write_plan(plan(source), tmp_path / "whole")
        read: list[str] = []

        def counting(entry: Pair, labels: LabelTable) -> StoreRow:
            read.append(entry.id)
            if len(read) == 4:
                raise KeyboardInterrupt
            return read_row(entry, labels)

        monkeypatch.setattr(writing, "read_row", counting)
        with pytest.raises(KeyboardInterrupt):
            write_plan(plan(source), tmp_path / "store")
        assert not (tmp_path / "store").exists()
        again = write_plan(plan(source), tmp_path / "store")
        assert replace(again, origin=None) == replace(whole, origin=None)
        assert len(read) == 4 + 5  # three were kept
        assert sorted(file.name for file in tmp_path.iterdir()) == ["source", "store", "whole"]

    def test_a_file_that_changed_is_read_again(
        self, source: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(entry: Pair, labels: LabelTable) -> StoreRow:
            if entry.id == "7":
                raise KeyboardInterrupt
            return read_row(entry, labels)

        monkeypatch.setattr(writing, "read_row", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_plan(plan(source), tmp_path / "store")
        picture(seed=77).save(source / "images" / "0.png")
        monkeypatch.undo()
        monkeypatch.setattr(writing, "_SMALLEST_SHARD", 1)
        write_plan(plan(source), tmp_path / "store")
        assert check_store(tmp_path / "store").problems == ()
        samples = [Store(tmp_path / "store").split(name) for name in ("train", "val")]
        (first,) = [s[i] for s in samples for i in range(len(s)) if s[i].id == "0"]
        np.testing.assert_array_equal(first.image, np.asarray(picture(seed=77)))

    def test_two_imports_at_once(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / ".store.import").mkdir()
        with (
            hold_lock(tmp_path / ".store.import" / ".lock"),
            pytest.raises(UserError, match="another process imports into this store"),
        ):
            write_plan(plan(source), tmp_path / "store")

    def test_a_full_store_is_not_replaced(self, source: Path, tmp_path: Path) -> None:
        write_plan(plan(source), tmp_path / "store")
        with pytest.raises(UserError, match="exists and is not empty"):
            write_plan(plan(source), tmp_path / "store")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard for each sample."""
    monkeypatch.setattr(writing, "_SMALLEST_SHARD", 1)


class TestParquet:
    def write(self, path: Path, numbers: range, **more: list[Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [{"bytes": png(picture(seed=number)), "path": f"{number}.png"} for number in numbers]
        masks = [{"bytes": png(labels(seed=number)), "path": None} for number in numbers]
        pq.write_table(pa.table({"image": images, "mask": masks, **more}), path)

    def test_the_folders_of_a_hub_are_the_splits(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        self.write(root / "default" / "train" / "0000.parquet", range(4), label=list(range(4)))
        self.write(root / "default" / "train" / "0001.parquet", range(4, 6), label=[4, 5])
        self.write(root / "default" / "validation" / "0000.parquet", range(6, 8), label=[6, 7])
        planned = plan_parquet(root, PairSettings(classes=CLASSES))
        manifest = write_plan(planned, tmp_path / "store")
        assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 6, "val": 2}
        stored = Store(tmp_path / "store").split("val")[1]
        assert stored.id == "default/validation/0000-000001"
        np.testing.assert_array_equal(stored.mask, np.asarray(labels(seed=7)))

    def test_a_split_is_a_whole_word(self, tmp_path: Path) -> None:
        root = tmp_path / "source"
        self.write(root / "train-00000-of-00001.parquet", range(3))
        self.write(root / "val.parquet", range(3, 5))
        planned = plan_parquet(root, PairSettings(classes=CLASSES))
        assert {name: len(pairs) for name, pairs in planned.splits.items()} == {"train": 3, "val": 2}
        self.write(tmp_path / "other" / "valuable.parquet", range(12))
        assert set(plan_parquet(tmp_path / "other", PairSettings(classes=CLASSES)).splits) == {"train", "val"}

    def test_columns_that_hold_no_files(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [b"x"], "label": [1]}), tmp_path / "train.parquet")
        with pytest.raises(
            UserError, match="no mask column of picture files; there are image; give --mask-column"
        ):
            plan_parquet(tmp_path / "train.parquet", PairSettings(classes=CLASSES))


@pytest.mark.parametrize("place", ["s3://bucket/x", "file:///tmp/x", "s3:/bucket/x"])
def test_a_store_is_not_written_to_an_address(source: Path, place: str) -> None:
    for store in (place, Path(place)):
        with pytest.raises(
            UserError, match="a store is written to a folder; copy it to object storage from there"
        ):
            write_plan(plan(source), store)
        with pytest.raises(UserError, match="a store is written to a folder"):
            generate_scenes(store, num_train=1, num_val=1, num_test=1)
