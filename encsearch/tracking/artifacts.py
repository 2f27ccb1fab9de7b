"""The files of a run that people open in the MLflow UI.

config.yaml              the recipe, every default written out
tables/class_iou.json    per-class IoU as MLflow's table view reads it; class_iou.csv for everything else
tables/confusion.csv     validation pixels, a row a truth
pictures/confusion.png   the same as shares of each row
NAME                     what a report brings in its `texts`, as profile.txt and lineage/machine_epoch_1.txt
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from encsearch.records import Report

TABLES, PICTURES = "tables", "pictures"
# MLflow shows a JSON file as a table only if this tag of the run names it.
TABLE_TAG = {
    "mlflow.loggedArtifacts": json.dumps([{"path": f"{TABLES}/class_iou.json", "type": "table"}]),
}


def write_artifacts(folder: Path, report: Report, classes: Sequence[str], config_yaml: str) -> None:
    """Write the configuration and the tables of a report; the confusion matrix only if the report holds it.

    `classes` are the names in label order. A class without IoU (absent from truth and prediction) has an
    empty cell. The run should have TABLE_TAG.
    """
    for name in (TABLES, PICTURES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    ious = [(name, report.class_iou.get(name)) for name in classes]
    _write_csv(folder / TABLES / "class_iou.csv", [("class", "iou"), *ious])
    _write_table(folder / TABLES / "class_iou.json", ("class", "iou"), ious)
    if report.confusion:
        assert len(report.confusion) == len(classes), (len(report.confusion), len(classes))
        rows = [(name, *row) for name, row in zip(classes, report.confusion, strict=True)]
        _write_csv(folder / TABLES / "confusion.csv", [("truth \\ prediction", *classes), *rows])
        _draw_confusion(folder / PICTURES / "confusion.png", np.array(report.confusion), classes)


def write_texts(folder: Path, report: Report) -> None:
    """Write the files that a report brings, each below `folder` under its name."""
    for name, text in report.texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """As MLflow's `log_table` writes it (3.17): a data frame as JSON, split into columns and rows."""
    path.write_text(json.dumps({"columns": columns, "data": rows}) + "\n", encoding="utf-8")


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
