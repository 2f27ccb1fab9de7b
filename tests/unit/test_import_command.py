"""`encsearch data import`: what it says, and that a dry run writes nothing."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from encsearch.cli.main import cli
from encsearch.data.manifest import read_manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Frames of two videos beside their masks, in colours, and the table of these."""
    root = tmp_path / "source"
    root.mkdir()
    rng = np.random.default_rng(0)
    colours = np.array([(0, 0, 200), (200, 0, 0)], np.uint8)
    for video in "ab":
        for number in range(6):
            name = f"clip{video}_{number}"
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / f"{name}.jpg")
            labels = np.arange(40, dtype=np.uint8)[None].repeat(30, axis=0) // 20
            Image.fromarray(colours[labels]).save(root / f"{name}_mask.png")
    (root / "colours.csv").write_text("name,r,g,b\nsea,0,0,200\nboat,200,0,0\n")
    return root


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", "import", *map(str, arguments)], catch_exceptions=False)


def patterns(source: Path) -> list[str]:
    return ["--images", "{id}.jpg", "--masks", "{id}_mask.png", "--colours", str(source / "colours.csv")]


def test_a_dry_run_says_what_it_understood(source: Path, tmp_path: Path) -> None:
    found = call(
        "folder", source, tmp_path / "store", *patterns(source), "--val-fraction", "0.5", "--dry-run"
    )
    assert found.exit_code == 0, found.output
    for expected in (
        "source: 2 classes",
        "12 pairs of {id}.jpg and {id}_mask.png",
        "by the hash of the name; warning: names look like frames of 2 videos (clipa_... and clipb_...)",
        "masks: 12 RGB PNG",
        "colours: #0000c8 sea 50 %, #c80000 boat 50 %",
        "left out: 1 file: neither {id}.jpg nor {id}_mask.png (colours.csv)",
        "dry run: nothing was written but",
    ):
        assert expected in found.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source", "store-sheet.png"]


def test_an_import_says_what_it_wrote(source: Path, tmp_path: Path) -> None:
    found = call(
        "folder", source, tmp_path / "store", *patterns(source), "--group", "^(.*)_", "--val-fraction", "0.9"
    )
    assert found.exit_code == 0, found.output
    assert "splits: train 6, val 6, by the hash of the group" in found.output  # each split gets a video
    assert f"wrote {tmp_path / 'store'}: train 6, val 6; 2 classes" in found.output
    lists = []
    for split, video in (("train", "a"), ("val", "b")):
        file = tmp_path / f"{split}.txt"
        file.write_text("".join(f"clip{video}_{number}\n" for number in range(6)))
        lists += ["--split", f"{split}={file}"]
    found = call("folder", source, tmp_path / "other", *patterns(source), *lists, "--limit", "4")
    assert found.exit_code == 0, found.output
    assert "limited to 4 samples a split, evenly spaced, of 12 samples" in found.output
    assert "other: train 4, val 4; 2 classes" in found.output
    assert (tmp_path / "other" / "sheet.png").exists()
    origin = read_manifest(tmp_path / "other").origin
    assert origin is not None
    assert origin.importer == "folder"


def test_options_that_cannot_be(source: Path, tmp_path: Path) -> None:
    for options, expected in (
        (["--split", "train"], "'train' is not of the form train=FILE, once each"),
        (["--classes", "a,,b"], "'a,,b' has an empty class name"),
        (["--classes", "a,b", "--labels", "x.csv"], "give one of --classes or --labels; they contradict"),
        (["--bad-limit", "2"], "2.0 is not in the range"),
    ):
        words = ["data", "import", "folder", str(source), str(tmp_path / "s"), *options]
        words += ["--images", "{id}.jpg", "--masks", "{id}_mask.png"]
        found = CliRunner().invoke(cli, words)
        said = found.output + str(found.exception or "")
        assert expected in said
        assert not (tmp_path / "s").exists()


def test_every_set_has_its_command() -> None:
    from encsearch.data.importers.sets import SETS

    listed = call("--help").output
    for name in (*SETS, "folder", "parquet"):
        assert f"  {name}" in listed
