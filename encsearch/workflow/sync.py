"""`encsearch sync`: send the records that a dead job or an absent store has left unsent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.errors import TrainingError, UserError
from encsearch.text import format_count
from encsearch.tracking.mlflow import connect
from encsearch.tracking.outbox.forward import (
    EventStore,
    Outbox,
    UnavailableError,
    refused_parts,
    sending_alone,
    unsent_events,
)
from encsearch.tracking.outbox.mlflow_store import MlflowStore
from encsearch.tracking.outbox.reaper import reap
from encsearch.tracking.outbox.record import find_jobs

RETRY_S = 2.0
SAY_S = 2.0  # between two lines that say how far it is


@dataclass(frozen=True)
class Synced:
    """The result for one job: events sent and refused now, runs closed because their process was dead.

    `unsent` counts the events left, None if the record cannot be read; `reason` says why. A job that
    `is_alive` sends its own events.
    """

    folder: str
    sent: int = 0
    refused: int = 0
    reaped: tuple[str, ...] = ()
    unsent: int | None = 0
    reason: str = ""
    is_alive: bool = False


def sync(folders: Sequence[Path], wait_s: float, say: Callable[[str], None]) -> list[Synced]:
    """Close the runs of dead jobs and send all unsent events, from jobs' folders or folders of jobs.

    A store that fails is retried for `wait_s` in all. Raises UserError for a folder without a record,
    PreflightError when the store cannot be used.
    """
    jobs = [job for folder in folders for job in find_jobs(folder)]
    store = MlflowStore(connect())
    deadline_s = time.monotonic() + wait_s
    return [_sync_readable(job, store, deadline_s, say) for job in dict.fromkeys(jobs)]


def _sync_readable(job: Path, store: EventStore, deadline_s: float, say: Callable[[str], None]) -> Synced:
    """Sync a job; a damaged record, or another user's, must not hold up the others."""
    try:
        return _sync(job, store, deadline_s, say)
    except (UserError, TrainingError, OSError) as error:
        return Synced(str(job), unsent=None, reason=str(error))


def _sync(job: Path, store: EventStore, deadline_s: float, say: Callable[[str], None]) -> Synced:
    reaped = reap(job)
    if reaped is None:
        reason = "the job is running and sends its record itself"
        return Synced(str(job), unsent=unsent_events(job), reason=reason, is_alive=True)
    for run in reaped:
        say(f"{job}: closed {run}, whose process was killed")
    known = refused_parts(job)
    sent, reason = _send(job, store, deadline_s, say)
    refused = refused_parts(job) - known
    return Synced(str(job), sent, refused, tuple(reaped), unsent_events(job), reason)


def _send(job: Path, store: EventStore, deadline_s: float, say: Callable[[str], None]) -> tuple[int, str]:
    """Send the events; return how many were sent, and why the others were not."""
    sent, failure = 0, ""
    outbox = Outbox(job, store)
    said_s = time.monotonic()
    while True:
        try:
            with sending_alone(job) as is_alone:
                if not is_alone:
                    raise UnavailableError("another process is sending it")
                while count := outbox.send_chunk():
                    sent += count
                    if time.monotonic() - said_s > SAY_S:
                        said_s = time.monotonic()
                        say(f"{job}: {format_count(sent, 'event')} sent")
            return sent, ""
        except UserError as error:
            return sent, str(error)
        except UnavailableError as error:
            if not failure:
                say(f"{job}: {error}; trying again")
            failure = str(error)
            if time.monotonic() + RETRY_S > deadline_s:
                return sent, failure
            time.sleep(RETRY_S)
