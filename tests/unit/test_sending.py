"""Forwarding a job's events: exactly once and in order, whatever fails and wherever it is cut off."""

import errno
import io
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import pytest

from encsearch.errors import UserError
from encsearch.files import append_line, read_lines, write_whole
from encsearch.reports import Point, Report
from encsearch.tracking.outbox import forward, sender
from encsearch.tracking.outbox.events import Dataset, Ended, Event, Filed, Logged, Started, read_events
from encsearch.tracking.outbox.forward import (
    METRICS_A_REQUEST,
    REFUSED_FILE,
    Outbox,
    UnavailableError,
    begin_sending,
    is_settled,
    read_sent,
    refused_parts,
    sending_alone,
    unsent_events,
)
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER, own_record
from tests.forward import send_all
from tests.unit.memory_store import MemoryStore


def report(epoch: int, names: int = 1) -> Report:
    metrics = {f"loss{i}": 1 / (epoch + 1) for i in range(names)} | {
        "mIoU": float("nan") if epoch == 1 else 0.5
    }
    return Report(epoch=epoch, step=10 * epoch, seconds=1.5, metrics=metrics)


def write_job(folder: Path) -> Path:
    """A parent with two children whose events are mixed; one child goes on after its end."""
    folder.mkdir()
    (folder / "notes.txt").write_text("kept")
    data = Dataset("scenes", "abc", "scenes", {})
    with own_record(folder) as record:
        parent = record.start("sweep", params={"optim.lr": 0.1}, tags={"kind": "sweep"}, dataset=data)
        children = [record.start(f"trial{i}", params={}, tags={}, parent="sweep") for i in range(2)]
        for epoch in range(3):
            for child in children:
                child.log(report(epoch))
        children[0].file(folder / "notes.txt", "texts")
        children[0].close("KILLED")
        children[0] = record.start("trial0", params={"more": 1}, tags={}, parent="sweep", dataset=data)
        children[0].log(report(3))
        children[0].note({"reason": "it was good"})
        children[0].close("FINISHED")
        children[1].close("FAILED")
        parent.summarize(report(0))
        parent.close("FINISHED")
    return folder


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With chunks that are smaller than the record."""
    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 5)
    return write_job(tmp_path / "job")


def forget_what_was_sent(job: Path) -> None:
    (job / FOLDER / forward.SENT_FILE).unlink()


def lines(job: Path) -> int:
    return len((job / FOLDER / EVENTS_FILE).read_bytes().splitlines())


def test_everything_arrives_in_order_with_its_own_times(job: Path) -> None:
    store = MemoryStore()
    assert unsent_events(job) == lines(job)
    assert not is_settled(job)
    assert send_all(job, store) == lines(job)
    assert is_settled(job)
    assert unsent_events(job) == 0
    runs = {run.name: run for run in store.runs.values()}
    assert {name: run.status for name, run in runs.items()} == {
        "sweep": "FINISHED",
        "trial0": "FINISHED",
        "trial1": "FAILED",
    }
    assert runs["trial0"].parent_id == read_sent(job).runs["sweep"]
    assert runs["trial0"].params == {"more": "1"}
    assert runs["trial0"].tags["reason"] == "it was good"
    assert runs["trial0"].files == {"texts/notes.txt": b"kept"}
    assert [value for name, *_, value in runs["trial0"].figures if name == "epoch"] == [
        "0.0",
        "1.0",
        "2.0",
        "3.0",
    ]
    assert [value for name, *_, value in runs["trial1"].figures if name == "mIoU"] == ["0.5", "nan", "0.5"]
    assert runs["sweep"].params == {"optim.lr": "0.1"}
    events = (job / FOLDER / EVENTS_FILE).read_text().splitlines()
    assert runs["sweep"].end_ms == json.loads(events[-1])["time_ms"]


def test_a_crash_at_any_point_loses_nothing_and_doubles_nothing(job: Path) -> None:
    whole = MemoryStore()
    send_all(job, whole)
    moments = 2 * len(whole.calls)
    for crash_at in range(moments):
        forget_what_was_sent(job)
        moment = count()

        def crash(moment: Iterator[int] = moment, crash_at: int = crash_at) -> None:
            if next(moment) == crash_at:
                raise InterruptedError

        store = MemoryStore(crash)
        with pytest.raises(InterruptedError):
            send_all(job, store)
        store.disturb = lambda: None
        send_all(job, store)
        assert store.runs == whole.runs, f"cut off at {crash_at} of {moments}"
    assert refused_parts(job) == 0


def test_a_failure_is_raised_and_the_same_call_made_again_later(job: Path) -> None:
    store = MemoryStore()
    Outbox(job, store).send_chunk()
    before = read_sent(job)

    def fail() -> None:
        raise UnavailableError("timed out")

    store.disturb = fail
    with pytest.raises(UnavailableError):
        Outbox(job, store).send_chunk()
    assert read_sent(job) == before
    assert before.open_runs == ("sweep", "trial0", "trial1")


def test_an_upload_is_not_repeated_for_a_failure_behind_it(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 1000)
    store = MemoryStore()

    def fail() -> None:
        if "store_files" in store.calls[:-1]:
            raise UnavailableError("timed out")

    store.disturb = fail
    with pytest.raises(UnavailableError):
        send_all(job, store)
    store.disturb = lambda: None
    send_all(job, store)
    assert store.calls.count("store_files") == 1


def test_a_line_that_is_not_complete_waits(job: Path) -> None:
    path = job / FOLDER / EVENTS_FILE
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:-5])
    store = MemoryStore()
    assert send_all(job, store) == len(whole)
    assert not is_settled(job)
    with open(path, "ab") as file:
        file.write(last[-5:])
    assert send_all(job, store) == 1
    assert is_settled(job)


def test_a_point_of_many_figures_is_sent_in_parts(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        run = record.start("training", params={}, tags={})
        for epoch in range(3):
            run.log(report(epoch, names=METRICS_A_REQUEST))
        run.close("FINISHED")
    store = MemoryStore()
    send_all(tmp_path, store)
    (stored,) = store.runs.values()
    names = [f"loss{i}" for i in range(METRICS_A_REQUEST)]
    assert [name for name, *_ in stored.figures if name.startswith("loss")] == 3 * names
    assert store.calls.count("log") == 4


def test_what_is_refused_is_kept_and_takes_nothing_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with own_record(tmp_path) as record:
        run = record.start("training", params={}, tags={})
        for epoch in range(2):
            run.log(report(epoch, names=3))
        record.append(Filed("training", "absent.txt"))
        run.close("FINISHED")
    store = MemoryStore()
    store.refused_figures = {"loss1"}
    send_all(tmp_path, store)
    (stored,) = store.runs.values()
    assert stored.status == "FINISHED"
    assert [name for name, *_ in stored.figures if name.startswith("loss")] == 2 * ["loss0", "loss2"]
    kept = read_lines(tmp_path / FOLDER / REFUSED_FILE)
    assert [line["reason"].split(" ")[-1] for line in kept] == ["name", "name", "exist"]
    assert [point["values"] for line in kept[:2] for point in line["event"]["points"]] == [
        {"loss1": 1.0},
        {"loss1": 0.5},
    ]
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: MLflow refuses a part of {tmp_path} (no such name); it is kept in ")


def test_a_run_that_was_deleted_takes_no_more_calls_and_the_others_go_on(job: Path) -> None:
    store = MemoryStore()
    while len(read_sent(job).runs) < 3:
        Outbox(job, store).send_chunk()
    store.deleted = {read_sent(job).runs["trial1"]}
    send_all(job, store)
    assert store.calls_of_deleted == 1
    statuses = {run.name: run.status for run in store.runs.values()}
    assert statuses == {"sweep": "FINISHED", "trial0": "FINISHED", "trial1": "RUNNING"}
    assert is_settled(job)
    assert {line["event"]["run"] for line in read_lines(job / FOLDER / REFUSED_FILE)} == {"trial1"}


def test_the_children_of_a_run_that_was_deleted_are_kept(job: Path) -> None:
    store = MemoryStore()
    Outbox(job, store).send_chunk()
    sweep_id = read_sent(job).runs["sweep"]
    forget_what_was_sent(job)
    store.runs.clear()
    store.deleted = {sweep_id}
    send_all(job, store)
    assert {run.name: (run.status, run.parent_id) for run in store.runs.values()} == {
        "trial0": ("FINISHED", None),
        "trial1": ("FAILED", None),
    }


def test_a_record_stays_in_the_store_and_the_experiment_that_it_was_begun_in(job: Path) -> None:
    begin_sending(job, "http://other", "1")
    with pytest.raises(
        UserError, match="its record is in http://other, not in http://tracker; set MLFLOW_TR"
    ):
        send_all(job, MemoryStore())
    forget_what_was_sent(job)
    begin_sending(job, "http://tracker", "2")
    with pytest.raises(UserError, match="in experiment 2 of http://tracker, not in 1; set MLFLOW_EXPERIMENT"):
        send_all(job, MemoryStore())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"offset": 1, "open_runs": [], "newer": 1}'])
def test_a_note_of_what_was_sent_that_is_none_of_this_version_is_named(job: Path, text: str) -> None:
    (job / FOLDER / forward.SENT_FILE).write_text(text)
    with pytest.raises(UserError, match=r"sent\.json: damaged \(.*restore the file"):
        read_sent(job)


def test_a_warning_to_a_terminal_that_was_closed_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    forward.warn("nobody reads this")


@pytest.fixture
def alarm() -> Iterator[None]:
    """The handlers that the sender's process has; `_Forwarder.run` sets that of SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.signal(signal.SIGALRM, sender._time_is_over)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("alarm")
