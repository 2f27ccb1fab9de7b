"""Close the runs of jobs whose process is dead as KILLED, with a tag that says who closed them."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from encsearch.errors import TrainingError, UserError, one_line
from encsearch.files import hold_lock
from encsearch.tracking.outbox.events import Ended, Tagged
from encsearch.tracking.outbox.forward import (
    EventStore,
    Outbox,
    is_settled,
    read_sent,
    sending_alone,
    warn,
)
from encsearch.tracking.outbox.record import (
    EVENTS_FILE,
    FOLDER,
    OWNER_FILE,
    OWNER_LOCK,
    REAPED_TAG,
    Record,
    now_ms,
)


def reap(job_folder: Path) -> list[str] | None:
    """Close the runs that a dead job has left open, and return their names; None while the job lives.

    The kernel releases the lock of a dead process, so whoever can take the lock knows that the job is dead.
    """
    with hold_lock(job_folder / FOLDER / OWNER_LOCK) as is_dead:
        if not is_dead:
            return None
        record = Record(job_folder)
        left = record.open_runs()
        for run in left:
            text = f"its process was killed; closed by process {os.getpid()} of {socket.gethostname()}"
            record.append(Tagged(run, {REAPED_TAG: text}))
            record.append(Ended(run, now_ms(), "KILLED"))
        return left


def settle_siblings(job_folder: Path, store: EventStore) -> Iterator[None]:
    """Close and send what dead jobs beside this one have left; each step of the iterator sends one part.

    Takes only records of the same store, begun on this machine: a lock may not cross machines, and that of a
    job elsewhere would look free. Raises UnavailableError; other failures of a record are only a warning.
    """
    for folder in sorted(path.parents[1] for path in job_folder.parent.glob(f"*/{FOLDER}/{EVENTS_FILE}")):
        try:
            if folder != job_folder and _is_left(folder, store) and reap(folder) is not None:
                yield from _send_in_parts(folder, store)
        except (OSError, ValueError, KeyError, TypeError, UserError, TrainingError) as error:
            warn(f"the record of {folder} cannot be sent ({one_line(error, None)})")


def _is_left(job_folder: Path, store: EventStore) -> bool:
    sent = read_sent(job_folder)
    if (sent.uri, sent.experiment_id) != (store.shown_uri, store.experiment_id) or is_settled(job_folder):
        return False
    owner = json.loads((job_folder / FOLDER / OWNER_FILE).read_text(encoding="utf-8"))
    return bool(owner["host"] == socket.gethostname())


def _send_in_parts(job_folder: Path, store: EventStore) -> Iterator[None]:
    outbox, is_done = Outbox(job_folder, store), False
    while not is_done:
        with sending_alone(job_folder) as is_alone:
            is_done = not is_alone or not outbox.send_chunk()
        yield
