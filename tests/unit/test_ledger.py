"""The ledger and the study: every epoch once, every trial one true end, also over kills. No Ray here."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encsearch.config import Config, with_values
from encsearch.errors import UserError
from encsearch.reports import MemoryRecorder, Recorder, Report
from encsearch.search.ledger import Ledger, Network
from encsearch.search.study.study import Study
from encsearch.search.trials import Trial, TrialEvent
from encsearch.search.tune.board import RESTARTS, Assignment
from encsearch.train.checkpoint_files import checkpoint_name, find_newest, write_newest

SPACE = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "model.num_codewords": {"choice": [4, 8]}}
CPU = "1 x cpu"


class Observer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.recorders: dict[int, MemoryRecorder] = {}
        self.events: list[TrialEvent] = []
        self.ended: list[str] = []
        self.lines: list[str] = []

    def open_recorder(self, number: int, config: Config) -> Recorder:
        self.recorders[number] = MemoryRecorder()
        return self.recorders[number]

    def trial_ended(self, event: TrialEvent, config: Config, folder: Path) -> None:
        assert self.recorders[event.number].status is None, "the recorder must still be open"
        self.ended.append(event.state)

    def follow(self, event: TrialEvent) -> None:
        self.events.append(event)

    def say(self, line: str) -> None:
        self.lines.append(line)


class Budget:
    """Allows what it is told to."""

    def __init__(self) -> None:
        self.allows = True
        self.is_spent = False

    def may_start(self) -> bool:
        return self.allows

    def may_repeat(self) -> bool:
        return self.allows

    def must_end(self) -> bool:
        return self.is_spent


class Sweep:
    """A process that runs a sweep: it opens the study anew and has a ledger of its own."""

    def __init__(self, config: Config, folder: Path, network: Callable[[Config], Network], room: int) -> None:
        assert config.search
        self.observer, self.budget, self.folder = Observer(), Budget(), folder
        place = str(folder / "study.journal")
        self.study = Study(place, "toy", config.search, config.train.epochs)
        self.ledger = Ledger(
            config,
            self.study,
            self.observer,
            self.budget,
            folder=folder,
            fingerprint="f",
            room=room,
            network=network,
        )

    def start(self, key: str) -> Assignment:
        job = self.ledger.next_assignment(key)
        assert job
        self.ledger.started(key)
        return job

    def train(self, key: str, *values: float, hardware: str = CPU) -> bool:
        """Report one value an epoch; whether the last one stops the trial."""
        stops = [self.ledger.reported(key, result(e, v, hardware)) for e, v in enumerate(values, start=1)]
        return stops[-1]

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self.study.trials()


Open = Callable[..., Sweep]


@pytest.fixture
def config(toy_config: Config) -> Config:
    search = {
        "space": SPACE,
        "budget": {"trials": 3},
        "startup_trials": 2,
        "scheduler": "asha_stop",
        "asha": {"grace_epochs": 1},
    }
    return with_values(toy_config, {"train.epochs": 3, "search": search})


@pytest.fixture
def sweep(config: Config, tmp_path: Path) -> Open:
    """Opens the sweep, for the first time or after a kill."""

    def opened(
        values: dict[str, Any] | None = None,
        network: Callable[[Config], Network] = lambda config: Network(100),
        room: int = 2,
    ) -> Sweep:
        return Sweep(with_values(config, values or {}), tmp_path, network, room)

    return opened


def result(epoch: int, value: float, hardware: str = CPU) -> dict[str, object]:
    report = Report(epoch=epoch, step=10 * epoch, seconds=2.0, metrics={"mIoU": value})
    return {"report": report.to_dict(), "hardware": hardware}


@pytest.mark.parametrize("scheduler", ["asha", "asha_stop", "median", "none"])
def test_a_trial_that_ends_itself_is_complete_with_its_reason(sweep: Open, scheduler: str) -> None:
    run = sweep({"search.scheduler": scheduler})
    run.start("a")
    run.start("b")
    run.train("a", 0.9)
    last = Report(epoch=1, step=10, seconds=2.0, metrics={"mIoU": 0.1}, ends="no rise")

    assert not run.ledger.reported("b", {"report": last.to_dict(), "hardware": CPU})
    run.ledger.ended("b")

    assert [(trial.state, trial.value) for trial in run.trials][1:] == [("COMPLETE", 0.1)]
    assert run.observer.ended == ["COMPLETE"]
    assert run.observer.recorders[1].status == "FINISHED"
    assert run.observer.events[-1].reason == "no rise"


def test_a_trial_gets_its_values_its_folder_and_the_data_it_must_find(sweep: Open, config: Config) -> None:
    job = sweep().start("a")

    assert job.config.search is None
    assert 1e-3 <= job.config.optim.lr <= 1e-1
    assert job.config.data == config.data
    assert (job.folder.name, job.fingerprint, job.measures_latency) == ("0000", "f", False)


def test_a_trial_that_ran_all_epochs_is_complete_with_its_best_value(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    one.train("a", 0.2, 0.6, 0.5)
    one.ledger.ended("a")

    (trial,) = one.trials
    assert (trial.state, trial.value, trial.epochs) == ("COMPLETE", 0.6, 3)
    assert trial.curve == ((1, 0.2), (2, 0.6), (3, 0.5))
    assert (trial.seconds, trial.cost_seconds, trial.hardware) == (6.0, 6.0, (CPU,))
    assert trial.parameters == 100
    assert one.observer.recorders[0].status == "FINISHED"
    assert one.observer.ended == ["COMPLETE"]
    assert [event.value for event in one.observer.events] == [None, 0.2, 0.6, 0.5, 0.6]


def test_a_trial_that_the_scheduler_stops_is_pruned_with_its_last_report(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    assert not one.train("a", 0.5), "the first at a rung is the best of all"
    one.start("b")
    assert one.train("b", 0.1)
    one.ledger.ended("b")

    assert (one.trials[1].state, one.trials[1].curve) == ("PRUNED", ((1, 0.1),))
    assert one.observer.recorders[1].status == "FINISHED"


def test_a_diverged_trial_fails_with_its_reason(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    one.train("a", 0.1)
    one.ledger.reported("a", {"failure": "non-finite gradient", "hardware": CPU, "done": True})
    one.ledger.ended("a")

    (trial,) = one.trials
    assert (trial.state, trial.reason, trial.curve) == ("FAIL", "non-finite gradient", ((1, 0.1),))
    assert one.observer.recorders[0].status == "FAILED"


def test_a_lost_process_costs_no_epoch_and_is_replaced_a_few_times(sweep: Open) -> None:
    one = sweep()
    first = one.start("a")
    one.train("a", 0.1, 0.2)
    for attempt in range(RESTARTS):
        one.ledger.lost("a" if attempt == 0 else str(attempt - 1), "its node is gone")
        assert one.start(str(attempt)) == first
        one.train(str(attempt), 0.9, 0.9, 0.3)
    assert [r.metrics["mIoU"] for r in one.observer.recorders[0].reports] == [0.1, 0.2, 0.3]
    assert one.trials[0].seconds == 6.0

    one.ledger.lost(str(RESTARTS - 1), "its node is gone")
    assert one.trials[0].state == "FAIL"
    assert one.trials[0].reason == "its process failed 3 times: its node is gone"
    assert one.observer.recorders[0].status == "FAILED"


def test_after_a_kill_open_trials_go_on_under_their_numbers(sweep: Open) -> None:
    killed = sweep()
    jobs = [killed.start(key) for key in ("a", "b")]
    killed.train("a", 0.5, 0.6)
    # "b" was killed before its first report.

    resumed = sweep()
    assert [resumed.start(key) for key in ("c", "d")] == jobs
    assert resumed.train("c", 0.5, 0.6, 0.7) is False
    resumed.ledger.ended("c")

    assert len(resumed.trials) == 2
    assert (resumed.trials[0].state, resumed.trials[0].curve) == (
        "COMPLETE",
        ((1, 0.5), (2, 0.6), (3, 0.7)),
    )
    replayed = [r.epoch for r in resumed.observer.recorders[0].reports]
    assert replayed == [1, 2, 3], "the trial gets all epochs, and drops what it has"
    followed = [event.epoch for event in resumed.observer.events if event.number == 0]
    assert followed == [2, 3, 3], "a person is not told again"


def test_a_stop_that_a_kill_kept_from_the_study_is_decided_again(sweep: Open) -> None:
    killed = sweep()
    killed.start("a")
    killed.train("a", 0.5)
    killed.start("b")
    assert killed.train("b", 0.1)
    # Killed before Tune ended "b".

    resumed = sweep()
    resumed.start("c")
    resumed.start("d")
    assert resumed.train("d", 0.1)
    resumed.ledger.ended("d")
    assert (resumed.trials[1].state, resumed.trials[1].epochs) == ("PRUNED", 1)


def test_the_proposals_after_a_kill_are_those_without(sweep: Open, config: Config, tmp_path: Path) -> None:
    def run(one: Sweep, keys: str) -> None:
        for key in keys:
            one.start(key)
            one.train(key, 0.1, 0.2, 0.3)
            one.ledger.ended(key)

    whole = Sweep(config, tmp_path / "other", lambda config: Network(100), 2)
    run(whole, "abc")
    first = sweep()
    run(first, "ab")
    second = sweep()
    run(second, "c")

    assert [r.values for r in second.trials] == [r.values for r in whole.trials]
    assert second.ledger.is_done()


def test_no_more_trials_are_started_than_asked_for_or_than_there_is_room_for(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    one.start("b")
    assert one.ledger.next_assignment("c") is None, "room for two"
    one.train("a", 0.1, 0.2, 0.3)
    one.ledger.ended("a")
    one.start("c")
    one.train("b", 0.2, 0.3, 0.3)
    one.ledger.ended("b")
    assert one.ledger.next_assignment("d") is None, "three were asked for"
    assert not one.ledger.is_done(), "one still runs"
    one.ledger.ended("c")
    assert one.ledger.is_done()


def test_a_spent_budget_prunes_what_runs_and_says_so(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    one.train("a", 0.4)
    one.budget.allows, one.budget.is_spent = False, True
    assert one.ledger.next_assignment("b") is None
    assert one.ledger.is_over()
    one.ledger.end_all("the budget was spent")

    (trial,) = one.trials
    assert (trial.state, trial.reason, trial.value) == ("PRUNED", "the budget was spent", 0.4)
    assert one.observer.recorders[0].status == "FINISHED"
    assert one.ledger.is_done()


def test_an_interrupted_sweep_leaves_its_trials_to_the_resume(sweep: Open) -> None:
    one = sweep()
    one.start("a")
    one.ledger.leave_all()

    assert one.trials[0].state == "RUNNING"
    assert one.observer.recorders[0].status == "KILLED"


def test_a_proposal_beyond_a_limit_is_refused_and_another_taken(sweep: Open) -> None:
    def network(config: Config) -> Network:
        return Network(800 // config.model.num_codewords)

    # The first proposal of this seed has 4 codewords.
    one = sweep({"search.limits.parameters": 150, "search.budget.trials": 12, "search.seed": 2}, network)
    job = one.start("a")

    *refused, taken = one.trials
    assert job.config.model.num_codewords == taken.values["model.num_codewords"] == 8
    assert refused
    for trial in refused:
        assert (trial.values["model.num_codewords"], trial.state, trial.refused) == (4, "PRUNED", True)
        assert trial.reason == "200 parameters, but search.limits.parameters is 150"
    assert taken.state == "RUNNING"
    assert list(one.observer.recorders) == [taken.number], "what is not trained is not recorded"


def test_a_search_whose_every_proposal_is_refused_ends(sweep: Open) -> None:
    one = sweep({"search.limits.parameters": 50})

    assert one.ledger.next_assignment("a") is None
    assert one.ledger.is_done()
    assert [trial.refused for trial in one.trials] == [True] * 3


def test_a_slow_network_is_refused_before_its_first_epoch(sweep: Open) -> None:
    one = sweep({"search.limits.latency_ms": 10.0})
    assert one.start("a").measures_latency
    assert one.ledger.reported("a", {"latency_ms": 12.0, "hardware": CPU})
    one.ledger.ended("a")

    (trial,) = one.trials
    assert (trial.state, trial.refused, trial.curve) == ("PRUNED", True, ())
    assert trial.reason == "12 ms an image, but search.limits.latency_ms is 10"


def test_a_flagged_trial_is_run_again_once(sweep: Open) -> None:
    one = sweep({"search.flagged": "rerun"}, room=1)
    for key, hardware in (("a", CPU), ("b", "1 x gpu"), ("c", CPU)):
        one.start(key)
        one.train(key, 0.1, 0.2, 0.3, hardware=hardware)
        one.ledger.ended(key)

    assert not one.ledger.is_done()
    again = one.start("d")
    one.train("d", 0.1, 0.2, 0.3, hardware="1 x gpu")
    one.ledger.ended("d")

    assert one.ledger.is_done(), "a repeated trial is not repeated"
    assert (one.trials[3].rerun_of, one.trials[3].values) == (1, one.trials[1].values)
    assert again.config.optim.lr == one.trials[1].values["optim.lr"]


def test_the_second_objective_is_told_with_the_first(sweep: Open) -> None:
    one = sweep({"search.minimize": "parameters", "search.scheduler": "none"})
    one.start("a")
    assert not one.train("a", 0.1, 0.3, 0.2), "early stopping does not apply"
    one.ledger.ended("a")

    (trial,) = one.trials
    assert (trial.value, trial.minimized) == (0.3, 100)


def test_the_record_is_closed_even_if_its_pictures_cannot_be_made(sweep: Open) -> None:
    def no_disk(*arguments: object) -> None:
        raise UserError("no space left")

    one = sweep()
    one.observer.trial_ended = no_disk  # type: ignore[method-assign]
    one.start("a")
    one.train("a", 0.1)

    with pytest.raises(UserError):
        one.ledger.ended("a")

    assert one.observer.recorders[0].status == "FINISHED"


def test_a_grid_of_queued_points_alone_is_tried_before_it_ends(sweep: Open) -> None:
    space = {"model.num_codewords": {"choice": [4, 8]}}
    one = sweep({"search.space": space, "search.sampler": "grid"})
    one.study.queue([{"model.num_codewords": 4}, {"model.num_codewords": 8}])

    assert not one.ledger.is_done()
    assert [one.start(key).config.model.num_codewords for key in "ab"] == [4, 8]
    for key in "ab":
        one.train(key, 0.1, 0.2, 0.3)
        one.ledger.ended(key)
    assert one.ledger.is_done()


def test_a_trial_that_goes_on_is_not_judged_by_its_latency_again(sweep: Open) -> None:
    """Which another load of the machine would change."""
    limit = {"search.limits.latency_ms": 10.0}
    killed = sweep(limit)
    killed.start("a")
    killed.ledger.reported("a", {"latency_ms": 8.0, "hardware": CPU})
    killed.train("a", 0.1)

    one = sweep(limit)
    one.start("b")
    assert not one.ledger.reported("b", {"latency_ms": 12.0, "hardware": CPU})
    one.train("b", 0.1, 0.2, 0.3)
    one.ledger.ended("b")
    assert one.trials[0].state == "COMPLETE"


def test_what_a_trial_has_cost_stands_while_it_tells_its_epochs_again(sweep: Open) -> None:
    killed = sweep({"search.scheduler": "none"})
    killed.start("a")
    killed.train("a", 0.1, 0.2)

    one = sweep({"search.scheduler": "none"})
    one.start("b")
    one.train("b", 0.1)
    assert (one.trials[0].seconds, one.trials[0].cost_seconds) == (4.0, 4.0)
    one.train("b", 0.1, 0.2, 0.3)
    assert one.trials[0].seconds == 6.0


@pytest.fixture
def pausing(sweep: Open) -> Open:
    """One trial at a time; the best half goes on from epoch 1 of 3."""
    rungs = {"search.scheduler": "asha", "search.asha.reduction_factor": 2, "search.budget.trials": 4}

    def opened(values: dict[str, Any] | None = None) -> Sweep:
        return sweep({**rungs, **(values or {})}, room=1)

    return opened


def pause(one: Sweep, key: str, value: float, folder_bytes: int = 0) -> None:
    job = one.start(key)
    if folder_bytes:
        write_newest(
            job.folder,
            checkpoint_name(1),
            lambda folder: (folder / "model.safetensors").write_bytes(bytes(folder_bytes)) and None,
        )
    assert one.train(key, value)
    one.ledger.ended(key)


def test_a_trial_pauses_at_its_rung_and_goes_on_where_it_was_when_it_is_in_the_best_half(
    pausing: Open,
) -> None:
    one = pausing()
    pause(one, "a", 0.5)
    assert (one.trials[0].state, one.observer.recorders[0].status) == ("PAUSED", None)
    pause(one, "b", 0.1)

    job = one.start("c")
    assert job.folder.name == "0000"
    assert one.train("c", 0.5, 0.6, 0.7) is False, "its first epoch is repeated and not judged again"
    one.ledger.ended("c")

    assert (one.trials[0].state, one.trials[0].curve) == ("COMPLETE", ((1, 0.5), (2, 0.6), (3, 0.7)))
    assert [r.epoch for r in one.observer.recorders[0].reports] == [1, 2, 3]
    assert one.trials[0].seconds == 6.0
    assert [event.state for event in one.observer.events if event.number == 0] == [
        *("RUNNING", "RUNNING", "PAUSED", "RUNNING", "RUNNING", "RUNNING", "COMPLETE")
    ]
    assert "trial 0 goes on after epoch 1" in one.observer.lines


def test_a_pause_is_no_silence(pausing: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pausing()
    pause(one, "a", 0.5)
    pause(one, "b", 0.1)
    later = time.monotonic() + 1000
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert one.ledger.next_assignment("c"), "trial 0 goes on, and its process starts"
    one.ledger.is_over()
    assert not [line for line in one.observer.lines if "straggler" in line]

    one.ledger.started("c")
    later += 1000
    one.ledger.is_over()
    assert [
        line for line in one.observer.lines if line.startswith("trial 0 is a straggler: silent for 17 min")
    ]


def test_the_best_at_its_rung_goes_on_without_a_pause(pausing: Open) -> None:
    one = pausing()
    pause(one, "a", 0.5)
    one.start("b")
    assert one.train("b", 0.9, 0.9, 0.9) is False


def test_paused_trials_are_pruned_at_the_end_and_the_last_best_one_goes_on(pausing: Open) -> None:
    one = pausing({"search.budget.trials": 1})
    pause(one, "a", 0.5)
    assert not one.ledger.is_done(), "one trial is no half, but the best of all"
    one.start("b")
    one.train("b", 0.5, 0.6, 0.7)
    one.ledger.ended("b")
    assert one.ledger.is_done()


def test_what_is_paused_at_the_end_is_pruned_with_its_curve_and_no_reason(pausing: Open) -> None:
    one = pausing()
    pause(one, "a", 0.1)
    one.start("b")
    one.train("b", 0.2, 0.3, 0.3)
    one.ledger.ended("b")
    one.budget.is_spent = True
    assert one.ledger.is_over()
    one.ledger.end_all("the budget was spent")

    trial = one.trials[0]
    assert (trial.state, trial.reason, trial.curve) == ("PRUNED", None, ((1, 0.1),))
    assert one.observer.recorders[0].status == "FINISHED"


def test_a_paused_trial_that_a_spent_budget_kept_from_going_on_says_so(pausing: Open) -> None:
    one = pausing()
    pause(one, "a", 0.5)
    pause(one, "b", 0.1)
    one.budget.is_spent = True
    one.ledger.end_all("the budget was spent")

    assert [trial.reason for trial in one.trials] == ["the budget was spent", None]


def test_after_a_kill_a_paused_trial_is_promoted_as_it_would_have_been(pausing: Open) -> None:
    killed = pausing()
    pause(killed, "a", 0.5)
    killed.start("b")
    assert killed.train("b", 0.1)
    # Killed before Tune ended "b".

    resumed = pausing()
    job = resumed.start("c")
    assert job.folder.name == "0000"
    resumed.train("c", 0.5, 0.6, 0.7)
    resumed.ledger.ended("c")
    assert resumed.trials[0].state == "COMPLETE"
    assert resumed.ledger.is_done() is False
    assert resumed.start("d").folder.name == "0002", "trial 1 is still paused"


def test_the_worst_paused_trials_lose_their_checkpoints_beyond_the_disk_s_share(pausing: Open) -> None:
    one = pausing({"search.disk_gib": 150 / 2**30, "search.asha.reduction_factor": 4})
    for key, value in (("a", 0.5), ("b", 0.1), ("c", 0.4)):
        pause(one, key, value, folder_bytes=70)

    folders = sorted((one.folder / "trials").iterdir())
    assert [bool(find_newest(folder)) for folder in folders] == [True, False, True]
    assert one.observer.lines == ["trial 1 would start again: search.disk_gib is spent"]


def test_failures_in_a_row_with_one_reason_end_the_search(pausing: Open) -> None:
    one = pausing({"search.budget.max_failed": 2, "search.budget.trials": 6})
    for key, reason in (("a", "no such file"), ("b", "disk full"), ("c", "disk full")):
        assert one.ledger.gives_up_on is None
        one.start(key)
        one.ledger.reported(key, {"failure": reason, "hardware": CPU, "done": True})
        one.ledger.ended(key)

    assert one.ledger.gives_up_on == "disk full"
    assert one.ledger.is_over()


def test_a_trial_that_pauses_between_failures_breaks_their_row(pausing: Open) -> None:
    one = pausing({"search.budget.max_failed": 2, "search.budget.trials": 6})
    for key, value in (("a", None), ("b", 0.5), ("c", None)):
        if value is None:
            one.start(key)
            one.ledger.reported(key, {"failure": "disk full", "hardware": CPU, "done": True})
            one.ledger.ended(key)
        else:
            pause(one, key, value)

    assert one.ledger.gives_up_on is None


def test_at_the_end_one_goes_on_though_a_failed_one_was_better(pausing: Open) -> None:
    one = pausing({"search.budget.trials": 2})
    pause(one, "a", 0.5)
    one.start("b")
    one.train("b", 0.9)
    one.ledger.reported("b", {"failure": "non-finite gradient", "hardware": CPU, "done": True})
    one.ledger.ended("b")

    assert not one.ledger.is_done()
    assert one.start("c").folder.name == "0000"


def test_a_pause_measures_the_checkpoint_of_its_own_trial_alone(
    sweep: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(folder: Path) -> int:
        measured.append(folder.name)
        return 1

    monkeypatch.setattr("encsearch.search.ledger.stored_bytes", measure)
    pausing = {"search.scheduler": "asha", "search.budget.trials": 5, "train.epochs": 9}
    first = sweep(pausing)
    for number in range(4):
        first.start(str(number))
        assert first.train(str(number), 0.1 - number / 100)
        first.ledger.ended(str(number))
    assert measured == ["0000", "0001", "0002", "0003"]
    assert len(sweep(pausing).study.paused()) == 4
    assert len(measured) == 8, "a resume measures each once"
