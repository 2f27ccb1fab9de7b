"""Forward a job's events to the tracking store: each exactly once, in order, after any crash.

The offset is noted after a chunk was sent. A crash in between sends the chunk again, which changes
nothing: a run is looked up by its key before it is created, and MLflow identifies a metric by key, time,
step and value.

What counts is what the store has: before a run's end is sent, its params, tags and figures are looked up
there, and what is missing is sent again. So nothing is lost to a proxy that answers in place of the store.

record/sent.json       how far the sender has come, and the MLflow run id of each run
record/sent-changes.jsonl  what has changed of that, if a job has many runs
record/sender.lock     one process sends at a time
record/refused.jsonl   events that the store will never take, with the reason; a crash may repeat a line
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from encsearch.errors import UserError, for_terminal, one_line
from encsearch.files import (
    append_line,
    count_lines,
    hold_lock,
    read_lines,
    read_object,
    to_object,
    write_whole,
)
from encsearch.reports import Point
from encsearch.text import format_count
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

SENT_FILE, CHANGES_FILE, SENDER_LOCK = "sent.json", "sent-changes.jsonl", "sender.lock"
REFUSED_FILE = "refused.jsonl"
# Runs up to which sent.json is written whole after each chunk; beyond, after so many lines of changes.
MAX_WHOLE, MAX_CHANGES = 100, 1000
EVENTS_A_CHUNK = 200
METRICS_A_REQUEST = 500


class UnavailableError(Exception):
    """The store does not answer now; the same call may succeed later."""


class EventRefusedError(Exception):
    """The store will never take this event."""


class GoneError(EventRefusedError):
    """The run was deleted in the store, and takes nothing more."""


@dataclass(frozen=True)
class Missing:
    """What the store lacks of a run: some param or tag, and these figures."""

    of_head: bool = False
    points: tuple[Point, ...] = ()


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

    def find_missing(self, run_id: str, params: Set[str], tags: Set[str], points: Sequence[Point]) -> Missing:
        """Look up params and tags by name, figures by name, step and time."""
        ...

    def end(self, run_id: str, event: Ended) -> None: ...


@dataclass(frozen=True)
class Sent:
    """`offset` is in bytes of the events; `runs` are MLflow's run ids by the names of the job's runs.

    `open_runs` are the runs whose begin was sent and whose end was not; `begun` is the offset of the event
    with which each run last began.
    """

    offset: int = 0
    uri: str = ""
    experiment_id: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    open_runs: tuple[str, ...] = ()
    begun: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """What a chunk changes of `Sent`, by run: id (None if it was deleted), whether it is open, begin."""

    offset: int
    runs: dict[str, str | None] = field(default_factory=dict)
    is_open: dict[str, bool] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)


_Placed = tuple[Event, int, int]
"""An event, and where its line begins and ends."""


def read_sent(job_folder: Path) -> Sent:
    """Read how far the sender has come; an empty `Sent` if it has sent nothing yet.

    Raises UserError for a file that is damaged.
    """
    path = job_folder / FOLDER / SENT_FILE
    try:
        sent = read_object(path, Sent)
    except FileNotFoundError:
        return Sent()
    if not sent.uri:
        raise UserError(f"{path}: damaged (it names no store); restore the file")
    changes = job_folder / FOLDER / CHANGES_FILE
    total = _Change(sent.offset)
    for line in read_lines(changes):
        change = to_object(_Change, line, changes)
        if change.offset > sent.offset:  # a kill may have left changes that the whole file has
            total = _Change(
                change.offset,
                total.runs | change.runs,
                total.is_open | change.is_open,
                total.begun | change.begun,
            )
    return _changed(sent, total)


def begin_sending(job_folder: Path, shown_uri: str, experiment_id: str) -> None:
    """Note where a new record goes. Raises UserError for a record that was begun in another store."""
    sent = read_sent(job_folder)
    if not sent.uri:
        (job_folder / FOLDER / CHANGES_FILE).unlink(missing_ok=True)  # of a file that was deleted
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
    return count_lines(job_folder / FOLDER / EVENTS_FILE, read_sent(job_folder).offset)


def refused_parts(job_folder: Path) -> int:
    """Count the refusals of the store so far: events, and single figures."""
    return len(read_lines(job_folder / FOLDER / REFUSED_FILE))


def sending_alone(job_folder: Path) -> AbstractContextManager[bool]:
    """Hold the sender's lock until the block ends; the value is False if another process has it."""
    return hold_lock(job_folder / FOLDER / SENDER_LOCK)


