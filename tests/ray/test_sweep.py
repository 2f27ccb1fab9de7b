"""A real sweep on Ray Tune: every trial ends truly, in the study as in the records."""

import shutil
import threading
from pathlib import Path

import pytest

from encsearch.config import Config, require_search, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.data.store import Store
from encsearch.errors import TrainingError
from encsearch.reports import MemoryRecorder, Recorder
from encsearch.search.confirm.finalists import Finalist
from encsearch.search.confirm.trainings import confirm
from encsearch.search.ledger import Network
from encsearch.search.study.study import Study
from encsearch.search.sweep import run_sweep
from encsearch.search.trials import Trial, TrialEvent
from encsearch.train.checkpoint_files import find_newest

pytestmark = pytest.mark.ray


class Observer:
    """Keeps the records in memory."""

    def __init__(self) -> None:
        self.recorders: dict[int, MemoryRecorder] = {}
        self.checkpoints: dict[int, list[str]] = {}
        self.lines: list[str] = []
        self.terminal = threading.RLock()  # as a live display has, which cannot be pickled

    def open_recorder(self, number: int, config: Config) -> Recorder:
        self.recorders[number] = MemoryRecorder()
        return self.recorders[number]

    def trial_ended(self, event: TrialEvent, config: Config, folder: Path) -> None:
        checkpoint = find_newest(folder)
        if checkpoint:
            self.checkpoints[event.number] = sorted(path.name for path in checkpoint.iterdir())

    def follow(self, event: TrialEvent) -> None:
        pass

    def say(self, line: str) -> None:
        self.lines.append(line)


class Unlimited:
    """A budget that allows everything."""

    def may_start(self) -> bool:
        return True

    def may_repeat(self) -> bool:
        return True

    def must_end(self) -> bool:
        return False


def size(config: Config) -> Network:
    """The same for every network."""
    return Network(1000)


def swept(config: Config, folder: Path, observer: Observer) -> tuple[Trial, ...]:
    store = Store(config.data.store)
    return run_sweep(config, store, study_of(config, folder), folder, observer, Unlimited(), size)


def study_of(config: Config, folder: Path) -> Study:
    return Study(str(folder / "study.journal"), "toy", require_search(config), config.train.epochs)


# Two that learn, one that learns nothing and is stopped, one whose decay makes the weights explode.
POINTS = [
    {"optim.lr": rate, "optim.weight_decay": decay}
    for rate, decay in ((0.02, 0.0), (0.01, 0.0), (1e-6, 0.0), (10.0, 1.0))
]


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.fast), 2])
def test_trials_end_complete_pruned_or_failed(toy_config: Config, tmp_path: Path, num_workers: int) -> None:
    search = {
        "space": {
            "optim.lr": {"loguniform": [1e-6, 10.0]},
            "optim.weight_decay": {"uniform": [0.0, 1.0]},
        },
        "enqueue": POINTS,
        "budget": {"trials": len(POINTS)},
        "max_concurrent": 1,
        "asha": {"grace_epochs": 6, "reduction_factor": 2},
    }
    config = with_values(
        toy_config,
        {
            **POINTS[0],  # the recipe's own point comes first
            "train.epochs": 8,
            "optim.head_lr_factor": 10,
            "scaling.num_workers": num_workers,
            "search": search,
        },
    )
    observer = Observer()

    records = swept(config, tmp_path, observer)

    states = {record.number: record.state for record in records}
    assert states[3] == "FAIL"
    assert "non-finite gradient" in str(records[3].reason)
    assert states[2] == "PRUNED"
    assert (records[2].epochs, states[0]) == (6, "COMPLETE")
    assert records[0].epochs == 8
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
    for record in records:
        recorder = observer.recorders[record.number]
        assert recorder.status == statuses[record.state]
        assert tuple((r.epoch, r.metrics["mIoU"]) for r in recorder.reports) == record.curve
    assert observer.checkpoints[0] == ["checkpoint.json", "model.safetensors", "optimizer.pt"]
    assert study_of(config, tmp_path).trials() == records


