"""The recipes of the public sets pass `encsearch check` on miniatures of their stores."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from encsearch.cli.main import cli
from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.importers.labels import shipped_table
from encsearch.data.importers.sets import SETS, context_table
from encsearch.data.store import write_store

RECIPES = Path(__file__).parents[2] / "encsearch" / "recipes"
PUBLIC = [(name, f"{name}-{depth}") for name in sorted(SETS) for depth in ("r50", "r101") if name != "camvid"]
PUBLIC += [("camvid", "camvid"), ("camvid", "camvid-imagenet")]


def set_info(name: str) -> DatasetInfo:
    table = context_table(background=False) if name == "pascal-context" else shipped_table(name)
    return table.info(name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each set: its classes, 32 pictures of two sizes to train on and four to validate."""
    root = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    for name in SETS:
        info = set_info(name)

        def samples(count: int, split: str, info: DatasetInfo = info) -> list[EncodedSample]:
            found = []
            for number in range(count):
                size = (30, 40) if number % 2 else (40, 30)
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                mask = rng.integers(0, len(info.classes), size, dtype=np.uint8)
                found.append(EncodedSample(f"{split}{number}", encode_png(image), encode_png(mask), ""))
            return found

        write_store(root / name, info, {"train": samples(32, "train"), "val": samples(4, "val")})
    return root


@pytest.mark.parametrize(("name", "recipe"), PUBLIC)
def test_a_public_sets_recipe_passes_the_check(name: str, recipe: str, stores: Path) -> None:
    """But for the pretrained weights, which would have to be fetched."""
    found = CliRunner().invoke(
        cli,
        ["check", recipe, "--no-measure", f"data.store={stores / name}", "model.weights=null"],
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    classes = len(set_info(name).classes)
    assert f"32 training and 4 validation samples, {classes} classes" in found.output
    assert "32 of 32 training images are smaller than the crop" in found.output or name != "cityscapes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*-r*.yaml")), ids=lambda path: path.stem)
def test_its_head_comment_says_what_to_expect(recipe: Path) -> None:
    head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    text = " ".join(head)
    assert f"encsearch train {recipe.stem}" in text
    assert "encsearch data import" in text
    assert "Expected: " in text
    assert "GiB" in text
