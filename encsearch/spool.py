"""Reports as JSON lines beside the run, so that a training never waits for a tracking server.

The process near the training appends; the driver tails the file and forwards it to a `Recorder`. A report
counts once its newline is written: a line torn by a crash is invisible to readers and is removed by the
next append. One writer at a time, any number of readers.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encsearch.records import Recorder, Report


def append(path: Path, report: Report) -> None:
    """Add one report. The file is closed again at once, which makes the line visible over NFS too."""
    append_line(path, report.to_dict())


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """As `append` for anything that is JSON; on disk when it returns, so that no checkpoint is without it."""
    line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
    with open(path, "ab+") as file:
        _remove_torn_line(file.fileno(), path)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; none while the file does not exist."""
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def distinct_reports(path: Path) -> list[Report]:
    """All reports in order; of an epoch that was trained again after a crash the first, which was told."""
    reports: dict[int, Report] = {}
    for report in SpoolReader(path).new_reports():
        reports.setdefault(report.epoch, report)
    return list(reports.values())


class SpoolReader:
    """Gives every report of a spool once and in order; remembers how far it has read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_reports(self) -> list[Report]:
        """The reports that were completed since the last call; none while the spool does not exist."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        reports = [Report.from_dict(json.loads(line)) for line in complete.splitlines()]
        self._offset += len(complete)
        return reports


@contextmanager
def forwarding(path: Path, recorder: Recorder, poll_s: float = 1.0) -> Iterator[None]:
    """Forward the spool's reports to `recorder` from a thread, each once and in order.

    What is left is forwarded on exit, also when the body raised. The recorder is not closed; what its
    `log` raises is raised on exit.
    """
    reader = SpoolReader(path)
    stop = threading.Event()

    def forward() -> None:
        while True:
            is_last_round = stop.wait(poll_s)
            for report in reader.new_reports():
                recorder.log(report)
            if is_last_round:
                return

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool") as pool:
        forwarder = pool.submit(forward)
        try:
            yield
        finally:
            stop.set()
            forwarder.result()


def _remove_torn_line(descriptor: int, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
