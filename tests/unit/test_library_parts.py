"""Parts of other libraries, those of examples/library_parts.py, keep to the contracts and train."""

from pathlib import Path

import pytest

from encsearch.config import Config, load_config, trial_config
from encsearch.data.store import Store
from encsearch.reports import MemoryRecorder
from encsearch.runner.local import run_local
from encsearch.train.contracts import check_parts

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def config(toy_store: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(EXAMPLES)
    small = ("train.epochs=1", "train.steps_per_epoch=2", "train.global_batch_size=4")
    return load_config("library.yaml", [f"data.store={toy_store}", "model.channels=16", *small])


def test_they_keep_to_the_contracts_and_train(config: Config, tmp_path: Path) -> None:
    check_parts(config, Store(config.data.store))
    result = run_local(trial_config(config, {"data.threads": 2}), tmp_path, MemoryRecorder())
    assert {"train/loss", "train/library_parts:Tversky"} <= result.best.metrics.keys()
