"""The files of a finished run that people open in the MLflow UI: config, per-class IoU, confusion matrix."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from encsearch.records import Report


def write_artifacts(folder: Path, report: Report, classes: Sequence[str], config_yaml: str) -> None:
    """Write config.yaml, class_iou.csv, and confusion.csv and confusion.png if the report holds the matrix.

    `classes` are the names in label order. A class without IoU (absent from truth and prediction) has an
    empty cell. The picture shows each truth's pixels as shares of its row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    _write_csv(
        folder / "class_iou.csv",
        [("class", "iou"), *((name, report.class_iou.get(name, "")) for name in classes)],
    )
    if report.confusion:
        assert len(report.confusion) == len(classes), (len(report.confusion), len(classes))
        rows = [(name, *row) for name, row in zip(classes, report.confusion, strict=True)]
        _write_csv(folder / "confusion.csv", [("truth \\ prediction", *classes), *rows])
        _draw_confusion(folder / "confusion.png", np.array(report.confusion), classes)


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _draw_confusion(path: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> None:
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side_inch = 3 + 0.25 * len(classes)
    figure = Figure(figsize=(side_inch, side_inch), layout="constrained")  # needs no display, unlike pyplot
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the truth's pixels")
    figure.savefig(path, dpi=110)
