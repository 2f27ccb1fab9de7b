"""Images beside their truth and what was predicted for them, as one picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.datasets import DatasetInfo, Sample
from encsearch.pictures import colorize, overlay, sheet

SMALL_PX = 128
"""Longest side of images that are clearer as plain colours than under an overlay."""


def comparison(
    samples: Sequence[Sample], info: DatasetInfo, label_maps: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> Image.Image:
    """A row a sample: the image, the truth, and a column for each title's label maps, (H, W) uint8."""
    palette = np.array(info.palette, dtype=np.uint8)
    small = max(samples[0].image.shape[:2]) <= SMALL_PX
    rows = [
        [
            sample.image,
            *(
                colorize(mask, palette) if small else overlay(sample.image, mask, palette)
                for mask in (sample.mask, *(label_maps[title][row] for title in label_maps))
            ),
        ]
        for row, sample in enumerate(samples)
    ]
    titles = ["image", "truth", *label_maps]
    return sheet(rows, titles, [sample.id for sample in samples], info.classes, palette)
