"""The sheet of overlays that shows what an import has understood."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encsearch.data.datasets import DatasetInfo, Sample, spaced_indices
from encsearch.data.importers.plan import ImportPlan, read_sample
from encsearch.data.pictures import colorize, draw_sheet, fit, overlay, save_png
from encsearch.errors import UserError

SHEET_FILE = "sheet.png"
SHOWN = 4  # samples
_TRIED = 8  # pairs for each of them
_CELL_PX = 320


def save_sheet(samples: Sequence[Sample], info: DatasetInfo, path: Path) -> Path:
    """Draw images, label maps and overlays of some samples as a PNG.

    Raises UserError when the file cannot be written.
    """
    palette = np.array(info.palette, np.uint8)
    rows = []
    for sample in samples:
        image, mask = fit(sample.image, sample.mask, _CELL_PX)
        rows.append([image, colorize(mask, palette), overlay(image, mask, palette)])
    titles = ["image", "labels (ignored: black)", "overlay"]
    present = sorted({int(index) for sample in samples for index in np.unique(sample.mask)})
    shown = [index for index in present if index < len(info.classes)]
    sheet = draw_sheet(
        rows,
        titles,
        [sample.id for sample in samples],
        [info.classes[index] for index in shown],
        palette[shown],
        _CELL_PX,
    )
    try:
        save_png(sheet, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def read_planned(plan: ImportPlan) -> list[Sample]:
    """SHOWN samples of a plan, evenly spaced; those that cannot be read are passed over."""
    pairs = [pair for pairs in plan.splits.values() for pair in pairs]
    samples: list[Sample] = []
    for first in spaced_indices(len(pairs), SHOWN):
        for pair in pairs[first : first + _TRIED]:
            try:
                samples.append(read_sample(pair, plan.labels))
                break
            except UserError:
                continue
    return samples
