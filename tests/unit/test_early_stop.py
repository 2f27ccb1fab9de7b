"""train.early_stop: when it ends a training, that all are told why, and that a resume decides the same."""

import math
from pathlib import Path

import pytest

from encsearch.config import Config, EarlyStop, with_values
from encsearch.reports import MemoryRecorder, Report, SpoolReader
from encsearch.runner.local import run_local
from encsearch.runner.rank import find_stall
from encsearch.workflow.progress import epoch_line


def reports(*values: float) -> list[Report]:
    return [Report(n, n, 1.0, {"mIoU": value}) for n, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "ends_after"),
    [
        ((0.1, 0.2, 0.2, 0.3, 0.3, 0.2, 0.4), 2, 0.0, 6),
        ((0.1, 0.2, 0.3), 1, 0.0, None),
        ((0.3, 0.2, 0.1), 1, 0.0, 2),
        ((0.1, 0.14, 0.18, 0.22, 0.26), 2, 0.05, None),  # slow, but over two reports it rises enough
        ((0.1, 0.12, 0.14, 0.16), 2, 0.05, 3),
        ((math.nan, 0.1, math.nan, math.nan), 2, 0.0, 4),
        ((0.5, 0.4, 0.3, 0.2), 4, 0.0, None),
    ],
)
def test_it_ends_after_so_many_reports_without_a_rise(
    values: tuple[float, ...], patience: int, min_delta: float, ends_after: int | None
) -> None:
    rule = EarlyStop(patience=patience, min_delta=min_delta)
    ends = (n for n in range(1, len(values) + 1) if find_stall(reports(*values[:n]), "mIoU", rule))

    assert next(ends, None) == ends_after


def test_the_reason_has_the_numbers() -> None:
    rule = EarlyStop(patience=2, min_delta=0.01)
    assert find_stall(reports(0.5, 0.4, 0.505), "mIoU", rule) == (
        "train.early_stop: 2 reports without a rise of mIoU above 50.00 % by more than 1.00 points"
    )


@pytest.fixture
def stalling(toy_config: Config) -> Config:
    """Of eight epochs: the rate, taken as the metric, never rises, so the first epoch is the best."""
    config = with_values(toy_config, {"train.epochs": 8, "train.early_stop.patience": 3})
    return config.model_copy(update={"metric": "lr"})


def test_a_training_ends_and_its_last_report_says_why(stalling: Config, tmp_path: Path) -> None:
    recorder = MemoryRecorder()
    result = run_local(stalling, tmp_path, recorder)

    assert [report.epoch for report in recorder.reports] == [1, 2, 3, 4]
    assert result.best.epoch == 1
    stored = SpoolReader(tmp_path / "reports.jsonl").new_reports()
    for reports in (recorder.reports, stored):
        assert [bool(report.ends) for report in reports] == [False, False, False, True]
        assert reports[-1].ends.startswith("train.early_stop: 3 reports without a rise of lr above")
    assert "; ends here: train.early_stop: 3 reports" in epoch_line("toy", result.reports[-1], stalling)


def test_until_it_ends_it_is_the_training_without_it(stalling: Config, tmp_path: Path) -> None:
    one = run_local(stalling, tmp_path / "one", MemoryRecorder())
    without = stalling.model_copy(
        update={"train": stalling.train.model_copy(update={"early_stop": EarlyStop()})}
    )
    other = run_local(without, tmp_path / "other", MemoryRecorder())
    assert len(other.reports) == 8
    for ours, theirs in zip(one.reports, other.reports[:4], strict=True):
        assert ours.confusion == theirs.confusion
    assert not any(report.ends for report in other.reports)


def test_the_last_epoch_of_the_plan_is_no_early_end(stalling: Config, tmp_path: Path) -> None:
    config = stalling.model_copy(update={"train": stalling.train.model_copy(update={"epochs": 4})})
    assert [r.ends for r in run_local(config, tmp_path, MemoryRecorder()).reports] == [""] * 4


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_resume_counts_the_reports_from_before_it(stalling: Config, tmp_path: Path, killed_at: int) -> None:
    class Killed(MemoryRecorder):
        def log(self, report: Report) -> None:
            if report.epoch == killed_at:
                raise KeyboardInterrupt

    whole = run_local(stalling, tmp_path / "whole", MemoryRecorder())
    with pytest.raises(KeyboardInterrupt):
        run_local(stalling, tmp_path / "killed", Killed())
    recorder = MemoryRecorder()
    resumed = run_local(stalling, tmp_path / "killed", recorder)

    assert [report.epoch for report in recorder.reports] == [1, 2, 3, 4]
    assert [r.ends for r in recorder.reports] == [r.ends for r in whole.reports]
    assert resumed.reports[-1].confusion == whole.reports[-1].confusion
    assert len(SpoolReader(tmp_path / "killed" / "reports.jsonl").new_reports()) == 4


def test_both_can_be_searched(toy_config: Config) -> None:
    space = {
        "train.early_stop.patience": {"integer": [0, 5]},
        "train.early_stop.min_delta": {"uniform": [0.0, 0.02]},
    }
    assert with_values(toy_config, {"search": {"space": space}}).search is not None
