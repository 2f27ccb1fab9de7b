"""The files of a run that people open in the MLflow UI.

MLflow 3.17 reads key, step and time of a picture from its file name, and shows a small .webp until the
picture is opened. `write_predictions` names its sheets that way, so the UI shows them with a slider of steps.

config.yaml              the recipe, every default written out
tables/class_iou.json    per-class IoU as MLflow's table view reads it; class_iou.csv for everything else
tables/confusion.csv     validation pixels, one row for each true class
pictures/confusion.png   the same as shares of each row
pictures/panels.png      truth and predictions for the same validation images in every run
NAME                     the `texts` of a report, such as profile.txt and lineage/machine_epoch_1.txt
"""

import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encsearch.config import CONFIG_FILE
from encsearch.data.codec import decode_mask
from encsearch.data.datasets import DatasetInfo, Sample
from encsearch.data.pictures import draw_comparison, draw_shares, save_png
from encsearch.files import write_csv
from encsearch.reports import Report

TABLES, PICTURES = "tables", "pictures"
PANELS = Path(PICTURES) / "panels.png"
# MLflow shows a JSON file as a table only if this tag of the run names it.
TABLE_TAG = {
    "mlflow.loggedArtifacts": json.dumps([{"path": f"{TABLES}/class_iou.json", "type": "table"}]),
}
KEY = "predictions"
IMAGES = "images"
# MLflow looks for pictures only in a run that has this tag.
IMAGES_TAG = {"mlflow.loggedImages": "True"}
SMALL_PX = 512  # longest side of the small picture; MLflow's own have 256, too few for a sheet


def write_artifacts(folder: Path, report: Report, classes: Sequence[str], config_yaml: str) -> None:
    """Write the configuration and the tables of a report; the confusion matrix only if the report has one.

    `classes` are the names in label order. A class without IoU (absent from truth and prediction) has an
    empty cell. The run should have TABLE_TAG.
    """
    for name in (TABLES, PICTURES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_yaml, encoding="utf-8")
    ious = [(name, report.class_iou.get(name)) for name in classes]
    write_csv(folder / TABLES / "class_iou.csv", [("class", "iou"), *ious])
    _write_table(folder / TABLES / "class_iou.json", ("class", "iou"), ious)
    if report.confusion:
        assert len(report.confusion) == len(classes), (len(report.confusion), len(classes))
        rows = [(name, *row) for name, row in zip(classes, report.confusion, strict=True)]
        write_csv(folder / TABLES / "confusion.csv", [("truth \\ prediction", *classes), *rows])
        counts = np.array(report.confusion)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        titles = "truth", "prediction (% of the truth's pixels)"
        save_png(draw_shares(shares, classes, *titles), folder / PICTURES / "confusion.png")


def write_texts(folder: Path, report: Report) -> None:
    """Write each text of a report to a file below `folder`, under its name."""
    for name, text in report.texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_predictions(
    folder: Path, report: Report, samples: Sequence[Sample], info: DatasetInfo
) -> tuple[Path, ...]:
    """Write the sheet of a report's label maps to images/ below `folder`; no file if the report has none.

    The maps belong to some of the validation images in `samples`, by id; the rows keep the order of
    `samples`. The run should have IMAGES_TAG.
    """
    sheet = _draw_label_maps(report, samples, info, f"epoch {report.epoch}")
    if sheet is None:
        return ()
    small = sheet.copy()
    small.thumbnail((SMALL_PX, SMALL_PX))
    target = folder / IMAGES
    target.mkdir(parents=True, exist_ok=True)
    files = target / f"{_name_sheet(report)}.png", target / f"{_name_sheet(report)}+compressed.webp"
    save_png(sheet, files[0])
    small.save(files[1])
    return files


def write_panels(folder: Path, report: Report, samples: Sequence[Sample], info: DatasetInfo) -> None:
    """Write the report's label maps to PANELS below `folder`, as `write_predictions` does to images/."""
    sheet = _draw_label_maps(report, samples, info, "prediction")
    if sheet is not None:
        (folder / PANELS).parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet, folder / PANELS)


def _draw_label_maps(
    report: Report, samples: Sequence[Sample], info: DatasetInfo, title: str
) -> Image.Image | None:
    """Draw each image, its truth and its label map in the report, under `title`; None without any."""
    shown = [sample for sample in samples if sample.id in report.label_maps]
    if not shown:
        return None
    maps = [decode_mask(base64.b64decode(report.label_maps[sample.id]), sample.id) for sample in shown]
    rows = [_thin_out(sample, label_map.shape) for sample, label_map in zip(shown, maps, strict=True)]
    return draw_comparison(rows, info, {title: maps})


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a data frame as JSON, split into columns and rows, as MLflow's `log_table` does (3.17)."""
    path.write_text(json.dumps({"columns": columns, "data": rows}) + "\n", encoding="utf-8")


def _name_sheet(report: Report) -> str:
    """Return the file name that MLflow reads; its time is the time of the report's last step.

    It is a function of the report, so that a report that is stored twice is one file.
    """
    time_ms = max((point.time_ms for point in report.points if point.step == report.step), default=0)
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{KEY} {report.step} {time_ms}")
    return f"{KEY}+step+{report.step}+timestamp+{time_ms}+{number}"


def _thin_out(sample: Sample, size: tuple[int, ...]) -> Sample:
    """Resize a sample to the (H, W) of its label map, which the loop makes smaller for large images."""
    if sample.mask.shape == size:
        return sample
    return replace(
        sample,
        image=_resize(sample.image, size, Image.Resampling.BOX),
        mask=_resize(sample.mask, size, Image.Resampling.NEAREST),
    )


def _resize(
    picture: NDArray[np.uint8], size: tuple[int, ...], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), resampling))
