"""What a job writes down arrives in MLflow, row for row: over kills, outages and deleted runs."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from encsearch.cli.main import main
from encsearch.errors import TrainingError, UserError
from encsearch.reports import Point, Report
from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.outbox.events import Dataset
from encsearch.tracking.outbox.forward import UnavailableError, is_settled, read_sent, refused_parts
from encsearch.tracking.outbox.mlflow_store import KEY_TAG, MlflowStore
from encsearch.tracking.outbox.record import REAPED_TAG, Record, RunRecord, own_record
from encsearch.tracking.outbox.sender import run_sender
from encsearch.workflow.sync import sync
from tests.e2e.shell import clean_environment, read_until
from tests.e2e.stored import send_once, send_under_kills, stored, written
from tests.forward import send_all

EXPERIMENT = "toys"
KILLS = 20
LOCKED_S = 40  # MLflow waits for a lock for a while before it fails
SETTLED_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Tracking:
    database = shutil.copy(empty_database, tmp_path_factory.mktemp("store"))
    return connect(f"sqlite:///{database}", EXPERIMENT)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "job"
    folder.mkdir(parents=True)
    return folder


def report(epoch: int) -> Report:
    metrics = {"mIoU": float("nan") if epoch == 1 else epoch / 40, "train/loss": float("inf"), "lr": 0.1}
    points = tuple(Point(10 * epoch + i, 1000 + i, {"step/loss": 1 / (epoch + i + 1)}) for i in range(5))
    return Report(epoch, 10 * epoch, 1.5, metrics, {"road (wet)": 0.25}, points=points)


def begin(record: Record, run: str = "sweep", parent: str | None = None) -> RunRecord:
    data = Dataset("scenes", "f" * 64, "scenes", {"images": 48})
    params = {f"param{i}": i for i in range(120)} | {"empty": "", "none": None}
    return record.start(run, params=params, tags={"kind": "x"}, parent=parent, dataset=data)


def write_job(folder: Path) -> None:
    """A parent, a child that ends, and one that goes on after its end."""
    (folder / "notes.txt").write_text("kept")
    with own_record(folder) as record:
        parent = begin(record)
        for name, status in (("trial0", "FINISHED"), ("trial1", "FAILED")):
            child = begin(record, name, "sweep")
            for epoch in range(40):
                if name == "trial1" and epoch == 20:
                    child.close("KILLED")
                    child = begin(record, name, "sweep")
                child.log(report(epoch))
            child.file(folder / "notes.txt")
            child.note({"encsearch.state": status})
            child.close("FINISHED" if status == "FINISHED" else "FAILED")
        parent.summarize(report(2))
        parent.close("FINISHED")


def test_senders_that_are_killed_at_any_moment_store_every_row_once(
    tracking: Tracking, tmp_path: Path
) -> None:
    jobs = [tmp_path / "first"]
    jobs[0].mkdir()
    write_job(jobs[0])
    longest_s = send_once(jobs[0], tracking.uri, tracking.experiment_id)
    killed = 0
    while killed < KILLS:
        jobs.append(tmp_path / f"job{len(jobs)}")
        jobs[-1].mkdir()
        write_job(jobs[-1])
        killed += send_under_kills(
            jobs[-1], tracking.uri, tracking.experiment_id, longest_s / 2, seed=len(jobs)
        )
    for folder in jobs:
        assert stored(tracking, folder) == written(folder)
        assert refused_parts(folder) == 0


def test_an_outage_holds_up_nothing_and_is_a_line_at_its_begin_and_its_end(
    serve: Callable[[int], BaseWSGIServer],
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = serve(0)
    uri = f"http://127.0.0.1:{server.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with run_sender() as sender:
        sender.store()
        with own_record(job) as record:
            sender.follow(job)
            run = begin(record)
            run.log(report(0))
            assert list(sender.run_ids()) == ["sweep"]
            stop(server)
            for epoch in range(1, 40):
                run.log(report(epoch))
            assert sender.run_ids(timeout_s=3).keys() == {"sweep"}
            assert not is_settled(job)
            serve(server.port)
            run.close("FINISHED")
    assert stored(connect(uri, "encsearch"), job) == written(job)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: MLflow at {uri} fails ([Errno 111] Connection refused); the job goes on, and its record"
        " is sent later",
        f"warning: MLflow at {uri} takes the record again",
    ]


def test_what_a_proxy_confirms_and_drops_is_sent_again(
    serve: Callable[[int], BaseWSGIServer],
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """MLflow's answer to figures is `{}`, as is that of a proxy which drops everything for a while."""
    server = serve(0)
    drops = threading.Event()

    def proxy(environ: dict[str, Any], start_response: Any) -> Any:
        if drops.is_set():
            start_response("200 OK", [("Content-Type", "application/json")])
            return [b"{}"]
        return server.app(environ, start_response)

    front = make_server("127.0.0.1", 0, proxy, threaded=True)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{front.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with run_sender() as sender, own_record(job) as record:
        sender.follow(job)
        run = begin(record)
        for epoch in range(30):
            if epoch in (10, 20):
                sender.run_ids()
                drops.set() if epoch == 10 else drops.clear()
            run.log(report(epoch))
        drops.set()
        run.close("FINISHED")
        sender.run_ids(timeout_s=3)
        assert not is_settled(job)
        for arguments in (["runs", "list"], ["sync", str(job)]):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 3
        drops.clear()
    stop(front)
    assert is_settled(job)
    direct = f"http://127.0.0.1:{server.port}"
    assert stored(connect(direct, "encsearch"), job) == written(job)
    err = capfd.readouterr().err
    assert err.count("it answers, but not as MLflow does") == 3
    assert "Traceback" not in err


def test_a_database_that_is_locked_is_a_line_at_its_begin_and_its_end(
    tracking: Tracking, job: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with run_sender() as sender, own_record(job) as record:
        sender.follow(job)
        run = begin(record)
        sender.run_ids()
        lock = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"), isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        run.log(report(0))
        sender.run_ids(timeout_s=LOCKED_S)
        assert not is_settled(job)
        lock.execute("ROLLBACK")
        lock.close()
        run.log(report(1))
        run.close("FINISHED")
    assert stored(tracking, job) == written(job)
    begun, ended = capfd.readouterr().err.splitlines()
    assert begun.startswith(f"warning: MLflow at {tracking.uri} fails (database is locked); ")
    assert ended == f"warning: MLflow at {tracking.uri} takes the record again"


JOB = """
import sys, time
from pathlib import Path
from encsearch.reports import Report
from encsearch.tracking.outbox.record import own_record
from encsearch.tracking.outbox.sender import run_sender
job = Path(sys.argv[1])
with run_sender() as sender:
    sender.store()
    assert "mlflow" not in sys.modules
    with own_record(job) as record:
        sender.follow(job)
        run = record.start("training", params={}, tags={})
        run.log(Report(0, 10, 1.5, {"mIoU": 0.5}))
        print("ready", flush=True)
        time.sleep(600)
"""


def test_a_killed_job_is_closed_by_its_sender_and_its_dead_neighbour_too(
    tracking: Tracking, job: Path
) -> None:
    neighbour = job.parent / "neighbour"
    neighbour.mkdir()
    with running(neighbour, tracking) as (_, sender):
        sender.kill()
    with running(job, tracking) as (process, sender):
        deadline_s = time.monotonic() + SETTLED_TIMEOUT_S
        while not is_settled(neighbour):
            assert time.monotonic() < deadline_s, f"{read_sent(neighbour)}"
            time.sleep(0.2)
        process.kill()
        sender.wait(SETTLED_TIMEOUT_S)
        assert process.stderr
        assert process.stderr.read() == ""
    for folder in (neighbour, job):
        (run,) = stored(tracking, folder).values()
        assert run.status == "KILLED"
        tags = tracking.client.get_run(read_sent(folder).runs["training"]).data.tags
        assert tags[REAPED_TAG].startswith("its process was killed; closed by process ")


def test_people_hear_how_a_job_ends(
    tracking: Tracking,
    job: Path,
    notices: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with run_sender() as sender, own_record(job):
        sender.follow(job)
        sender.notify("has spent a budget", "budget.epochs = 9")
        sender.notify("finished", "mIoU 81.20 %")

    def fail() -> None:
        with run_sender() as sender, own_record(job):
            sender.follow(job)
            raise TrainingError("3 trials in a row failed: no memory")

    with pytest.raises(TrainingError):
        fail()
    place = f"{job} on {socket.gethostname()}"
    told = sorted((notice["title"], notice["message"]) for notice in notices)
    assert told == [
        ("job failed", f"3 trials in a row failed: no memory\n{place}"),
        ("job finished", f"mIoU 81.20 %\n{place}"),
        ("job has spent a budget", f"budget.epochs = 9\n{place}"),
    ]
    with running(job, tracking) as (process, sender_process):
        process.kill()
        sender_process.wait(SETTLED_TIMEOUT_S)
    assert notices[-1]["title"] == "job was killed"
    assert capfd.readouterr().err == ""


def test_an_address_that_does_not_answer_costs_one_warning(
    tracking: Tracking, job: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("ENCSEARCH_NOTIFY_URL", "json://user:hidden@127.0.0.1:9/hook")
    with run_sender() as sender, own_record(job):
        sender.follow(job)
        sender.notify("finished")
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: the notice 'job finished' could not be sent (A Connection error ")
    assert "hidden" not in warning


@pytest.mark.parametrize("url", ["hidden", "pigeon://hidden", "slack://hidden", "hidden:x@pigeon://loft"])
def test_an_address_that_is_none_is_refused_before_a_job_starts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCSEARCH_NOTIFY_URL", url)
    with (
        pytest.raises(UserError, match="ENCSEARCH_NOTIFY_URL: no address that apprise can use") as refused,
        run_sender(),
    ):
        pass
    assert "hidden" not in str(refused.value)


def test_sync_closes_and_sends_what_a_job_and_its_sender_have_left(
    tracking: Tracking, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with own_record(job) as record:
        begin(record)
        (left,) = sync([job], 0, print)
        assert (left.is_alive, left.sent, left.unsent) == (True, 0, 1)
    (done,) = sync([job.parent], 0, print)
    assert (done.sent, done.unsent, done.reason) == (2, 0, "")
    assert stored(tracking, job) == written(job)


def test_what_was_deleted_in_mlflow_is_refused_or_waits(tracking: Tracking, job: Path) -> None:
    experiment = connect(tracking.uri, "other")
    store = MlflowStore(experiment)
    with own_record(job) as record:
        parent = begin(record)
        child = begin(record, "trial0", "sweep")
        send_all(job, store)
        experiment.client.delete_experiment(experiment.experiment_id)
        child.log(report(0))
        with pytest.raises(UnavailableError, match="experiment other is deleted; restore it"):
            send_all(job, store)
        experiment.client.restore_experiment(experiment.experiment_id)
        send_all(job, store)
        experiment.client.delete_run(read_sent(job).runs["trial0"])
        child.log(report(1))
        child.close("FINISHED")
        parent.close("FINISHED")
        send_all(job, store)
    assert refused_parts(job) == 2
    (run_id,) = read_sent(job).runs.values()
    assert experiment.client.get_run(run_id).info.status == "FINISHED"


def test_a_storage_of_artifacts_that_fails_is_tried_again(
    tracking: Tracking, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    experiment = tracking.client.create_experiment("in S3", artifact_location="s3://bucket/files")
    (job / "notes.txt").write_text("kept")
    with own_record(job) as record:
        run = begin(record)
        run.file(job / "notes.txt")
        run.close("FINISHED")
    with pytest.raises(UnavailableError, match="Could not connect to the endpoint"):
        send_all(job, MlflowStore(replace(tracking, experiment_id=experiment)))
    assert refused_parts(job) == 0


def test_a_file_that_is_too_large_for_a_proxy_is_kept_and_the_rest_goes_on(
    tracking: Tracking, job: Path
) -> None:
    class TooLarge(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(413)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), TooLarge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    location = f"http://127.0.0.1:{server.server_port}/files"
    experiment = tracking.client.create_experiment("behind a proxy", artifact_location=location)
    (job / "notes.txt").write_text("large")
    with own_record(job) as record:
        run = begin(record)
        run.file(job / "notes.txt")
        run.close("FINISHED")
    send_all(job, MlflowStore(replace(tracking, experiment_id=experiment)))
    server.shutdown()
    assert refused_parts(job) == 1
    (stored_run,) = tracking.client.search_runs([experiment])
    assert stored_run.info.status == "FINISHED"


def test_a_run_that_a_hung_server_made_twice_is_one_in_the_end(tracking: Tracking, job: Path) -> None:
    # Only what is behind a server has twins: in SQLite nothing sends a request again.
    served = replace(tracking, uri="http://tracker.example")
    with own_record(job) as record:
        run = begin(record)
        send_all(job, MlflowStore(served))
        state = record.find("sweep")
        assert state
        late = tracking.client.create_run(tracking.experiment_id, tags={KEY_TAG: state.started.key})
        run.close("FINISHED")
        send_all(job, MlflowStore(served))
    assert tracking.client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert stored(tracking, job) == written(job)


@contextmanager
def running(job: Path, tracking: Tracking) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A process that records in a folder, and its sender; both are dead afterwards."""
    variables = {"MLFLOW_TRACKING_URI": tracking.uri, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(job)],
        env=clean_environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    read_until(process, "stdout", lambda line: line == "ready\n")
    (sender,) = psutil.Process(process.pid).children()
    try:
        yield process, sender
    finally:
        process.kill()
        process.wait()
        with suppress(psutil.NoSuchProcess):
            sender.kill()


@pytest.fixture
def serve(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], BaseWSGIServer]]:
    """Starts MLflow's server over the store in a thread of this process, on a given port or a free one."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", tracking.uri)
    root = Path(tracking.uri.removeprefix("sqlite:///")).parent / "served"
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", root.as_uri())
    from mlflow.server import app

    servers: list[BaseWSGIServer] = []

    def start_server(port: int) -> BaseWSGIServer:
        servers.append(make_server("127.0.0.1", port, app, threaded=True))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start_server
    for server in servers:
        stop(server)


def stop(server: BaseWSGIServer) -> None:
    """A second call does nothing."""
    server.shutdown()
    server.server_close()
