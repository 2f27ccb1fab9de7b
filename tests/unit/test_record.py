"""What a job writes down of its runs, and what becomes of the record of a job that was killed."""

import json
import math
import socket
from pathlib import Path

import pytest

from encsearch.errors import TrainingError, UserError
from encsearch.reports import Point, Report
from encsearch.tracking.outbox import record as record_module
from encsearch.tracking.outbox.events import (
    Dataset,
    Ended,
    Event,
    Filed,
    Logged,
    Started,
    Tagged,
    from_values,
    read_events,
    to_values,
)
from encsearch.tracking.outbox.forward import begin_sending, is_settled
from encsearch.tracking.outbox.reaper import reap, settle_siblings
from encsearch.tracking.outbox.record import (
    EVENTS_FILE,
    FOLDER,
    MAX_PARAM_LENGTH,
    OWNER_FILE,
    REAPED_TAG,
    Record,
    RunRecord,
    own_record,
)
from tests.unit.memory_store import MemoryStore


def report(epoch: int, mean_iou: float = 0.5, step: int | None = None) -> Report:
    return Report(
        epoch=epoch,
        step=100 * epoch if step is None else step,
        seconds=1.5,
        metrics={"mIoU": mean_iou, "train/loss": 0.25},
        class_iou={"road (wet)": 0.5},
    )


def start(record: Record, run: str = "training") -> RunRecord:
    return record.start(run, params={}, tags={})


def events(job: Path) -> list[Event]:
    return [event for event, _ in read_events(job / FOLDER / EVENTS_FILE)]


def values_of(job: Path, name: str) -> list[float]:
    logged = [event for event in events(job) if isinstance(event, Logged)]
    return [point.values[name] for event in logged for point in event.points if name in point.values]


def killed(job: Path, epochs: int = 2) -> Path:
    """A job whose process died in the middle of its run: its lock is free, nothing was closed."""
    with own_record(job) as record:
        run = start(record)
        for epoch in range(epochs):
            run.log(report(epoch))
        run.close("KILLED")
    path = job / FOLDER / EVENTS_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return job


@pytest.mark.parametrize(
    "event",
    [
        Started(
            "a", 1, "key", {"optim.lr": "0.1"}, {"kind": "x"}, "parent", Dataset("d", "f", "s", {"n": 1})
        ),
        Started("a", 1, "key", {}, {}),
        Logged("a", (Point(1, 2, {"x": math.inf, "y": -0.5}), Point(2, 3, {}))),
        Tagged("a", {"reason": "ü"}),
        Filed("a", "artifacts", "target"),
        Ended("a", 5, "FAILED"),
    ],
)
def test_an_event_is_the_same_when_it_is_read_again(event: Event) -> None:
    assert from_values(json.loads(json.dumps(to_values(event)))) == event


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(to_values(Tagged("a", {}))) + '\n{"kind": "Newer"}\n')
    events = read_events(path)
    assert next(events)[0] == Tagged("a", {})
    with pytest.raises(
        UserError, match=r"events\.jsonl: no event at byte 43 \(KeyError: 'Newer'\); the file is"
    ):
        next(events)


