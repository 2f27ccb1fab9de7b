"""The ledger and the study: every epoch once, every trial one true end. No Ray here."""

from pathlib import Path

import pytest

from encsearch.config import Config, from_json, with_values
from encsearch.errors import UserError
from encsearch.records import MemoryRecorder, Recorder, Report
from encsearch.search.ledger import Ledger
from encsearch.search.study import Study
from encsearch.search.trials import TrialEvent, TrialRecord

SPACE = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "model.num_codewords": {"choice": [4, 8]}}


class Observer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.recorders: dict[int, MemoryRecorder] = {}
        self.events: list[TrialEvent] = []
        self.ended: list[tuple[str, bool]] = []

    def open_recorder(self, number: int, config: Config) -> Recorder:
        self.recorders[number] = MemoryRecorder()
        return self.recorders[number]

    def trial_ended(self, event: TrialEvent, config: Config, checkpoint: Path | None) -> None:
        assert self.recorders[event.number].status is None, "the recorder must still be open"
        self.ended.append((event.state, checkpoint is not None))

    def follow(self, event: TrialEvent) -> None:
        self.events.append(event)


@pytest.fixture
def config(toy_config: Config) -> Config:
    search = {"space": SPACE, "budget": {"trials": 4}, "startup_trials": 2}
    return with_values(toy_config, {"train.epochs": 3, "search": search})


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def ledger(config: Config, observer: Observer, tmp_path: Path) -> Ledger:
    assert config.search
    return Ledger(config, Study(tmp_path, "toy", config.search), observer)


def records_of(config: Config, folder: Path) -> tuple[TrialRecord, ...]:
    """What another process reads from the study's file."""
    assert config.search
    return Study(folder, "toy", config.search).records()


def result(epoch: int, value: float) -> dict[str, object]:
    report = Report(epoch=epoch, step=10 * epoch, seconds=1.0, metrics={"mIoU": value})
    return {"report": report.to_dict(), "mIoU": value}


def test_a_trial_gets_its_values_in_its_configuration(ledger: Ledger, config: Config) -> None:
    given = from_json(ledger.propose("a")["config"])

    assert given.search is None
    assert 1e-3 <= given.optim.lr <= 1e-1
    assert given.model.num_codewords in (4, 8)
    assert given.data == config.data


def test_a_trial_that_ran_all_epochs_is_complete_with_its_best_value(
    ledger: Ledger, observer: Observer, config: Config, tmp_path: Path
) -> None:
    ledger.propose("a")
    ledger.started("a")
    for epoch, value in ((1, 0.2), (2, 0.6), (3, 0.5)):
        ledger.reported("a", result(epoch, value))
    ledger.ended("a", None, tmp_path)

    (record,) = records_of(config, tmp_path)
    assert (record.state, record.value, record.epochs) == ("COMPLETE", 0.6, 3)
    assert record.curve == ((1, 0.2), (2, 0.6), (3, 0.5))
    assert observer.recorders[0].status == "FINISHED"
    assert observer.ended == [("COMPLETE", True)]
    assert [e.state for e in observer.events] == ["RUNNING"] * 4 + ["COMPLETE"]


def test_a_trial_that_the_scheduler_stopped_is_pruned_with_its_last_report(
    ledger: Ledger, observer: Observer, config: Config, tmp_path: Path
) -> None:
    ledger.propose("a")
    ledger.started("a")
    ledger.reported("a", result(1, 0.1))
    ledger.ended("a", None, tmp_path)

    (record,) = records_of(config, tmp_path)
    assert (record.state, record.curve) == ("PRUNED", ((1, 0.1),))
    assert observer.recorders[0].status == "KILLED"


def test_a_repeated_epoch_of_a_restarted_trial_is_taken_once(
    ledger: Ledger, observer: Observer, tmp_path: Path
) -> None:
    ledger.propose("a")
    ledger.started("a")
    ledger.reported("a", result(1, 0.1))
    ledger.reported("a", result(2, 0.2))
    ledger.started("a")
    ledger.reported("a", result(2, 0.9))
    ledger.reported("a", result(3, 0.3))

    assert [r.metrics["mIoU"] for r in observer.recorders[0].reports] == [0.1, 0.2, 0.3]
    assert len(observer.recorders) == 1


def test_a_diverged_trial_fails_with_its_reason(
    ledger: Ledger, observer: Observer, config: Config, tmp_path: Path
) -> None:
    ledger.propose("a")
    ledger.started("a")
    ledger.reported("a", {"failure": "non-finite gradient", "done": True})
    ledger.ended("a", "non-finite gradient", None)

    (record,) = records_of(config, tmp_path)
    assert (record.state, record.reason, record.value) == ("FAIL", "non-finite gradient", None)
    assert observer.recorders[0].status == "FAILED"


def test_the_record_is_closed_even_if_its_pictures_cannot_be_made(
    config: Config, observer: Observer, tmp_path: Path
) -> None:
    def no_disk(*arguments: object) -> None:
        raise UserError("no space left")

    observer.trial_ended = no_disk  # type: ignore[method-assign]
    assert config.search
    ledger = Ledger(config, Study(tmp_path, "toy", config.search), observer)
    ledger.propose("a")
    ledger.started("a")
    ledger.reported("a", result(1, 0.1))

    with pytest.raises(UserError):
        ledger.ended("a", None, tmp_path)

    assert observer.recorders[0].status == "KILLED"


def test_the_last_event_tells_the_best_value(ledger: Ledger, observer: Observer, tmp_path: Path) -> None:
    ledger.propose("a")
    ledger.started("a")
    for epoch, value in ((1, 0.2), (2, 0.6), (3, 0.5)):
        ledger.reported("a", result(epoch, value))
    ledger.ended("a", None, tmp_path)

    assert [event.value for event in observer.events] == [None, 0.2, 0.6, 0.5, 0.6]


def test_an_interrupted_sweep_leaves_no_trial_running(
    ledger: Ledger, observer: Observer, config: Config, tmp_path: Path
) -> None:
    for trial_id in ("a", "b"):
        ledger.propose(trial_id)
    ledger.started("a")
    ledger.reported("a", result(1, 0.1))
    ledger.end_all("interrupted")

    assert [r.state for r in records_of(config, tmp_path)] == ["FAIL", "FAIL"]
    assert observer.recorders[0].status == "KILLED"


def test_known_points_are_tried_first_and_once(config: Config, tmp_path: Path) -> None:
    point = {"optim.lr": 0.02, "model.num_codewords": 8}
    search = with_values(config, {"search.enqueue": [point]}).search
    assert search
    first = Study(tmp_path, "toy", search)
    again = Study(tmp_path, "toy", search)

    assert first.ask() == (0, point)
    assert again.ask()[1] != point
