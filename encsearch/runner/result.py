"""What a finished training leaves behind."""

from dataclasses import dataclass
from pathlib import Path

from encsearch.records import Report

# In a training's folder: what it has reported.
REPORTS_FILE = "reports.jsonl"


@dataclass(frozen=True)
class RunResult:
    """All reports in order, and the checkpoint written at the very step that `best` reports."""

    reports: tuple[Report, ...]
    best: Report
    best_checkpoint: Path
    seconds: float


def best_report(reports: tuple[Report, ...], metric: str) -> Report:
    """The report with the highest `metric`, the earliest of equals."""
    return max(reports, key=lambda report: (report.metrics[metric], -report.step))