def test_figures_have_names_that_mlflow_takes_and_the_best_so_far(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        run = start(record)
        for epoch, mean_iou in enumerate([0.3, math.nan, 0.6, 0.2]):
            run.log(report(epoch, mean_iou))
        run.close("FINISHED")
    assert values_of(tmp_path, "best/mIoU") == [0.3, 0.3, 0.6, 0.6]
    assert math.isnan(values_of(tmp_path, "mIoU")[1])
    assert values_of(tmp_path, "IoU/road _wet_") == [0.5] * 4
    assert values_of(tmp_path, "epoch") == [0, 1, 2, 3]
    assert values_of(tmp_path, "best/train/loss") == []


def test_figures_between_reports_have_their_own_times_and_come_behind_the_score(tmp_path: Path) -> None:
    between = Point(step=5, time_ms=1234, values={"train/loss (step)": 0.1})
    with own_record(tmp_path) as record:
        run = start(record)
        run.log(Report(0, 10, 1.0, {"mIoU": 0.5}, points=(between,)))
        run.close("FINISHED")
    (logged,) = [event for event in events(tmp_path) if isinstance(event, Logged)]
    assert [(point.step, next(iter(point.values))) for point in logged.points] == [
        (10, "mIoU"),
        (5, "train/loss _step_"),
    ]
    assert logged.points[1].time_ms == 1234


def test_a_run_goes_on_in_another_process_behind_its_last_epoch(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        run = start(record)
        run.log(report(0, 0.4))
        run.log(report(1, 0.3))
        run.close("KILLED")
    with own_record(tmp_path) as record:
        assert record.main == "training"
        run = start(record)
        assert run.last_epoch == 1
        # A training that goes on tells its epochs again.
        for epoch in range(3):
            run.log(report(epoch, 0.1))
        run.close("FINISHED")
    assert values_of(tmp_path, "mIoU") == [0.4, 0.3, 0.1]
    assert values_of(tmp_path, "best/mIoU") == [0.4, 0.4, 0.4]
    assert len({event.key for event in events(tmp_path) if isinstance(event, Started)}) == 1


def test_a_summary_is_logged_again_only_when_it_changed(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        run = start(record)
        for mean_iou in (0.5, 0.5, 0.6):
            run.summarize(report(0, mean_iou, step=700))
        run.close("FINISHED")
    logged = [event for event in events(tmp_path) if isinstance(event, Logged)]
    assert [event.points[0].step for event in logged] == [0, 1]
    assert values_of(tmp_path, "mIoU") == [0.5, 0.6]


def test_params_are_texts_as_in_a_recipe_short_and_without_secrets(tmp_path: Path) -> None:
    params = {"a": None, "b": True, "c": 0.01, "d": "x" * 7000, "e": "http://me:pw@host:1/x"}
    with own_record(tmp_path) as record:
        record.start("training", params=params, tags={"source": "http://me:pw@host:1/x"}).close("FINISHED")
    started = events(tmp_path)[0]
    assert isinstance(started, Started)
    texts = {"a": "null", "b": "true", "c": "0.01", "d": "x" * MAX_PARAM_LENGTH, "e": "http://host:1/x"}
    assert started.params == texts
    assert started.tags == {"source": "http://host:1/x"}


def test_artifacts_are_named_relative_to_the_job_which_may_be_moved(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    with own_record(tmp_path) as record:
        run = record.start("training", params={}, tags={}, artifacts=folder)
        folder.mkdir()
        run.close("FINISHED")
        run.close("FAILED")  # a second call does nothing
    assert events(tmp_path)[1] == Filed("training", "artifacts")
    assert [event.status for event in events(tmp_path) if isinstance(event, Ended)] == ["FINISHED"]


def test_runs_that_are_open_at_the_end_are_closed(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        start(record, "sweep")
        start(record, "trial0").close("FINISHED")
    ended = {event.run: event.status for event in events(tmp_path) if isinstance(event, Ended)}
    assert ended == {"sweep": "KILLED", "trial0": "FINISHED"}


def test_what_cannot_be_written_ends_the_job_with_one_line(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        (tmp_path / FOLDER / EVENTS_FILE).mkdir()
        with pytest.raises(TrainingError, match=r"events\.jsonl: cannot be written \(Is a directory\)"):
            start(record)


def test_a_record_whose_beginning_is_lost_is_named(tmp_path: Path) -> None:
    killed(tmp_path)
    path = tmp_path / FOLDER / EVENTS_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"events\.jsonl: run training goes on .*, but was not begun"):
        reap(tmp_path)


def test_a_record_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "OWNER_WAIT_S", 0)
    with (
        own_record(tmp_path),
        pytest.raises(UserError, match="another process is recording this job"),
        own_record(tmp_path),
    ):
        raise AssertionError("not reached")
    with own_record(tmp_path):
        pass


def test_a_job_that_lives_is_not_reaped(tmp_path: Path) -> None:
    with own_record(tmp_path) as record:
        start(record)
        assert reap(tmp_path) is None
        assert record.open_runs() == ["training"]


def test_the_runs_of_a_dead_job_are_closed_with_a_reason_and_can_go_on(tmp_path: Path) -> None:
    killed(tmp_path)
    assert reap(tmp_path) == ["training"]
    tagged, ended = events(tmp_path)[-2:]
    assert isinstance(tagged, Tagged)
    assert tagged.tags[REAPED_TAG].startswith("its process was killed; closed by process")
    assert isinstance(ended, Ended)
    assert ended.status == "KILLED"
    assert reap(tmp_path) == []
    state = Record(tmp_path).find("training")
    assert state
    assert state.reaped
    with own_record(tmp_path) as record:
        start(record).close("FINISHED")
    last_tag = [event for event in events(tmp_path) if isinstance(event, Tagged)][-1]
    assert "its process was killed" in last_tag.tags[REAPED_TAG]
    assert "; it went on at " in last_tag.tags[REAPED_TAG]
    state = Record(tmp_path).find("training")
    assert state
    assert (state.status, state.reaped) == ("FINISHED", None)


def test_a_line_torn_by_the_kill_is_dropped(tmp_path: Path) -> None:
    killed(tmp_path)
    path = tmp_path / FOLDER / EVENTS_FILE
    path.write_bytes(path.read_bytes()[:-7])
    assert reap(tmp_path) == ["training"]
    assert values_of(tmp_path, "epoch") == [0]
    assert isinstance(events(tmp_path)[-1], Ended)


def test_dead_jobs_beside_a_job_are_closed_and_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MemoryStore()
    names = ("own", "dead", "elsewhere", "remote", "odd", "alive")
    jobs = {name: tmp_path / name for name in names}
    for name, job in jobs.items():
        job.mkdir()
        killed(job)
        begin_sending(job, "http://other" if name == "elsewhere" else store.shown_uri, store.experiment_id)
    owner = {"host": f"not {socket.gethostname()}", "pid": 1}
    (jobs["remote"] / FOLDER / OWNER_FILE).write_text(json.dumps(owner))
    (jobs["odd"] / FOLDER / OWNER_FILE).write_text("[]")
    with own_record(jobs["alive"]) as record:
        start(record)
        for _ in settle_siblings(jobs["own"], store):
            pass
        assert record.open_runs() == ["training"]
    assert [job.name for job in jobs.values() if is_settled(job)] == ["dead"]
    (run,) = store.runs.values()
    assert (run.name, run.status) == ("training", "KILLED")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: the record of {jobs['odd']} cannot be sent (")
