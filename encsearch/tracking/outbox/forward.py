"""Forward a job's events to the tracking store: each exactly once, in order, after any crash.

The offset is noted after a chunk was sent. A crash in between sends the chunk again, which changes
nothing: a run is looked up by its key before it is created, and MLflow identifies a metric by key, time,
step and value.

record/sent.json       how far the sender has come, and the MLflow run id of each run
record/sender.lock     one process sends at a time
record/refused.jsonl   events that the store will never take, with the reason; a crash may repeat a line
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from encsearch.errors import UserError, for_terminal, one_line
from encsearch.files import append_line, hold_lock, read_lines, write_whole
from encsearch.reports import Point
from encsearch.tracking.outbox.events import (
    Ended,
    Event,
    Filed,
    Logged,
    Started,
    Tagged,
    read_events,
    to_values,
)
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER

SENT_FILE, SENDER_LOCK, REFUSED_FILE = "sent.json", "sender.lock", "refused.jsonl"
EVENTS_A_CHUNK = 200
METRICS_A_REQUEST = 500


class UnavailableError(Exception):
    """The store does not answer now; the same call may succeed later."""


class EventRefusedError(Exception):
    """The store will never take this event."""


class GoneError(EventRefusedError):
    """The run was deleted in the store, and takes nothing more."""


class EventStore(Protocol):
    """Where runs are kept. Every call may be repeated; each may raise the three errors above."""

    @property
    def shown_uri(self) -> str:
        """The store's URI without secrets."""
        ...

    @property
    def experiment_id(self) -> str: ...

    def begin(self, event: Started, parent_id: str | None, known_id: str | None) -> str:
        """Create the run of `event.key`, or reopen it; return its id, which is `known_id` if given."""
        ...

    def describe(self, run_id: str, event: Started) -> None:
        """Give the run its tags, its dataset, and the params that it lacks."""
        ...

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Log at most METRICS_A_REQUEST figures in all."""
        ...

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None: ...

    def store_files(self, run_id: str, path: Path, target: str) -> None: ...

    def end(self, run_id: str, event: Ended) -> None: ...


@dataclass(frozen=True)
class Sent:
    """`offset` is in bytes of the events; `runs` are MLflow's run ids by the names of the job's runs.

    `open_runs` are the runs whose begin was sent and whose end was not.
    """

    offset: int = 0
    uri: str = ""
    experiment_id: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    open_runs: tuple[str, ...] = ()


def read_sent(job_folder: Path) -> Sent:
    """Read how far the sender has come; an empty `Sent` if it has sent nothing yet.

    Raises UserError for a file that is damaged.
    """
    path = job_folder / FOLDER / SENT_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Sent(**{**values, "open_runs": tuple(values["open_runs"])})
    except FileNotFoundError:
        return Sent()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it is damaged, or of another version "
            "of encsearch"
        ) from None


def begin_sending(job_folder: Path, shown_uri: str, experiment_id: str) -> None:
    """Note where a new record goes. Raises UserError for a record that was begun in another store."""
    sent = read_sent(job_folder)
    if not sent.uri:
        _write_sent(job_folder, Sent(uri=shown_uri, experiment_id=experiment_id))
    elif sent.uri != shown_uri:
        raise UserError(
            f"{job_folder}: its record is in {sent.uri}, not in {shown_uri}; set MLFLOW_TRACKING_URI to "
            f"that (if the store was moved, change the uri in {FOLDER}/{SENT_FILE})"
        )
    elif sent.experiment_id != experiment_id:
        raise UserError(
            f"{job_folder}: its record is in experiment {sent.experiment_id} of {shown_uri}, not in "
            f"{experiment_id}; set MLFLOW_EXPERIMENT_NAME to that one's name"
        )


def unsent_events(job_folder: Path) -> int:
    return sum(1 for _ in read_events(job_folder / FOLDER / EVENTS_FILE, read_sent(job_folder).offset))


def refused_parts(job_folder: Path) -> int:
    """Count the refusals of the store so far: events, and single figures."""
    return len(read_lines(job_folder / FOLDER / REFUSED_FILE))


def sending_alone(job_folder: Path) -> AbstractContextManager[bool]:
    """Hold the sender's lock until the block ends; the value is False if another process has it."""
    return hold_lock(job_folder / FOLDER / SENDER_LOCK)


def send_chunk(job_folder: Path, store: EventStore) -> int:
    """Send the next events, at most EVENTS_A_CHUNK; return their number.

    The caller holds the lock. Raises UnavailableError; UserError for a record of another store.
    """
    begin_sending(job_folder, store.shown_uri, store.experiment_id)
    sent = read_sent(job_folder)
    chunk = _next_chunk(job_folder, sent.offset)
    if not chunk:
        return 0
    runs = dict(sent.runs)
    for events in _steps([event for event, _ in chunk]):
        _send(events, runs, store, job_folder)
    is_open = dict.fromkeys(sent.open_runs, True)
    for event, _ in chunk:
        if isinstance(event, Started | Ended):
            is_open[event.run] = isinstance(event, Started)
    still_open = tuple(run for run, still in is_open.items() if still)
    _write_sent(job_folder, replace(sent, offset=chunk[-1][1], runs=runs, open_runs=still_open))
    return len(chunk)


