"""A `Store` in memory, which fails where a test wants it to."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from encsearch.reports import Point
from encsearch.tracking.outbox.events import Ended, Started
from encsearch.tracking.outbox.forward import (
    METRICS_A_REQUEST,
    EventRefusedError,
    GoneError,
    Missing,
    without_figures,
)

Figure = tuple[str, int, int, str]


@dataclass
class Run:
    name: str
    parent_id: str | None
    status: str = "RUNNING"
    end_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class MemoryStore:
    """As MLflow is: a figure that comes twice is one. `disturb` is called before and after each call."""

    shown_uri, experiment_id = "http://tracker", "1"

    def __init__(self, disturb: Callable[[], None] = lambda: None) -> None:
        self.runs: dict[str, Run] = {}
        self.calls: list[str] = []
        self.disturb = disturb
        self.refused_figures: set[str] = set()
        self.deleted: set[str] = set()
        self.calls_of_deleted = 0

    def begin(self, event: Started, parent_id: str | None, known_id: str | None) -> str:
        run_id = known_id or f"id of {event.key}"
        self._call("begin", run_id)
        run = self.runs.setdefault(run_id, Run(event.run, parent_id))
        run.status = "RUNNING"
        self.disturb()
        return run_id

    def describe(self, run_id: str, event: Started) -> None:
        self._call("describe", run_id)
        run = self.runs[run_id]
        run.params = {**event.params, **run.params}
        run.tags |= event.tags
        if event.dataset and event.dataset.fingerprint not in run.datasets:
            run.datasets.append(event.dataset.fingerprint)
        self.disturb()

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self._call("log", run_id)
        run = self.runs[run_id]
        figures = [(name, p.step, p.time_ms, repr(value)) for p in points for name, value in p.values.items()]
        assert 0 < len(figures) <= METRICS_A_REQUEST
        if self.refused_figures & {name for name, *_ in figures}:
            raise EventRefusedError("no such name")
        run.figures += [figure for figure in figures if figure not in run.figures]
        self.disturb()

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._call("tag", run_id)
        self.runs[run_id].tags |= tags
        self.disturb()

    def store_files(self, run_id: str, path: Path, target: str) -> None:
        self._call("store_files", run_id)
        run = self.runs[run_id]
        if not path.exists():
            raise EventRefusedError(f"{path} does not exist")
        run.files[str(Path(target, path.name))] = path.read_bytes()
        self.disturb()

    def find_missing(self, run_id: str, params: Set[str], tags: Set[str], points: Sequence[Point]) -> Missing:
        self._call("find_missing", run_id)
        run = self.runs[run_id]
        self.disturb()
        of_head = not (params <= run.params.keys() and tags <= run.tags.keys())
        return Missing(of_head, tuple(without_figures(points, {figure[:3] for figure in run.figures})))

    def end(self, run_id: str, event: Ended) -> None:
        self._call("end", run_id)
        run = self.runs[run_id]
        run.status, run.end_ms = event.status, event.time_ms
        self.disturb()

    def _call(self, name: str, run_id: str) -> None:
        self.calls.append(name)
        self.disturb()
        if run_id in self.deleted:
            self.calls_of_deleted += 1
            raise GoneError("deleted")