def test_the_last_notice_is_taken_though_nothing_can_be_sent_and_one_that_hangs_is_told(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    def hang(title: str, body: str) -> threading.Thread:
        titles.append(title)
        thread = threading.Thread(target=time.sleep, args=(5,), daemon=True)
        thread.start()
        return thread

    def fill_disk(self: object) -> int:
        os.write(end_of_job, b'{"what": "failed", "body": "no space"}\n')
        os.close(end_of_job)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sender, "send_beside", hang)
    monkeypatch.setattr(sender, "NOTICES_S", 0.1)
    monkeypatch.setattr(sender._Forwarder, "_send_chunk", fill_disk)
    lines, end_of_job = os.pipe()
    with own_record(job):
        pass
    with pytest.raises(SystemExit):
        sender._Forwarder(job, MemoryStore()).run(lines, ())
    os.close(lines)
    assert titles == [f"{job.name} failed"]
    assert f"1 notice of {job} could not be sent in 0.1 s" in capsys.readouterr().err


@pytest.mark.usefixtures("alarm")
def test_a_call_for_a_dead_neighbour_that_hangs_does_not_hold_the_sender(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender, "STUCK_S", 0.1)
    lines, end_of_job = os.pipe()

    def hang() -> None:
        os.close(end_of_job)
        time.sleep(60)

    store = MemoryStore(hang)
    begin_sending(job, store.shown_uri, store.experiment_id)
    own = job.parent / "own"
    own.mkdir()
    with own_record(own):
        pass
    sender._Forwarder(own, store).run(lines, ())
    os.close(lines)
    assert store.calls == ["begin"]
    assert "fails (no answer in 0.1 s)" in capsys.readouterr().err


