"""Predict label maps of images with a trained model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.codec import decode_image
from encsearch.data.datasets import DatasetInfo, Sample
from encsearch.data.pictures import draw_comparison
from encsearch.data.transforms import to_image_tensor
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, find_device, place_network
from encsearch.inference.segment import label, pixels_at_once

Picture = NDArray[np.uint8] | str | Path
"""(H, W, 3) uint8 RGB, or a PNG or JPEG file."""


@dataclass(frozen=True)
class Prediction:
    """The labels (H, W) uint8 of one image, and the probability that each class is anywhere in it.

    `presence` is None for a model without a context module.
    """

    labels: NDArray[np.uint8]
    presence: Mapping[str, float] | None


class Predictor:
    """A model on its device, which segments by the `eval` section of its configuration.

    `info` names the classes and colours of the label maps. `pixels_at_once` go through the network in one
    pass; a larger image is cut into tiles.
    Raises UserError for an unknown device, PreflightError if it does not exist here.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", batch_size: int = 8) -> None:
        self.info = bundle.info
        self._device = find_device(device)
        self._network = place_network(bundle, self._device)
        self._settings = bundle.config.eval
        self._batch_size = batch_size
        self.pixels_at_once = pixels_at_once(len(bundle.info.classes), bundle.config.eval)

    def predict(self, images: Picture | Iterable[Picture]) -> list[NDArray[np.uint8]]:
        """The (H, W) uint8 label map of each image, in order; raises what `segment` raises."""
        return [found.labels for found in self.segment(images)]

    def predict_presence(self, images: Picture | Iterable[Picture]) -> list[dict[str, float]]:
        """The probability that each class is anywhere in the image, from the SE-loss branch.

        Raises UserError for a model without one.
        """
        rows: list[dict[str, float]] = []
        for found in self.segment(images):
            if found.presence is None:
                raise UserError("this model predicts no presence: it was trained with model.context=none")
            rows.append(dict(found.presence))
        return rows

    def segment(self, images: Picture | Iterable[Picture]) -> Iterator[Prediction]:
        """Label maps and presence of images, in order; their sizes are free and may differ.

        A single image is treated as a list of one. Neighbours of the same size go through the model together,
        at most `batch_size` of them and as many as fit in memory; only one such batch is in memory at a time.
        An image that is too large for one pass is segmented in tiles. Raises UserError for a file or an
        array that is not such an image.
        """
        for batch in _batches(map(_to_pixels, _as_list(images)), self._batch_size):
            tensors = torch.stack([to_image_tensor(pixels) for pixels in batch])
            found = label(self._network, tensors.to(self._device), self._settings, self.pixels_at_once)
            presence = [None] * len(batch) if found.presence is None else found.presence.tolist()
            for labels, row in zip(found.labels.numpy(), presence, strict=True):
                named = None if row is None else dict(zip(self.info.classes, row, strict=True))
                yield Prediction(labels, named)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file as upright (H, W, 3) RGB. Raises UserError, as `decode_image` does, if it is not one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error.strerror})") from None
    return decode_image(data, str(path))


def comparison_sheet(
    samples: Sequence[Sample], info: DatasetInfo, models: Mapping[str, Predictor]
) -> Image.Image:
    """One row per sample: the image, the truth, and each model's label map under its title."""
    images = [sample.image for sample in samples]
    return draw_comparison(samples, info, {title: model.predict(images) for title, model in models.items()})


def _as_list(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """Make a list of a single picture; a stack (B, H, W, 3) is already several."""
    if isinstance(images, str | Path):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return images


def _to_pixels(picture: Picture) -> NDArray[np.uint8]:
    if isinstance(picture, str | Path):
        return read_image(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"an image is (H, W, 3) uint8 RGB, but got {picture.shape} {picture.dtype}")
    return picture


def _batches(pictures: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    for _, same_sized in groupby(pictures, key=lambda pixels: pixels.shape):
        while batch := list(islice(same_sized, size)):
            yield batch
