"""The process that forwards a job's record to MLflow, and the job's handle to it.

The job and this process share nothing but the record: the job appends, this process reads. A server that
is dead, slow or hung holds up this process alone. It outlives a killed job, and reports that to MLflow. It
sends notices too, which the job hands to it.
"""

import json
import logging
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import NoReturn, TextIO

from encsearch.errors import PreflightError, TrainingError, UserError, guard_terminal, one_line
from encsearch.redaction import without_secrets, without_user
from encsearch.runner.monitor import publish_unsent
from encsearch.text import format_count, format_duration
from encsearch.tracking.outbox.forward import (
    EventStore,
    Outbox,
    UnavailableError,
    begin_sending,
    read_sent,
    sending_alone,
    unsent_events,
    warn,
)
from encsearch.tracking.outbox.notices import check_address, send_beside
from encsearch.tracking.outbox.reaper import reap, settle_siblings
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER, OWNER_WAIT_S
from encsearch.tracking.uris import resolve_uri

CRASH_FILE = "sender-crash.txt"
# A new SQLite file takes 20 s, a server that does not answer 10 s a request.
CONNECT_TIMEOUT_S = 180.0
POLL_S = 1.0
MAX_BACKOFF_S = 30.0
# How long the sender tries without success after its job has ended, and after its job was killed.
DRAIN_S, DRAIN_KILLED_S = 30.0, 120.0
MAX_DRAIN_BACKOFF_S = 5.0
# At the end, how long for the notices that are still under way.
NOTICES_S = 20.0
SPENT = "has spent a budget"
# Of characters, six bytes each at most: a line of a pipe is whole up to 4096 bytes.
MAX_NOTICE = 600
# A call to a database, unlike a call to a server, may hang for ever; an upload may take long.
STUCK_S = 600.0
# A shutdown of the machine gives all processes some time, and the job needs its part first.
TERMINATED_S = 20
FLUSH_POLL_S = 0.1


@dataclass(frozen=True)
class TrackingStore:
    """Where the job's runs go. `uri` may hold a password: it is for this process alone."""

    uri: str
    experiment_id: str


@contextmanager
def run_sender() -> Iterator["Sender"]:
    """Run a sender beside the block; at its end all is sent, or the sender has reported what is not.

    An error that leaves the block is a notice too. Raises UserError for an address of notices that is none.
    """
    check_address()
    sender = Sender(resolve_uri(None))
    try:
        yield sender
    except KeyboardInterrupt:
        sender.notify("was interrupted")
        raise
    except Exception as error:
        sender.notify("failed", one_line(error))
        raise
    finally:
        sender.close()


class Sender:
    """The job's handle. Nothing here imports mlflow, and only `store`, `run_ids` and `close` wait."""

    def __init__(self, uri: str) -> None:
        # Read now, since the working directory of a job may be deleted after its start.
        self.root = Path.cwd()
        self._uri = uri
        self._store: TrackingStore | None = None
        self._job_folder: Path | None = None
        self._stop_publishing: Callable[[], None] = lambda: None
        self._process = subprocess.Popen(
            # -P: with -m alone a file in the working directory, such as random.py, would be imported and run.
            [sys.executable, "-P", "-m", "encsearch.tracking.outbox.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Not in the terminal's group: a Ctrl-C ends the job, and the sender must still send that.
            start_new_session=True,
            env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        )

    def store(self) -> TrackingStore:
        """Wait until the store has answered. Raises PreflightError when it cannot be used."""
        if self._store is None:
            assert self._process.stdout
            if not select.select([self._process.stdout], [], [], CONNECT_TIMEOUT_S)[0]:
                raise PreflightError(
                    f"MLflow at {without_secrets(self._uri)} did not answer in "
                    f"{format_duration(CONNECT_TIMEOUT_S)}; check MLFLOW_TRACKING_URI and that the server "
                    "runs"
                )
            answer = json.loads(
                self._process.stdout.readline() or '{"refused": "the sender to MLflow was ended"}'
            )
            if "refused" in answer:
                raise PreflightError(answer["refused"])
            self._store = TrackingStore(self._uri, answer["experiment_id"])
        return self._store

    def follow(self, job_folder: Path) -> None:
        """Forward the record that this process writes in the folder from now on.

        Raises UserError when the record was begun in another store.
        """
        store = self.store()
        begin_sending(job_folder, without_user(store.uri), store.experiment_id)
        self._job_folder = folder = job_folder.absolute()
        self._stop_publishing = publish_unsent(folder.name, lambda: unsent_events(folder))
        self._send_line(str(folder))

    def notify(self, what: str, body: str = "") -> None:
        """Send people a notice about the job, if it has begun and they have said where to; never waits."""
        if self._job_folder:
            self._send_line(json.dumps({"what": what, "body": body[:MAX_NOTICE]}))

    def run_ids(self, timeout_s: float = 30) -> dict[str, str]:
        """Return MLflow's run ids by name: of all runs so far, or of those sent when the time is over."""
        assert self._job_folder
        path = self._job_folder / FOLDER / EVENTS_FILE
        size = path.stat().st_size
        deadline_s = time.monotonic() + timeout_s
        self._send_line(str(self._job_folder))  # wakes it
        while self._process.poll() is None and time.monotonic() < deadline_s:
            if read_sent(self._job_folder).offset >= size:
                break
            time.sleep(FLUSH_POLL_S)
        return dict(read_sent(self._job_folder).runs)

    def close(self) -> None:
        self._stop_publishing()
        if self._store is None:
            self._process.terminate()
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() and self._job_folder:
            warn(
                f"the sender to MLflow ended with code {self._process.returncode}; "
                f"`encsearch sync {self._job_folder}` sends what is left"
            )

    def _send_line(self, line: str) -> None:
        assert self._process.stdin
        # If the sender died, nobody reads this; `encsearch sync` sends what is left.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def main() -> None:
    """Run the sender; the end of stdin is the end of the job.

    A line on stdin is the job's folder, which wakes the sender, or a notice as JSON.
    """
    guard_terminal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _time_is_over)
    signal.signal(signal.SIGTERM, _time_is_over)
    answers = sys.stdout
    # Whatever MLflow prints goes to stderr: only answers belong on stdout.
    with suppress(_TimeOverError), redirect_stdout(sys.stderr):
        _forward(answers)
        # Nothing is left to interrupt, and an interpreter that ends would print what a handler raises.
        for signum in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)