def test_one_process_sends_at_a_time(job: Path) -> None:
    with sending_alone(job) as first, sending_alone(job) as second:
        assert (first, second) == (True, False)
    with sending_alone(job) as again:
        assert again


def test_figures_of_one_run_go_together_and_stay_before_what_follows_them() -> None:
    def logged(run: str, step: int) -> Logged:
        return Logged(run, (Point(step, 0, {"x": 1.0}),))

    events: list[Event] = [
        logged("a", 1),
        logged("b", 1),
        logged("a", 2),
        Ended("a", 3, "FINISHED"),
        logged("b", 2),
    ]
    steps = list(forward._steps(events))
    assert [type(step).__name__ + step.run for step in steps] == ["Loggeda", "Endeda", "Loggedb"]
    assert [point.step for point in steps[0].points] == [1, 2]  # type: ignore[union-attr]


def test_what_a_proxy_has_swallowed_is_sent_again_before_the_end(job: Path) -> None:
    """It answers as the store does, while nothing arrives."""
    whole = MemoryStore()
    send_all(job, whole)
    for kind in ("describe", "log", "tag"):
        for lost in range(whole.calls.count(kind)):
            forget_what_was_sent(job)
            store = Swallowing(kind, {lost})
            send_all(job, store)
            assert store.runs.keys() == whole.runs.keys()
            for key, run in whole.runs.items():
                assert sorted(store.runs[key].figures) == sorted(run.figures), (kind, lost)
                assert store.runs[key].params == run.params
                assert store.runs[key].tags == run.tags
                assert store.runs[key].status == run.status


