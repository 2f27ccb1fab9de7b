"""Statistics of a split from the columns of its shards: classes, sizes, and weights by frequency."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encsearch.data.manifest import Manifest
from encsearch.data.shards import read_facts
from encsearch.errors import UserError


@dataclass(frozen=True)
class ClassStats:
    """The pixels of one class, their share of the labelled pixels, and the share of images that have any."""

    name: str
    pixels: int
    pixel_share: float
    image_share: float


@dataclass(frozen=True)
class SplitStats:
    """Statistics of one split; `sizes` counts the images of each (height, width), most frequent first."""

    split: str
    num_samples: int
    classes: tuple[ClassStats, ...]
    ignored_share: float
    sizes: tuple[tuple[tuple[int, int], int], ...]


def split_stats(store: Path, manifest: Manifest, split: str) -> SplitStats:
    """Count classes and sizes from the columns of the shards; no image is decoded. Raises StoreError."""
    pixels: Counter[int] = Counter()
    present: Counter[int] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for shard in manifest.split(split).shards:
        for facts in read_facts(store, shard):
            sizes[facts["height"], facts["width"]] += 1
            pixels.update(dict(enumerate(facts["histogram"])))
            present.update(dict(enumerate(facts["presence"])))
    num_samples, labelled = sizes.total(), pixels.total()
    area = sum(height * width * count for (height, width), count in sizes.items())
    classes = tuple(
        ClassStats(name, pixels[index], pixels[index] / max(labelled, 1), present[index] / num_samples)
        for index, name in enumerate(manifest.info.classes)
    )
    return SplitStats(split, num_samples, classes, 1 - labelled / area, tuple(sizes.most_common()))


def median_frequency_weights(store: Path, manifest: Manifest, split: str) -> tuple[float, ...]:
    """Median frequency balancing (Eigen & Fergus, ICCV 2015): median(freq) / freq_c for each class c.

    freq_c is the share of class c in the labelled pixels of the images that have it. A class that no image of
    the split has is left out of the median and gets 0: it is never a label, and label smoothing, which
    multiplies by the weight too, does not push probability to it.

    Read from the columns of the shards; no image is decoded. Raises StoreError, and UserError for a split
    without a labelled pixel.
    """
    pixels = np.zeros(len(manifest.info.classes), dtype=np.int64)
    pixels_around = np.zeros_like(pixels)
    for shard in manifest.split(split).shards:
        for facts in read_facts(store, shard):
            histogram = np.array(facts["histogram"], dtype=np.int64)
            pixels += histogram
            pixels_around += np.where(histogram > 0, histogram.sum(), 0)
    present = pixels > 0
    if not present.any():
        raise UserError(
            f"{store}: split {split} has 0 labelled pixels to balance the classes by; "
            "`encsearch data check` shows what the masks hold"
        )
    frequencies = pixels[present] / pixels_around[present]
    weights = np.zeros(len(pixels))
    weights[present] = np.median(frequencies) / frequencies
    return tuple(weights.tolist())