def _forward(answers: TextIO) -> None:
    # Imported here: the job's process imports this module too, and mlflow costs it 5 s.
    from encsearch.tracking.mlflow import connect
    from encsearch.tracking.outbox.mlflow_store import MlflowStore

    # A failure of the store is one line, which this process writes; they write many, with tracebacks.
    for library in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    _leave_deleted_folder()
    try:
        store = MlflowStore(connect())
    except UserError as error:
        print(json.dumps({"refused": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"experiment_id": store.experiment_id}), file=answers, flush=True)
    lines = sys.stdin.fileno()
    if first := _read_lines(lines):
        _Forwarder(Path(first[0]), store).run(lines, first[1:])


def _leave_deleted_folder() -> None:
    """Leave a working directory that was deleted: MLflow 3.17 asks for it again and again."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


class _TimeOverError(BaseException):
    """The time is over. It is a BaseException, so that nothing takes it for an error of the store."""


def _time_is_over(signum: int, frame: FrameType | None) -> NoReturn:
    raise _TimeOverError


class _BusyError(UnavailableError):
    """Another process is sending the record."""


class _Forwarder:
    """Sends a job's record while the job lives, and the rest when it has ended."""

    def __init__(self, job_folder: Path, store: EventStore) -> None:
        self._job_folder, self._store = job_folder, store
        self._outbox = Outbox(job_folder, store)
        self._failure, self._has_warned = "", False
        self._ends_s = math.inf
        self._failed_s = -math.inf
        self._notices: list[Thread] = []
        self._has_told_end = False

    def run(self, lines: int, read: Sequence[str]) -> None:
        """Send until all is sent or the time is over.

        `lines` is the descriptor that ends with the job, `read` what came on it behind the job's folder.
        """
        signal.signal(signal.SIGTERM, self._terminate)
        self._take_notices(read)
        try:
            self._serve(lines)
            self._drain()
        except _TimeOverError:
            if self._ends_s < math.inf:
                sys.exit(128 + signal.SIGTERM)  # the job reports this code at its end
            warn(
                f"{format_count(unsent_events(self._job_folder), 'event')} of {self._job_folder} could not "
                f"be sent to MLflow at {self._store.shown_uri} ({self._failure}); "
                f"`encsearch sync {self._job_folder}` sends them"
            )
        except (UserError, TrainingError) as error:
            warn(str(error))
            sys.exit(1)
        except Exception as error:
            path = self._job_folder / FOLDER / CRASH_FILE
            with suppress(OSError):  # a full disk may be the failure itself
                path.write_text(without_secrets(traceback.format_exc()), encoding="utf-8")
            warn(f"the sender to MLflow failed ({type(error).__name__}; more in {path})")
            sys.exit(1)
        finally:
            self._end_notices(lines)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        """Go on for TERMINATED_S: the job gets the signal at the same time, and may still write events."""
        self._ends_s = time.monotonic() + TERMINATED_S
        signal.alarm(TERMINATED_S)

    def _serve(self, lines: int) -> None:
        siblings = settle_siblings(self._job_folder, self._store)
        wait_s, backoff_s = 0.0, 0.0
        while not self._has_ended(lines, wait_s):
            try:
                wait_s = 0.0 if self._send_chunk() else POLL_S
                backoff_s = 0.0
                if time.monotonic() - self._failed_s > MAX_BACKOFF_S:
                    self._end_failure()
                if wait_s:
                    with self._limited():
                        next(siblings, None)
            except _BusyError:
                wait_s = POLL_S
            except UnavailableError as error:
                self._warn_once(error)
                backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s or POLL_S)
                wait_s = backoff_s * random.uniform(0.5, 1.0)

    def _drain(self) -> None:
        """Close what a killed job left open, and send the rest."""
        patience_s = DRAIN_S
        if self._reap():
            patience_s = DRAIN_KILLED_S
        if not self._has_told_end:
            self._notify("was killed")
        gives_up_s = time.monotonic() + patience_s
        backoff_s = FLUSH_POLL_S
        while True:
            try:
                if not self._send_chunk():
                    self._end_failure()
                    return
                gives_up_s, backoff_s = time.monotonic() + patience_s, FLUSH_POLL_S
            except UnavailableError as error:
                self._failure = str(error)
                if time.monotonic() > gives_up_s:
                    raise _TimeOverError from None
                time.sleep(backoff_s)
                backoff_s = min(MAX_DRAIN_BACKOFF_S, 2 * backoff_s)

    def _reap(self) -> list[str] | None:
        """Reap the job, with patience: the kernel closes the pipe to a killed job just before its lock."""
        deadline_s = time.monotonic() + OWNER_WAIT_S
        while (left := reap(self._job_folder)) is None and time.monotonic() < deadline_s:
            time.sleep(FLUSH_POLL_S)
        return left

    def _has_ended(self, lines: int, wait_s: float | None) -> bool:
        """Whether the job has ended; waits for a line from it, at most `wait_s` if that is given."""
        if not select.select([lines], [], [], wait_s)[0]:
            return False
        read = _read_lines(lines)
        self._take_notices(read)
        return not read

    def _take_notices(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line.startswith("{"):
                self._notify(**json.loads(line))

    def _end_notices(self, lines: int) -> None:
        """Take the job's last notice even if nothing more can be sent to MLflow, and wait for all."""
        while self._ends_s == math.inf and not self._has_ended(lines, None):
            pass
        deadline_s = time.monotonic() + NOTICES_S
        for notice in self._notices:
            notice.join(max(0.0, deadline_s - time.monotonic()))
        if late := sum(notice.is_alive() for notice in self._notices):
            wait = format_duration(NOTICES_S)
            warn(f"{format_count(late, 'notice')} of {self._job_folder} could not be sent in {wait}")

    def _notify(self, what: str, body: str = "") -> None:
        self._has_told_end = what != SPENT
        place = f"{self._job_folder} on {socket.gethostname()}"
        self._notices.append(send_beside(f"{self._job_folder.name} {what}", f"{body}\n{place}".strip()))

    def _send_chunk(self) -> int:
        with sending_alone(self._job_folder) as is_alone, self._limited():
            if not is_alone:
                raise _BusyError("another process is sending it")
            _leave_deleted_folder()
            return self._outbox.send_chunk()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Make a call in the block that hangs fail after a while, as if the store did not answer."""
        limit_s = min(STUCK_S, self._ends_s - time.monotonic())
        if limit_s <= 0:
            raise _TimeOverError
        try:
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            yield
        except _TimeOverError:
            raise UnavailableError(f"no answer in {format_duration(limit_s)}") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end_failure(self) -> None:
        if self._has_warned:
            warn(f"MLflow at {self._store.shown_uri} takes the record again")
        self._failure, self._has_warned = "", False

    def _warn_once(self, error: UnavailableError) -> None:
        """Warn once: an outage is one line, and so is a store that fails now and then."""
        if not self._failure:
            warn(
                f"MLflow at {self._store.shown_uri} fails ({error}); the job goes on, "
                "and its record is sent later"
            )
            self._has_warned = True
        self._failure, self._failed_s = str(error), time.monotonic()


def _read_lines(descriptor: int) -> list[str]:
    """Read what has come, after waiting for a line; none at the end. Lines this short are never cut."""
    return os.read(descriptor, 65536).decode().splitlines()


if __name__ == "__main__":
    main()