def test_a_run_does_not_end_while_its_figures_are_swallowed(job: Path) -> None:
    store = Swallowing("log", range(1000))
    with pytest.raises(
        UnavailableError, match=r"it has confirmed \d+ figures of run .*, but does not have them"
    ):
        send_all(job, store)
    assert "end" not in store.calls
    store.swallowed = set()
    send_all(job, store)
    assert {run.status for run in store.runs.values()} == {"FINISHED", "FAILED"}


class Swallowing(MemoryStore):
    """Takes the calls of a kind with these numbers without doing anything."""

    def __init__(self, kind: str, swallowed: Collection[int]) -> None:
        super().__init__()
        self.kind, self.swallowed, self.number = kind, swallowed, count()

    def _is_swallowed(self, kind: str) -> bool:
        return kind == self.kind and next(self.number) in self.swallowed

    def describe(self, run_id: str, event: Started) -> None:
        if not self._is_swallowed("describe"):
            super().describe(run_id, event)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        if not self._is_swallowed("log"):
            super().log(run_id, points)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        if not self._is_swallowed("tag"):
            super().tag(run_id, tags)


def write_trials(folder: Path, count: int) -> Path:
    """Trials that are all open until the last has begun, as paused ones are."""
    folder.mkdir()
    with own_record(folder) as record:
        trials = [record.start(f"trial{i}", params={}, tags={}) for i in range(count)]
        for epoch in range(2):
            for trial in trials:
                trial.log(report(epoch))
        for trial in trials:
            trial.close("FINISHED")
    return folder


def test_what_the_sender_reads_and_notes_grows_as_the_record_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, noted = Counter[int](), Counter[int]()
    count = 0

    def reading(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
        for event, end in read_events(path, offset):
            read[count] += 1
            yield event, end

    def whole(path: Path, text: str) -> None:
        noted[count] += len(text)
        write_whole(path, text)

    def line(path: Path, values: Mapping[str, object]) -> None:
        noted[count] += len(json.dumps(values))
        append_line(path, values)

    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 4)
    monkeypatch.setattr(forward, "MAX_WHOLE", 8)
    monkeypatch.setattr(forward, "MAX_CHANGES", 1000)
    monkeypatch.setattr(forward, "read_events", reading)
    monkeypatch.setattr(forward, "write_whole", whole)
    monkeypatch.setattr(forward, "append_line", line)
    for count in (40, 160):
        assert send_all(write_trials(tmp_path / str(count), count), MemoryStore()) == 4 * count
    assert read[160] < 5 * read[40]
    assert noted[160] < 5 * noted[40]


@pytest.mark.parametrize("max_changes", [1, 3, 1000])
def test_changes_as_lines_say_what_the_whole_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_changes: int
) -> None:
    job, store = write_trials(tmp_path / "job", 20), MemoryStore()
    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 7)
    monkeypatch.setattr(forward, "MAX_CHANGES", max_changes)
    sent = []
    for max_whole in (0, 100):
        monkeypatch.setattr(forward, "MAX_WHOLE", max_whole)
        forget_what_was_sent(job) if sent else None
        outbox, states = Outbox(job, store), []
        while outbox.send_chunk():
            states.append(read_sent(job))
        sent.append(states)
    assert sent[0] == sent[1]
    assert len(store.runs) == 20


def test_a_kill_between_the_whole_file_and_the_end_of_its_changes_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = write_trials(tmp_path / "job", 9), MemoryStore()
    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 5)
    monkeypatch.setattr(forward, "MAX_WHOLE", 2)
    send_all(job, store)
    changes, sent = job / FOLDER / forward.CHANGES_FILE, read_sent(job)
    left = changes.read_text()
    forward._write_sent(job, sent)
    assert not changes.exists()
    changes.write_text(left)
    assert read_sent(job) == sent
    changes.write_text(left + '{"offset": 1')
    assert read_sent(job) == sent, "a torn line does not count"


def test_a_sender_goes_on_from_what_another_has_sent_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = write_trials(tmp_path / "job", 9), MemoryStore()
    monkeypatch.setattr(forward, "EVENTS_A_CHUNK", 5)
    monkeypatch.setattr(forward, "MAX_WHOLE", 2)
    senders = [Outbox(job, store), Outbox(job, store)]
    assert sum(senders[turn % 2].send_chunk() for turn in range(20)) == lines(job)
    assert all(run.status == "FINISHED" for run in store.runs.values())
    assert len(store.runs) == 9