class Outbox:
    """Sends one job's record, chunk by chunk.

    What it knows of the record stays in memory, and is read anew if another process has sent meanwhile.
    """

    def __init__(self, job_folder: Path, store: EventStore) -> None:
        self._job_folder, self._store = job_folder, store
        self._events = job_folder / FOLDER / EVENTS_FILE
        self._sent, self._stamp, self._changes = Sent(), "", 0
        # Of each open run, where its events lie since it began: what is looked up when it ends.
        self._places: dict[str, list[int]] = {}

    def send_chunk(self) -> int:
        """Send the next events, at most EVENTS_A_CHUNK; return their number.

        The caller holds the lock. Raises UnavailableError; UserError for a record of another store.
        """
        if self._stamp != _stamp(self._job_folder):
            self._read()
        sent = self._sent
        chunk = _next_chunk(self._job_folder, sent.offset)
        if not chunk:
            return 0
        runs = dict(sent.runs)
        for event in _steps([event for event, _, _ in chunk]):
            if isinstance(event, Ended) and event.run in runs:
                _send_missing(
                    event, self._own_events(event, chunk), runs[event.run], self._store, self._job_folder
                )
            _send(event, runs, self._store, self._job_folder)
        begun = {event.run: start for event, start, _ in chunk if isinstance(event, Started)}
        is_open = {
            event.run: isinstance(event, Started)
            for event, _, _ in chunk
            if isinstance(event, Started | Ended)
        }
        new_runs = {event.run: runs.get(event.run) for event, _, _ in chunk}
        self._note(_Change(chunk[-1][2], new_runs, is_open, begun))
        for event, start, _ in chunk:
            self._place(event, start)
        return len(chunk)

    def _read(self) -> None:
        begin_sending(self._job_folder, self._store.shown_uri, self._store.experiment_id)
        sent = read_sent(self._job_folder)
        # The next note is a whole file, since other lines of changes may lie there.
        self._sent, self._changes, self._places = sent, MAX_CHANGES, {}
        first = min((sent.begun.get(run, 0) for run in sent.open_runs), default=sent.offset)
        for event, start, _ in _placed_events(self._events, first):
            if start >= sent.offset:
                break
            self._place(event, start)
        self._stamp = _stamp(self._job_folder)

    def _note(self, change: _Change) -> None:
        """Note that a chunk was sent: as a whole file, or for many runs mostly as a line."""
        sent = _changed(self._sent, change)
        if len(sent.runs) <= MAX_WHOLE or self._changes >= MAX_CHANGES:
            _write_sent(self._job_folder, sent)
            self._changes = 0
        else:
            append_line(self._job_folder / FOLDER / CHANGES_FILE, asdict(change))
            self._changes += 1
        self._sent, self._stamp = sent, _stamp(self._job_folder)

    def _place(self, event: Event, start: int) -> None:
        if isinstance(event, Started):
            self._places[event.run] = [start]
        elif isinstance(event, Ended):
            self._places.pop(event.run, None)
        elif event.run in self._places and not isinstance(event, Filed):
            self._places[event.run].append(start)

    def _own_events(self, end: Ended, chunk: Sequence[_Placed]) -> list[Event]:
        """What the run of `end`, which is in the chunk, has written since it last began."""
        own = [next(read_events(self._events, start))[0] for start in self._places.get(end.run, ())]
        for event, _, _ in chunk:
            if event is end:
                break
            if event.run == end.run:
                own = [event] if isinstance(event, Started) else [*own, event]
        return own


def is_settled(job_folder: Path) -> bool:
    """Whether all was sent and no run is open; does not read the events."""
    path = job_folder / FOLDER / EVENTS_FILE
    sent = read_sent(job_folder)
    return not path.exists() or (sent.offset == path.stat().st_size and not sent.open_runs)


