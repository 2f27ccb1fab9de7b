"""The label maps that `predict` writes: class numbers in the set's colours, or the set's own ids."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encsearch.data.datasets import DatasetInfo
from encsearch.data.importers.labels import shipped_table
from encsearch.data.importers.sets import context_table
from encsearch.errors import UserError
from encsearch.inference.label_files import draw_label_map, find_images

LABELS = np.array([[0, 1, 18]], np.uint8)


def test_class_numbers_in_their_colours() -> None:
    info = shipped_table("cityscapes").info("cityscapes")
    picture = draw_label_map(LABELS, info)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), LABELS)
    np.testing.assert_array_equal(
        np.asarray(picture.convert("RGB"))[0], [info.palette[0], info.palette[1], info.palette[18]]
    )


def test_the_sets_own_ids_for_its_tools() -> None:
    cityscapes = shipped_table("cityscapes").info("cityscapes")
    picture = draw_label_map(LABELS, cityscapes, as_ids=True)
    np.testing.assert_array_equal(np.asarray(picture), [[7, 8, 33]])
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[0, 2], cityscapes.palette[18])
    ade = shipped_table("ade20k").info("ade20k")
    np.testing.assert_array_equal(np.asarray(draw_label_map(LABELS, ade, as_ids=True)), [[1, 2, 19]])


def test_ids_over_255_are_16_bit_grey(tmp_path: Path) -> None:
    info = context_table(background=False).info("pascal-context-59")
    draw_label_map(np.array([[info.classes.index("tvmonitor"), 58]], np.uint8), info, as_ids=True).save(
        tmp_path / "x.png"
    )
    with Image.open(tmp_path / "x.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), [[427, 458]])


def test_without_ids_of_its_own_positions_are_the_ids() -> None:
    info = DatasetInfo("toy", ("a", "b"), ((0, 0, 0), (255, 0, 0)))
    labels = np.array([[0, 1]], np.uint8)
    np.testing.assert_array_equal(np.asarray(draw_label_map(labels, info, as_ids=True)), labels)


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.TIF", "c.webp", "d.overlay.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "notes.txt").write_text("x")
    files, left_out = find_images([folder], tmp_path / "out")
    assert [file.image.name for file in files] == ["a.png", "b.TIF", "c.webp"]
    assert len(left_out) == 2
    assert "d.overlay.png: named as an overlay" in left_out[0]
    assert "notes.txt: its suffix is not one of" in left_out[1]
    (folder / "a.png").unlink()
    (folder / "b.TIF").unlink()
    (folder / "c.webp").unlink()
    with pytest.raises(UserError, match="no images in it"):
        find_images([folder], tmp_path / "out")
