"""The same few images beside their truth and the predictions of one or more models."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from encsearch.data.datasets import DatasetInfo, Sample, SegmentationDataset
from encsearch.pictures import colorize, overlay, sheet
from encsearch.predict import Predictor


def evenly_spaced(dataset: SegmentationDataset, count: int) -> list[Sample]:
    """`count` samples, always the same ones of the same data set."""
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset[int(index)] for index in dict.fromkeys(indices)]


def comparison_sheet(
    samples: Sequence[Sample], info: DatasetInfo, models: Mapping[str, Predictor]
) -> Image.Image:
    """A row a sample: the image, the truth, and each model's label map under its title."""
    palette = np.array(info.palette, dtype=np.uint8)
    images = [sample.image for sample in samples]
    predictions = {title: model.predict(images) for title, model in models.items()}
    # Small generated images are clearer as plain colours than under an overlay.
    small = max(images[0].shape[:2]) <= 128
    rows = [
        [
            sample.image,
            *(
                colorize(mask, palette) if small else overlay(sample.image, mask, palette)
                for mask in (sample.mask, *(predictions[title][row] for title in models))
            ),
        ]
        for row, sample in enumerate(samples)
    ]
    titles = ["image", "truth", *models]
    return sheet(rows, titles, [sample.id for sample in samples], info.classes, palette)
