"""Real trainings side by side: each ends truly, and leaves its last weights to the observer alone."""

import os
import signal
from pathlib import Path

import pytest

from encsearch.config import Config, to_json, with_values
from encsearch.data.store import Store
from encsearch.errors import NoticeError
from encsearch.reports import MemoryRecorder, Recorder, Report, best_report
from encsearch.search.ablation.plan import PlannedTraining
from encsearch.search.sweep import count_places
from encsearch.search.trials import TrialEvent
from encsearch.search.tune.side_by_side import run_side_by_side
from encsearch.search.tune.trial import TrialTrainable
from encsearch.train.checkpoint import load_checkpoint
from encsearch.train.checkpoint_files import find_best, find_newest
from encsearch.train.experiment import build

pytestmark = pytest.mark.ray


class Observer:
    """Keeps the records in memory, and the step of each checkpoint that it is given."""

    def __init__(self) -> None:
        self.recorders: dict[str, MemoryRecorder] = {}
        self.last: dict[str, Report] = {}
        self.checkpoint_steps: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    def open_recorder(self, training: PlannedTraining) -> Recorder:
        self.recorders[training.name] = MemoryRecorder()
        return self.recorders[training.name]

    def trained(self, training: PlannedTraining, last: Report, seconds: float, folder: Path) -> None:
        newest = find_newest(folder)
        assert newest
        self.checkpoint_steps[training.name] = step_of(newest, training.config)
        self.last[training.name] = last

    def recorded(self, training: PlannedTraining) -> None:
        assert self.recorders[training.name].status == "FINISHED"

    def failed(self, training: PlannedTraining, reason: str) -> None:
        self.reasons[training.name] = reason

    def follow(self, training: PlannedTraining, event: TrialEvent) -> None:
        pass


def step_of(checkpoint: Path, config: Config) -> int:
    state = build(config).state
    load_checkpoint(state, checkpoint)
    return state.step


@pytest.mark.parametrize("num_workers", [1, 2])
def test_one_training_fails_and_the_others_go_on(
    toy_config: Config, tmp_path: Path, num_workers: int
) -> None:
    base = with_values(toy_config, {"scaling.num_workers": num_workers, "train.global_batch_size": 8})
    rows = {
        "FCN": {"model.context": "none"},
        "diverges": {"optim.lr": 10.0, "optim.weight_decay": 1.0, "train.epochs": 8},
        "longer": {"train.epochs": 3},
    }
    trainings = [PlannedTraining(name, name, with_values(base, values)) for name, values in rows.items()]
    observer = Observer()

    fingerprint = Store(base.data.store).fingerprint
    run_side_by_side(
        trainings,
        base.scaling,
        tmp_path / "trials",
        observer,
        fingerprint=fingerprint,
        room=count_places(base.scaling),
        keeps_best=True,
    )

    assert {name: recorder.status for name, recorder in observer.recorders.items()} == {
        "FCN": "FINISHED",
        "diverges": "FAILED",
        "longer": "FINISHED",
    }
    assert "non-finite gradient" in observer.reasons["diverges"]
    assert {name: report.epoch for name, report in observer.last.items()} == {"FCN": 2, "longer": 3}
    assert [r.epoch for r in observer.recorders["longer"].reports] == [1, 2, 3]
    assert observer.checkpoint_steps == {"FCN": 6, "longer": 9}, "weights and figures are of the last step"
    for name in ("FCN", "longer"):
        folder, reports = tmp_path / "trials" / name, tuple(observer.recorders[name].reports)
        assert find_newest(folder) is None, "nothing fills the disk"
        best = best_report(reports, base.metric)
        assert step_of(find_best(folder), with_values(base, rows[name])) == best.step


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_notice_saves_what_runs_and_the_next_call_goes_on_from_there(
    toy_config: Config, tmp_path: Path, num_workers: int
) -> None:
    values = {"scaling.num_workers": num_workers, "train.epochs": 2, "train.steps_per_epoch": 400}
    base = with_values(toy_config, values)
    training = PlannedTraining("long", "long", base)

    def run(observer: Observer) -> None:
        run_side_by_side(
            [training],
            base.scaling,
            tmp_path / "trials",
            observer,
            fingerprint=Store(base.data.store).fingerprint,
            room=1,
        )

    class Noticed(Observer):
        def follow(self, training: PlannedTraining, event: TrialEvent) -> None:
            if event.state == "RUNNING" and event.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    noticed = Noticed()
    with pytest.raises(NoticeError):
        run(noticed)
    assert noticed.recorders["long"].status == "KILLED"
    checkpoint = find_newest(tmp_path / "trials" / "long")
    assert checkpoint
    assert 400 < step_of(checkpoint, base) < 800

    resumed = Observer()
    run(resumed)
    assert resumed.recorders["long"].status == "FINISHED"
    assert resumed.last["long"].metrics["resumed_from_step"] > 400


def test_a_process_leaves_the_folder_alone_until_it_is_told_to_train(
    toy_config: Config, tmp_path: Path
) -> None:
    """Tune may start two processes for one training, and lets go of one of them."""
    folder = tmp_path / "trial"
    process = TrialTrainable(
        {
            "config": to_json(toy_config),
            "folder": str(folder),
            "fingerprint": Store(toy_config.data.store).fingerprint,
            "sweep": "",
            "measures_latency": False,
            "keeps_best": True,
        }
    )
    assert not folder.exists()
    result = process.step()
    assert result["epoch"] == 1
    assert find_best(folder).exists()
