"""The same few images beside their truth and the predictions of one or more models."""

from collections.abc import Mapping, Sequence

from PIL import Image

from encsearch.data.datasets import DatasetInfo, Sample, evenly_spaced
from encsearch.data.sheets import comparison
from encsearch.predict import Predictor

__all__ = ["comparison_sheet", "evenly_spaced"]


def comparison_sheet(
    samples: Sequence[Sample], info: DatasetInfo, models: Mapping[str, Predictor]
) -> Image.Image:
    """A row a sample: the image, the truth, and each model's label map under its title."""
    images = [sample.image for sample in samples]
    return comparison(samples, info, {title: model.predict(images) for title, model in models.items()})