@pytest.mark.parametrize("num_workers", [1, 2])
def test_trials_that_end_themselves_are_complete(
    toy_config: Config, tmp_path: Path, num_workers: int
) -> None:
    search = {
        "space": {
            "train.early_stop.patience": {"choice": [1, 2]},
            "optim.name": {"choice": ["sgd", "adamw"]},
        },
        "budget": {"trials": 2},
        "sampler": "random",
        "max_concurrent": 1,
        "scheduler": "none",
    }
    values = {
        "train.epochs": 8,
        "train.ema": 0.5,
        "train.early_stop.min_delta": 0.99,  # no epoch after the first is a rise
        "scaling.num_workers": num_workers,
        "search": search,
    }
    config = with_values(toy_config, values)
    observer = Observer()

    records = swept(config, tmp_path, observer)

    assert [record.state for record in records] == ["COMPLETE", "COMPLETE"]
    for record in records:
        patience = record.values["train.early_stop.patience"]
        assert record.epochs == 1 + patience
        recorder = observer.recorders[record.number]
        assert recorder.status == "FINISHED"
        assert [bool(report.ends) for report in recorder.reports] == [False] * patience + [True]


def test_a_sweep_whose_trials_all_diverge_says_so(toy_config: Config, tmp_path: Path) -> None:
    """Also when they reported an epoch before."""
    config = _diverging_sweep(toy_config)

    with pytest.raises(TrainingError, match=r"all of 1 trials failed: non-finite gradient in 3 steps"):
        swept(config, tmp_path, Observer())


def test_a_finalist_that_diverges_is_told_and_leaves_a_failed_record(
    toy_config: Config, tmp_path: Path
) -> None:
    config = _diverging_sweep(toy_config)
    record = Trial(0, POINTS[-1], "COMPLETE", 0.5, ((8, 0.5),), 1.0)
    observer = FinalistObserver()
    plan, store = require_search(config).confirm, Store(config.data.store)

    with pytest.raises(TrainingError, match="all of 1 finalists failed"):
        confirm(config, plan, [record], tmp_path, observer, store=store, network=size, room=1)

    assert observer.recorder.status == "FAILED"
    assert "non-finite gradient in 3 steps" in observer.failed["trial0-seed1"]


class FinalistObserver:
    """Remembers what became of the finalists."""

    def __init__(self) -> None:
        self.recorder = MemoryRecorder()
        self.failed: dict[str, str] = {}

    def open_finalist(self, name: str, trial: int | None, config: Config) -> Recorder:
        return self.recorder

    def finalist_trained(self, finalist: Finalist) -> None:
        raise AssertionError(finalist)

    def finalist_failed(self, name: str, reason: str) -> None:
        self.failed[name] = reason


def _diverging_sweep(toy_config: Config) -> Config:
    search = {
        "space": {
            "optim.lr": {"loguniform": [1e-6, 10.0]},
            "optim.weight_decay": {"uniform": [0.0, 1.0]},
        },
        "budget": {"trials": 1},
    }
    return with_values(toy_config, {**POINTS[-1], "train.epochs": 8, "search": search})


def test_trials_that_find_other_data_fail_with_that_reason_and_the_third_one_ends_the_sweep(
    toy_config: Config, tmp_path: Path
) -> None:
    search = {"space": {"optim.lr": {"uniform": [0.01, 0.1]}}, "budget": {"trials": 9}, "max_concurrent": 1}
    place = tmp_path / "toy"
    shutil.copytree(toy_config.data.store, place)
    config = with_values(toy_config, {"data.store": str(place), "search": search})
    store, study = Store(place), study_of(config, tmp_path)
    shutil.rmtree(place)
    generate_scenes(place, num_train=2, num_val=1, num_test=1)

    reason = f"has other data here .*, not {store.fingerprint[:12]}"
    with pytest.raises(TrainingError, match=f"3 trials in a row failed with one reason .* {reason}"):
        run_sweep(config, store, study, tmp_path, Observer(), Unlimited(), size)
    assert [trial.state for trial in study.trials()][:3] == ["FAIL"] * 3
    assert len(study.trials()) <= 4, "one may have started meanwhile"
