"""What a training says about itself: one `Report` an epoch, taken by a `Recorder`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Point:
    """Figures of one moment: after an optimizer step, or at a time (milliseconds since 1970) in between."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The state of a training at the end of one epoch; every figure is global over all ranks.

    `metrics` are scalars by name ("mIoU", "pixAcc", "train/loss", "lr", ...); `class_iou` is the
    intersection over union by class name, without the absent classes; `confusion` is the
    (num_classes, num_classes) matrix of validation pixels, rows the truth, columns the prediction.
    `points` are the figures between the epoch's ends. `label_maps` are predictions of fixed validation
    images, PNG files as base64 by sample id; `texts` are files to keep, by name, such as a profile.
    """

    epoch: int
    step: int
    seconds: float
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    points: tuple[Point, ...] = ()
    label_maps: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; `from_dict` is its inverse."""
        return asdict(self) | {"metrics": dict(self.metrics), "class_iou": dict(self.class_iou)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        confusion = tuple(tuple(row) for row in values["confusion"])
        points = tuple(Point(**point) for point in values["points"])
        return cls(**{**values, "confusion": confusion, "points": points})


class Recorder(Protocol):
    """Takes the reports of one training, in order, and is closed once with its true status."""

    def log(self, report: Report) -> None: ...

    def close(self, status: Status) -> None: ...


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Close the recorder with the status that is true: how the block ended decides it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        recorder.close("KILLED")
        raise
    except BaseException:
        recorder.close("FAILED")
        raise
    recorder.close("FINISHED")


class MemoryRecorder:
    """Keeps the reports in a list, for tests and notebooks."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.status: Status | None = None

    def log(self, report: Report) -> None:
        self.reports.append(report)

    def close(self, status: Status) -> None:
        self.status = status
