"""What a sweep's runs say after a job that was cut off."""

import base64
from pathlib import Path

import pytest

from encsearch.cli.console import say
from encsearch.config import Config, with_values
from encsearch.data.codec import encode_png
from encsearch.data.datasets import SHOWN_IMAGES, evenly_spaced
from encsearch.data.store import Store
from encsearch.reports import Report, Status, TrainingResult
from encsearch.runner.torch_process import TorchProcess
from encsearch.search.confirm.finalists import Finalist, group_trainings
from encsearch.search.confirm.ranking import rank
from encsearch.search.confirm.trainings import Confirmation
from encsearch.search.trials import Trial, TrialEvent, TrialState
from encsearch.tracking.outbox.record import own_record
from encsearch.tracking.run_files import PANELS, write_panels
from encsearch.workflow.progress import LineProgress
from encsearch.workflow.sweep.records import SweepRecords


@pytest.mark.parametrize(
    ("state", "status"), [("COMPLETE", "FINISHED"), ("PRUNED", "FINISHED"), ("FAIL", "FAILED")]
)
def test_a_trial_that_ended_just_before_a_ctrl_c_is_closed_truly(
    toy_config: Config, tmp_path: Path, state: TrialState, status: Status
) -> None:
    ended = Trial(0, {}, state, value=0.5, curve=((1, 0.5),), seconds=1.0)
    with own_record(tmp_path) as record:
        record.start("sweep", params={}, tags={})
        records = SweepRecords(
            toy_config,
            Store(toy_config.data.store),
            record,
            "sweep",
            tmp_path,
            LineProgress(say),
            TorchProcess(),
        )
        records.open_recorder(0, toy_config).close("KILLED")
        records.settle([ended])
        closed = record.find("trial0")
    assert closed
    assert closed.status == status


def test_a_trial_that_was_paused_at_a_ctrl_c_and_is_pruned_later_says_so(
    toy_config: Config, tmp_path: Path
) -> None:
    """Its run is closed already, and its checkpoint may be gone."""
    with own_record(tmp_path) as record:
        record.start("sweep", params={}, tags={})
        records = SweepRecords(
            toy_config,
            Store(toy_config.data.store),
            record,
            "sweep",
            tmp_path,
            LineProgress(say),
            TorchProcess(),
        )
        records.open_recorder(0, toy_config)
        records.follow(
            TrialEvent(0, {}, "PAUSED", 1, 0.5),
        )
        records._trials.pop(0).close("KILLED")
        records.settle([Trial(0, {}, "PRUNED", value=0.5, curve=((1, 0.5),), seconds=1.0)])
        closed = record.find("trial0")
    assert closed
    assert (closed.status, closed.noted["encsearch.state"]) == ("FINISHED", "PRUNED")


def test_a_training_says_its_step_first_and_then_where_nothing_else_was_said(
    toy_config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("encsearch.workflow.progress.time.monotonic", lambda: now_s)
    progress = LineProgress(say)
    for step, passed_s in ((0, 1), (1, 1), (2, 59), (3, 1.5), (4, 1)):
        now_s += passed_s
        progress.step(step, 1000, toy_config)
    name = toy_config.name
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line.partition(";")[0] for line in said] == [f"{name} trains: step {n} of 1,000" for n in (0, 3)]


@pytest.mark.parametrize(("state", "has_panels"), [("PRUNED", True), ("FAIL", False)])
def test_a_trials_panels_show_the_newest_predictions_that_it_reported(
    toy_config: Config, tmp_path: Path, state: TrialState, has_panels: bool
) -> None:
    store = Store(toy_config.data.store)
    samples = evenly_spaced(store.split("val"), SHOWN_IMAGES)
    reports = [
        Report(
            epoch,
            step=epoch,
            seconds=1.0,
            metrics={"mIoU": 0.5},
            label_maps={s.id: base64.b64encode(encode_png(s.mask)).decode() for s in samples[:shown]},
        )
        for epoch, shown in ((1, 2), (2, 3), (3, 0))
    ]
    with own_record(tmp_path) as record:
        record.start("sweep", params={}, tags={})
        records = SweepRecords(
            toy_config, store, record, "sweep", tmp_path, LineProgress(say), TorchProcess()
        )
        recorder = records.open_recorder(0, toy_config)
        for report in reports:
            recorder.log(report)
        records.trial_ended(TrialEvent(0, {}, state, 3, 0.5), toy_config, tmp_path / "trials" / "0000")

    panels = tmp_path / "trial-artifacts" / "trial0" / PANELS
    assert panels.exists() == has_panels
    if has_panels:
        write_panels(tmp_path, reports[1], samples, store.info)
        assert panels.read_bytes() == (tmp_path / PANELS).read_bytes()


def finalist(config: Config, trial: int | None, seed: int, value: float) -> Finalist:
    metrics = {"mIoU": value, "pixAcc": value / 2}
    report = Report(epoch=seed, step=seed, seconds=1.0, metrics=metrics, class_iou={"red": value})
    result = TrainingResult((report,), report, Path("best"), 2.0)
    name = f"trial3-{'FCN-' if trial is None else ''}seed{seed}"
    return Finalist(name, trial, with_values(config, {"train.seed": seed}), result, 100)


def test_each_configuration_of_several_seeds_has_a_run_of_its_means(
    toy_config: Config, tmp_path: Path
) -> None:
    trainings = tuple(finalist(toy_config, 3, seed, value) for seed, value in ((1, 0.5), (2, 0.7), (3, 0.6)))
    baseline = (finalist(toy_config, None, 1, 0.4),)
    ranking = rank(group_trainings(trainings), group_trainings(baseline))
    with own_record(tmp_path) as record:
        record.start("sweep", params={}, tags={})
        records = SweepRecords(
            toy_config,
            Store(toy_config.data.store),
            record,
            "sweep",
            tmp_path,
            LineProgress(say),
            TorchProcess(),
        )
        records.record_configurations(Confirmation(trainings, baseline, trainings[2], ranking))
        means = record.find("trial3-mean")
        assert record.find("trial3-FCN-mean") is None, "one seed's run says all"

    assert means
    assert means.status == "FINISHED"
    assert means.newest["mIoU"] == means.newest["best/mIoU"] == pytest.approx(0.6)
    assert means.newest["IoU/red"] == pytest.approx(0.6)
    assert means.newest["over_seeds/sd"] == pytest.approx(0.1)
    assert means.newest["num_seeds"] == 3
    assert means.newest["over_seeds/lower_bound"] < 0.6
    assert means.newest["seconds"] == 6.0
