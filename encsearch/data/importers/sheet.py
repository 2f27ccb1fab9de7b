"""The sheet of overlays that shows what an import has understood."""

from collections.abc import Sequence
from pathlib import Path

from encsearch.data.datasets import DatasetInfo, Sample, spaced_indices
from encsearch.data.importers.plan import ImportPlan, read_sample
from encsearch.data.pictures import draw_labelled, save_png
from encsearch.errors import UserError

SHEET_FILE = "sheet.png"
SHOWN = 4  # samples
_TRIED = 8  # pairs for each of them
_CELL_PX = 320


def save_sheet(samples: Sequence[Sample], info: DatasetInfo, path: Path) -> Path:
    """Draw images, label maps and overlays of some samples as a PNG.

    Raises UserError when the file cannot be written.
    """
    sheet = draw_labelled(samples, info, _CELL_PX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