def warn(text: str) -> None:
    """Print a line on stderr, if anyone reads it: a pipe's reader may have died, a terminal may be closed."""
    with suppress(OSError):
        print(for_terminal(f"warning: {text}".replace("\n", "\\n")), file=sys.stderr, flush=True)


def _next_chunk(job_folder: Path, offset: int) -> list[_Placed]:
    """Read the next chunk. An upload is a chunk of its own, so that no other failure repeats it."""
    chunk: list[_Placed] = []
    for placed in islice(_placed_events(job_folder / FOLDER / EVENTS_FILE, offset), EVENTS_A_CHUNK):
        if isinstance(placed[0], Filed):
            return chunk or [placed]
        chunk.append(placed)
    return chunk


def _placed_events(path: Path, offset: int) -> Iterator[_Placed]:
    for event, end in read_events(path, offset):
        yield event, offset, end
        offset = end


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
            store.store_files(runs[event.run], inside(job_folder, event.path), event.target)
        else:
            store.end(runs[event.run], event)
    except EventRefusedError as error:
        if isinstance(error, GoneError):
            runs.pop(event.run, None)
        _keep_refused(event, error, job_folder)


def _send_missing(
    event: Ended, own: Sequence[Event], run_id: str, store: EventStore, job_folder: Path
) -> None:
    """Send again what the store lacks of a run that ends; `own` are its events since it last began.

    Raises UnavailableError if the store does not have all of it then.
    """
    started: Started | None = None
    tags: dict[str, str] = {}
    points: list[Point] = []
    for one in own:
        if isinstance(one, Started):
            started = one
        if isinstance(one, Started | Tagged):
            tags |= one.tags
        if isinstance(one, Logged):
            points += one.points
    params: Mapping[str, str] = started.params if started else {}

    def find_missing() -> Missing:
        kept = _without_refused(points, event.run, job_folder)
        return store.find_missing(run_id, params.keys(), tags.keys(), kept)

    try:
        missing = find_missing()
        if missing.of_head and started:
            store.describe(run_id, started)
            store.tag(run_id, tags)
        _send_points(Logged(event.run, missing.points), run_id, store, job_folder)
        missing = find_missing() if missing != Missing() else missing
    except EventRefusedError:
        return  # the end of the run is refused too, which keeps the reason
    if missing != Missing():
        lost = sum(len(point.values) for point in missing.points)
        what = format_count(lost, "figure") if lost else "params or tags"
        raise UnavailableError(f"it has confirmed {what} of run {event.run}, but does not have them")


def _without_refused(points: Sequence[Point], run: str, job_folder: Path) -> list[Point]:
    refused = {
        (name, point["step"], point["time_ms"])
        for line in read_lines(job_folder / FOLDER / REFUSED_FILE)
        if line["event"]["run"] == run
        for point in line["event"].get("points", ())
        for name in point["values"]
    }
    return without_figures(points, refused)


def without_figures(points: Sequence[Point], known: Set[tuple[str, int, int]]) -> list[Point]:
    """The points without figures that are known by name, step and time."""
    left = []
    for point in points:
        values = {n: v for n, v in point.values.items() if (n, point.step, point.time_ms) not in known}
        left += [replace(point, values=values)] if values else []
    return left


def inside(job_folder: Path, path: str) -> Path:
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


def _changed(sent: Sent, change: _Change) -> Sent:
    runs = {name: run_id for name, run_id in {**sent.runs, **change.runs}.items() if run_id is not None}
    is_open = {**dict.fromkeys(sent.open_runs, True), **change.is_open}
    return replace(
        sent,
        offset=change.offset,
        runs=runs,
        open_runs=tuple(run for run, still in is_open.items() if still),
        begun={**sent.begun, **change.begun},
    )


def _write_sent(job_folder: Path, sent: Sent) -> None:
    write_whole(job_folder / FOLDER / SENT_FILE, json.dumps(vars(sent)))
    (job_folder / FOLDER / CHANGES_FILE).unlink(missing_ok=True)


def _stamp(job_folder: Path) -> str:
    """Differs once another process has noted something."""
    files = (job_folder / FOLDER / name for name in (SENT_FILE, CHANGES_FILE))
    stats = [file.stat() for file in files if file.exists()]
    return str([(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats])
