"""A running sweep's clock: what ended it, and what a process before this one has used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from encsearch.config import Config
from encsearch.files import read_lines
from encsearch.search.budget.keeper import PROGRESS_FILE, PROGRESS_S, Keeper, SweepProgress
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import COST, SECONDS, Study
from encsearch.workflow.progress import sweep_line

EPOCH_S, EPOCHS = 10.0, 2


class Clock:
    """Shows `now_s`, which a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Sweep:
    """A study whose trials are told by hand, and the clock of its keeper; a wall budget of 100 s."""

    def __init__(self, folder: Path, trials: int = 2, sampler: str = "random") -> None:
        search = {
            "space": {"optim.lr": {"choice": [0.01, 0.02]}},
            "sampler": sampler,
            "budget": {"trials": trials, "wall": 100},
        }
        sections = {"data": {"store": "data"}, "train": {"epochs": EPOCHS}, "search": search}
        self.config = Config.model_validate(sections)
        assert self.config.search
        self.study = Study(MEMORY, "test", self.config.search, EPOCHS)
        self.clock, self.folder = Clock(), folder

    def keeper(self, follow: Callable[[SweepProgress], None] = lambda _: None) -> Keeper:
        return Keeper(self.config, self.study, self.folder, at_once=1, clock=self.clock, follow=follow)

    def start(self) -> int:
        """A trial that has reported its first epoch."""
        proposal = self.study.ask()
        assert proposal
        self.study.note(proposal.number, **{SECONDS: EPOCH_S, COST: EPOCH_S})
        self.study.report(proposal.number, 1, 0.1)
        return proposal.number

    def run(self) -> None:
        number = self.start()
        self.study.report(number, 2, 0.2)
        self.study.complete(number)


def test_a_limit_that_ends_a_trial_has_ended_the_search(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=1)
    sweep.start()
    keeper = sweep.keeper()

    sweep.clock.now_s = 99.0

    assert keeper.must_end()
    assert keeper.ended_by
    assert keeper.ended_by.startswith("the wall budget")


@pytest.mark.parametrize(("trials", "sampler"), [(2, "random"), (9, "grid")])
def test_a_limit_that_is_met_after_the_last_trial_has_ended_nothing(
    tmp_path: Path, trials: int, sampler: str
) -> None:
    """As when a sweep is killed in its confirmation and taken up again."""
    sweep = Sweep(tmp_path, trials, sampler)
    sweep.run()
    sweep.run()
    keeper = sweep.keeper()

    sweep.clock.now_s = 99.0

    assert keeper.must_end()
    assert keeper.ended_by is None


def test_what_a_limit_has_ended_is_known_after_a_resume(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=1)
    sweep.study.prune(sweep.start(), "the budget was spent")
    before = sweep.keeper()
    sweep.clock.now_s = 99.0
    before.write_progress()

    sweep.clock.now_s = 1000.0
    resumed = sweep.keeper()

    assert resumed.elapsed_s == pytest.approx(99.0)
    assert resumed.must_end()
    assert resumed.ended_by


def test_a_limit_that_has_kept_a_paused_trial_from_going_on_is_known_after_a_resume(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=2)
    sweep.run()
    sweep.study.prune(sweep.start(), "the budget was spent")
    keeper = sweep.keeper()

    sweep.clock.now_s = 85.0

    assert not keeper.may_repeat()
    assert keeper.ended_by


def test_trials_that_a_limit_left_out_are_a_search_that_it_ended(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.run()
    keeper = sweep.keeper()

    sweep.clock.now_s = 75.0

    assert not keeper.may_start()
    assert keeper.ended_by


def test_a_flagged_trial_can_be_repeated_after_the_last_one_while_there_is_time(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=1)
    sweep.run()
    keeper = sweep.keeper()
    assert (keeper.may_start(), keeper.may_repeat()) == (False, True)

    sweep.clock.now_s = 85.0
    assert not keeper.may_repeat()


def test_finalists_that_are_over_are_no_longer_foreseen(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.run()
    sweep.run()
    keeper = sweep.keeper()

    for num_confirmed in (0, 1):
        keeper.write_progress(num_confirmed)

    (point,) = keeper.points()
    assert point.median_s > 10


def test_how_far_the_sweep_is_is_said_with_what_is_left_of_its_budget(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.run()
    sweep.start()
    said: list[SweepProgress] = []
    keeper = sweep.keeper(said.append)

    sweep.clock.now_s = 40.0
    assert not keeper.must_end()

    (now,) = said
    assert (now.ended, now.planned, now.best and now.best.number) == (1, 2, 0)
    assert (now.spent.wall_s, now.left.wall_s) == (40.0, 60.0)
    assert now.to_go_s
    low, high = now.to_go_s
    assert 0 < low <= high < 60
    line = sweep_line(now, sweep.config)
    assert line.startswith("1 of 2 trials ended; best mIoU 20.00 % (trial 0); 40 s of 2 min spent; ")
    assert line.endswith(" to go")


def test_a_limit_that_keeps_a_paused_trial_from_going_on_has_ended_the_search(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=1)
    sweep.study.pause(sweep.start())
    assert sweep.keeper().ended_by is None
    keeper = sweep.keeper()

    sweep.clock.now_s = 60.0

    assert not keeper.may_repeat()
    assert keeper.ended_by
    assert keeper.ended_by.startswith("no paused trial would report in time: the wall budget")


def test_a_large_search_notes_its_time_as_often_and_is_forecast_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path, trials=9)
    sweep.start()
    keeper = sweep.keeper()
    for now_s in (1, 2):
        sweep.clock.now_s = now_s
        keeper.write_progress()
    assert len(keeper.points()) == 2, "up to FORECAST_TRIALS each time"

    monkeypatch.setattr("encsearch.search.budget.keeper.FORECAST_TRIALS", 0.25)
    for now_s in (3, 4, 3 + 3 * PROGRESS_S):
        sweep.clock.now_s = now_s
        keeper.write_progress()
    assert [point.elapsed_s for point in keeper.points()] == [1, 2, 3, 3 + 3 * PROGRESS_S]
    assert len(read_lines(tmp_path / PROGRESS_FILE)) == 5
