"""The spool: every report arrives once and in order, whatever happens to the writer."""

from pathlib import Path

import pytest

from encsearch.reports import MemoryRecorder, Report, SpoolReader, append, forwarding


def report(epoch: int) -> Report:
    return Report(
        epoch=epoch,
        step=10 * epoch,
        seconds=0.5,
        metrics={"mIoU": 0.25},
        class_iou={"röad": 0.5},
        confusion=((3, 1), (0, 2)),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reports.jsonl"


def test_a_report_comes_back_as_it_was_and_only_once(path: Path) -> None:
    reader = SpoolReader(path)
    append(path, report(1))
    append(path, report(2))
    assert reader.new_reports() == [report(1), report(2)]
    assert reader.new_reports() == []
    append(path, report(3))
    assert reader.new_reports() == [report(3)]


def test_a_spool_that_does_not_exist_yet_is_empty(path: Path) -> None:
    assert SpoolReader(path).new_reports() == []


def test_a_line_that_is_being_written_is_left_for_later(path: Path) -> None:
    append(path, report(1))
    append(path, report(2))
    whole = path.read_bytes()
    reader = SpoolReader(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert len(reader.new_reports()) == (1 if cut == whole.index(b"\n") + 1 else 0)
    path.write_bytes(whole)
    assert reader.new_reports() == [report(2)]


def test_a_line_torn_by_a_crash_is_replaced_by_the_next_report(path: Path) -> None:
    append(path, report(1))
    reader = SpoolReader(path)
    assert reader.new_reports() == [report(1)]
    with open(path, "ab") as file:
        file.write(b'{"epoch":2,"st')
    assert reader.new_reports() == []
    append(path, report(2))
    assert reader.new_reports() == [report(2)]
    assert SpoolReader(path).new_reports() == [report(1), report(2)]


def test_forwarding_hands_over_everything_in_order_before_it_ends(path: Path) -> None:
    recorder = MemoryRecorder()
    append(path, report(0))
    with forwarding(path, recorder, poll_s=0.001):
        for epoch in range(1, 200):
            append(path, report(epoch))
    assert [r.epoch for r in recorder.reports] == list(range(200))
    assert recorder.status is None


def test_forwarding_hands_over_what_was_written_before_a_failure(path: Path) -> None:
    recorder = MemoryRecorder()

    def train() -> None:
        with forwarding(path, recorder, poll_s=60):
            append(path, report(1))
            raise RuntimeError("worker lost")

    with pytest.raises(RuntimeError, match="worker lost"):
        train()
    assert recorder.reports == [report(1)]


def test_forwarding_does_not_hide_that_the_recorder_failed(path: Path) -> None:
    class Broken(MemoryRecorder):
        def log(self, report: Report) -> None:
            raise ValueError(f"no room for epoch {report.epoch}")

    with pytest.raises(ValueError, match="no room for epoch 7"), forwarding(path, Broken(), poll_s=60):
        append(path, report(7))
