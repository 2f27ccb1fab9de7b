"""Events of a job's MLflow runs, as lines of a file: the job appends them, a sender forwards them.

`run` is the name of a run, unique in its job. Times are milliseconds since 1970, fixed when the event
happened, so that an event that is sent twice is the same event.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from encsearch.errors import UserError
from encsearch.files import lines_after, to_object
from encsearch.reports import Point, Status


@dataclass(frozen=True)
class Dataset:
    """The data that a run was trained on. `profile` is shown to people: counts, sizes, classes."""

    name: str
    fingerprint: str
    source: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class Started:
    """A run begins, or goes on after a kill. `key` identifies it for ever, wherever the job's folder lies.

    `parent` is the run of the same job that it belongs to. When a run goes on, params that the store has
    already stay as they are: MLflow refuses to change them.
    """

    run: str
    time_ms: int
    key: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    parent: str | None = None
    dataset: Dataset | None = None


@dataclass(frozen=True)
class Logged:
    """Figures, in order."""

    run: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tagged:
    run: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Filed:
    """A file, or all files of a folder, to store in `target` (a folder, "" for the root) of the artifacts.

    `path` is relative to the job's folder, which may be moved.
    """

    run: str
    path: str
    target: str = ""


@dataclass(frozen=True)
class Ended:
    run: str
    time_ms: int
    status: Status


Event = Started | Logged | Tagged | Filed | Ended
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Started, Logged, Tagged, Filed, Ended)}


def to_values(event: Event) -> dict[str, Any]:
    """Return the event as plain JSON types; `from_values` is the inverse."""
    return {"kind": type(event).__name__, **asdict(event)}


def from_values(values: Mapping[str, Any]) -> Event:
    fields = {name: value for name, value in values.items() if name != "kind"}
    return to_object(_KINDS[values["kind"]], fields, "event")


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield each complete event from `offset` (bytes) on, with the offset behind it; none without a file.

    Raises UserError for a line that is damaged, or that is no event of this version.
    """
    for values, end in lines_after(path, offset):
        try:
            event = from_values(values)
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{path}: no event at byte {offset} ({type(error).__name__}: {error}); the file is "
                "damaged, or of another version of encsearch"
            ) from None
        offset = end
        yield event, end