def is_settled(job_folder: Path) -> bool:
    """Whether all was sent and no run is open; does not read the events."""
    path = job_folder / FOLDER / EVENTS_FILE
    sent = read_sent(job_folder)
    return not path.exists() or (sent.offset == path.stat().st_size and not sent.open_runs)


def warn(text: str) -> None:
    """Print a line on stderr, if anyone reads it: a pipe's reader may have died, a terminal may be closed."""
    with suppress(OSError):
        print(for_terminal(f"warning: {text}".replace("\n", "\\n")), file=sys.stderr, flush=True)


def _next_chunk(job_folder: Path, offset: int) -> list[tuple[Event, int]]:
    """Read the next chunk. An upload is a chunk of its own, so that no other failure repeats it."""
    chunk: list[tuple[Event, int]] = []
    for event, end in islice(read_events(job_folder / FOLDER / EVENTS_FILE, offset), EVENTS_A_CHUNK):
        if isinstance(event, Filed):
            return chunk or [(event, end)]
        chunk.append((event, end))
    return chunk


def _steps(events: Sequence[Event]) -> Iterator[Event]:
    """Merge consecutive figures of a run into one event; the order within a run stays."""
    waiting: dict[str, list[Point]] = {}
    for event in events:
        if isinstance(event, Logged):
            waiting.setdefault(event.run, []).extend(event.points)
            continue
        if event.run in waiting:
            yield Logged(event.run, tuple(waiting.pop(event.run)))
        yield event
    for run, points in waiting.items():
        yield Logged(run, tuple(points))


def _send(event: Event, runs: dict[str, str], store: EventStore, job_folder: Path) -> None:
    try:
        if isinstance(event, Started):
            parent_id = runs.get(event.parent) if event.parent else None
            runs[event.run] = store.begin(event, parent_id, runs.get(event.run))
            store.describe(runs[event.run], event)
        elif event.run not in runs:
            raise EventRefusedError("its run was refused or deleted")
        elif isinstance(event, Logged):
            _send_points(event, runs[event.run], store, job_folder)
        elif isinstance(event, Tagged):
            store.tag(runs[event.run], event.tags)
        elif isinstance(event, Filed):
            store.store_files(runs[event.run], _inside(job_folder, event.path), event.target)
        else:
            store.end(runs[event.run], event)
    except EventRefusedError as error:
        if isinstance(error, GoneError):
            runs.pop(event.run, None)
        _keep_refused(event, error, job_folder)


def _inside(job_folder: Path, path: str) -> Path:
    """Resolve a path of the record. Raises EventRefusedError for a path out of the job's folder.

    Whoever may write a record must not make others, who send or reap it, upload their own files.
    """
    found = job_folder / path
    for file in (found, *found.rglob("*")):
        if not file.resolve().is_relative_to(job_folder.resolve()):
            raise EventRefusedError(f"{file} leads out of the job's folder")
    return found


def _send_points(event: Logged, run_id: str, store: EventStore, job_folder: Path) -> None:
    for batch in _batches(event.points):
        try:
            store.log(run_id, batch)
        except GoneError:
            raise
        except EventRefusedError:
            # The figures are sent one by one: one that is refused must not keep the others out.
            for point in batch:
                for name, value in point.values.items():
                    single = replace(point, values={name: value})
                    try:
                        store.log(run_id, [single])
                    except EventRefusedError as error:
                        _keep_refused(Logged(event.run, (single,)), error, job_folder)


def _batches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Cut the points into batches of at most METRICS_A_REQUEST figures; a large point is divided."""
    batch: list[Point] = []
    room = METRICS_A_REQUEST
    for point in points:
        values = list(point.values.items())
        while values:
            part, values = values[:room], values[room:]
            batch.append(replace(point, values=dict(part)))
            room -= len(part)
            if not room:
                yield batch
                batch, room = [], METRICS_A_REQUEST
    if batch:
        yield batch


def _keep_refused(event: Event, error: EventRefusedError, job_folder: Path) -> None:
    path = job_folder / FOLDER / REFUSED_FILE
    reason = one_line(error)
    if not path.exists():
        warn(f"MLflow refuses a part of {job_folder} ({reason}); it is kept in {path}")
    append_line(path, {"reason": reason, "event": to_values(event)})


def _write_sent(job_folder: Path, sent: Sent) -> None:
    write_whole(job_folder / FOLDER / SENT_FILE, json.dumps(asdict(sent)))
