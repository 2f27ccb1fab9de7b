"""Predictions over time: a picture sheet a report, named so that MLflow shows them with a slider of steps.

MLflow 3.17 reads key, step and time of a picture from its file name, and shows a small .webp until the
picture is opened. The names are functions of the report, so that a report that is stored twice is one file.
"""

import base64
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.codec import decode_mask
from encsearch.data.datasets import DatasetInfo, Sample
from encsearch.data.sheets import comparison
from encsearch.records import Report

KEY = "predictions"
IMAGES = "images"
# MLflow looks for pictures only in a run that has this tag.
IMAGES_TAG = {"mlflow.loggedImages": "True"}
SMALL_PX = 512  # longest side of the small picture; MLflow's own have 256, too few for a sheet


def write_predictions(
    folder: Path, report: Report, samples: Sequence[Sample], info: DatasetInfo
) -> tuple[Path, ...]:
    """Write the sheet of a report's label maps below `folder`, in images/; no file if it has none.

    `samples` are the validation images that the maps may be of, by id; the rows keep their order. The run
    should have IMAGES_TAG.
    """
    shown = [sample for sample in samples if sample.id in report.label_maps]
    if not shown:
        return ()
    maps = [decode_mask(base64.b64decode(report.label_maps[sample.id]), sample.id) for sample in shown]
    rows = [_thinned(sample, label_map.shape) for sample, label_map in zip(shown, maps, strict=True)]
    sheet = comparison(rows, info, {f"epoch {report.epoch}": maps})
    small = sheet.copy()
    small.thumbnail((SMALL_PX, SMALL_PX))
    target = folder / IMAGES
    target.mkdir(parents=True, exist_ok=True)
    files = target / f"{_name(report)}.png", target / f"{_name(report)}+compressed.webp"
    sheet.save(files[0])
    small.save(files[1])
    return files


def _name(report: Report) -> str:
    """The time is that of the report's last step."""
    time_ms = max((point.time_ms for point in report.points if point.step == report.step), default=0)
    number = uuid.uuid5(uuid.NAMESPACE_OID, f"{KEY} {report.step} {time_ms}")
    return f"{KEY}+step+{report.step}+timestamp+{time_ms}+{number}"


def _thinned(sample: Sample, size: tuple[int, ...]) -> Sample:
    """The sample at the (H, W) of its label map, which the loop thins out for large images."""
    if sample.mask.shape == size:
        return sample
    return replace(
        sample,
        image=_resized(sample.image, size, Image.Resampling.BOX),
        mask=_resized(sample.mask, size, Image.Resampling.NEAREST),
    )


def _resized(
    picture: NDArray[np.uint8], size: tuple[int, ...], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), resampling))
