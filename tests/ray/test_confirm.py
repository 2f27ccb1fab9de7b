"""Confirmations on real Ray Train that are killed and called again."""

import gc
from pathlib import Path

import pytest

from encsearch.config import Config, require_search, with_values
from encsearch.data.store import Store
from encsearch.files import read_lines
from encsearch.reports import MemoryRecorder, Recorder
from encsearch.search.confirm.finalists import Finalist
from encsearch.search.confirm.trainings import FINALISTS_FILE, confirm
from encsearch.search.ledger import Network
from encsearch.search.trials import Trial

pytestmark = pytest.mark.ray

TRIALS = [Trial(0, {"optim.lr": 0.02}, "COMPLETE", 0.5, ((2, 0.5),), 1.0)]


class Observer:
    """Remembers what was opened, and is killed when the training `dies_at` has ended."""

    def __init__(self, dies_at: str = "") -> None:
        self.recorders: dict[str, MemoryRecorder] = {}
        self._dies_at = dies_at

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        self.recorders[name] = MemoryRecorder()
        return self.recorders[name]

    def finalist_trained(self, finalist: Finalist) -> None:
        if finalist.name == self._dies_at:
            raise KeyboardInterrupt

    def finalist_failed(self, name: str, reason: str) -> None:
        raise AssertionError(reason)


def test_a_second_call_trains_only_what_has_no_line(toy_config: Config, tmp_path: Path) -> None:
    """Killed before the second line: that training is ready, and so are its reports and its checkpoint."""
    search = {"space": {"optim.lr": {"uniform": [0.01, 0.03]}}, "confirm": {"seeds": [1, 2]}}
    config = with_values(toy_config, {"search": search})
    plan = require_search(config).confirm
    killed, resumed = Observer(dies_at="trial0-seed2"), Observer()

    with pytest.raises(KeyboardInterrupt):
        confirm(
            config,
            plan,
            TRIALS,
            tmp_path,
            killed,
            store=Store(config.data.store),
            network=lambda _: Network(1),
            room=1,
        )
    gc.collect()  # a killed process would take its actors with it
    with open(tmp_path / FINALISTS_FILE, "a", encoding="utf-8") as file:
        file.write('{"name":"trial0-se')
    over: list[int] = []
    found = confirm(
        config,
        plan,
        TRIALS,
        tmp_path,
        resumed,
        store=Store(config.data.store),
        network=lambda _: Network(1),
        room=1,
        progress=over.append,
    )

    assert list(killed.recorders) == ["trial0-seed1", "trial0-seed2"]
    assert list(resumed.recorders) == ["trial0-seed2"]
    assert over == [2]
    assert resumed.recorders["trial0-seed2"].reports == killed.recorders["trial0-seed2"].reports
    assert [line["name"] for line in read_lines(tmp_path / FINALISTS_FILE)] == list(killed.recorders)
    first, second = found.finalists
    assert tuple(killed.recorders["trial0-seed1"].reports) == first.result.reports
    assert [report.epoch for report in second.result.reports] == [1, 2]
    assert all((f.result.best_checkpoint / "model.safetensors").exists() for f in found.finalists)
    assert found.winner == min(found.finalists, key=lambda finalist: finalist.value)
    assert found.ranking.winner.configuration.values == {1: first.value, 2: second.value}
