"""The same images in every run, and a column for every model."""

from pathlib import Path

from encsearch.config import Config
from encsearch.data.datasets import evenly_spaced
from encsearch.data.store import Store
from encsearch.inference.bundle import checkpoint_model
from encsearch.inference.predictor import Predictor, comparison_sheet
from encsearch.train.checkpoint import save_checkpoint
from encsearch.train.experiment import build


def test_the_samples_are_spread_over_the_split(toy_store: Path) -> None:
    dataset = Store(toy_store).split("val")

    assert [s.id for s in evenly_spaced(dataset, 4)] == ["val-000", "val-003", "val-006", "val-009"]
    assert len(evenly_spaced(dataset, 99)) == len(dataset)


def test_the_sheet_grows_by_a_column_a_model(toy_config: Config, toy_store: Path, tmp_path: Path) -> None:
    save_checkpoint(build(toy_config).state, tmp_path)
    model = Predictor(checkpoint_model(toy_config, Store(toy_store), tmp_path))
    samples = evenly_spaced(Store(toy_store).split("val"), 2)

    one = comparison_sheet(samples, model.info, {"A": model})
    two = comparison_sheet(samples, model.info, {"A": model, "B": model})

    assert two.width > one.width
    assert two.height == one.height
