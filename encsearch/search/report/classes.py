"""IoU by class of each finalist and baseline: pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from encsearch.search.report.summary import FinalistRow


@dataclass(frozen=True)
class ClassTable:
    """Mean IoU over seeds of each class (rows) for each finalist and baseline (columns)."""

    names: list[str]
    rows: list[tuple[str, list[float | None]]]


def class_table(finalists: Sequence[FinalistRow]) -> ClassTable:
    by_name: dict[str, list[FinalistRow]] = {}
    for row in finalists:
        by_name.setdefault(row.name, []).append(row)
    classes = dict.fromkeys(name for row in finalists for name in row.class_iou)
    return ClassTable(
        list(by_name), [(name, [_mean(rows, name) for rows in by_name.values()]) for name in classes]
    )


def _mean(rows: Iterable[FinalistRow], class_name: str) -> float | None:
    found = [row.class_iou[class_name] for row in rows if class_name in row.class_iou]
    return fmean(found) if found else None
