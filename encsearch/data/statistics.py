"""Statistics of a store from the columns of its shards: classes, sizes, context, drift."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from encsearch.data.manifest import Manifest
from encsearch.data.shards import Facts, read_facts
from encsearch.errors import UserError
from encsearch.text import format_count, format_names

MIN_TOGETHER = 5
"""Images that have both classes, from which on their lift is more than chance."""


@dataclass(frozen=True)
class ClassStats:
    """The pixels of one class, their share of the labelled pixels, and the share of images that have any."""

    name: str
    pixels: int
    pixel_share: float
    image_share: float


@dataclass(frozen=True)
class SplitStats:
    """Statistics of one split; `sizes` counts the images of each (height, width), most frequent first.

    `together[a][b]` counts the images that have both classes, and on its diagonal those that have one.
    """

    split: str
    num_samples: int
    classes: tuple[ClassStats, ...]
    ignored_share: float
    sizes: tuple[tuple[tuple[int, int], int], ...]
    together: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassPair:
    """Two classes that `images` images have both.

    `lift` is P(a, b) / (P(a) P(b)), 1 by chance. `phi` is the correlation of their presence, in -1..1.
    """

    first: str
    second: str
    images: int
    lift: float
    phi: float


@dataclass(frozen=True)
class Drift:
    """How far a split's classes are from another's, `distance` in 0..1 (total variation of pixel shares).

    `largest` is the class whose shares differ most, with both shares.
    """

    split: str
    other: str
    distance: float
    largest: str
    shares: tuple[float, float]


def split_stats(store: Path, manifest: Manifest, split: str) -> SplitStats:
    """Count classes, sizes and classes together. Raises StoreError."""
    num_classes = len(manifest.info.classes)
    pixels = np.zeros(num_classes, np.int64)
    together = np.zeros((num_classes, num_classes), np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    for facts in _facts(store, manifest, split):
        present = (facts.histogram > 0).astype(np.int64)
        pixels += facts.histogram.sum(axis=0)
        together += present.T @ present
        sizes.update(map(tuple, facts.sizes.tolist()))
    num_samples, labelled = sizes.total(), int(pixels.sum())
    area = sum(height * width * count for (height, width), count in sizes.items())
    images = np.diagonal(together)
    classes = tuple(
        ClassStats(
            name, int(pixels[index]), int(pixels[index]) / max(labelled, 1), int(images[index]) / num_samples
        )
        for index, name in enumerate(manifest.info.classes)
    )
    return SplitStats(
        split,
        num_samples,
        classes,
        1 - labelled / area,
        tuple(sizes.most_common()),
        tuple(map(tuple, together.tolist())),
    )


def absent_classes(stats: SplitStats) -> list[str]:
    """The classes without a pixel in the split."""
    return [each.name for each in stats.classes if not each.pixels]


def find_gaps(train: SplitStats, val: SplitStats) -> list[str]:
    """What the splits that are trained on and scored lack, a sentence each."""
    gaps = []
    if train.split == val.split:
        gaps.append(f"{val.split} is trained on and scored, so scores show what is known by heart")
    count = format_count(len(train.classes), "class")
    if absent := absent_classes(train):
        gaps.append(
            f"{len(absent)} of {count} without a pixel in {train.split}, not learnt: {format_names(absent)}"
        )
    if absent := absent_classes(val):
        left = len(val.classes) - len(absent)
        gaps.append(
            f"{len(absent)} of {count} without a pixel in {val.split}, not scored: {format_names(absent)}; "
            f"mIoU is over the other {left}, and over one of these, with 0, where it is predicted"
        )
    return gaps


def class_pairs(stats: SplitStats) -> list[ClassPair]:
    """Every two classes that are together in MIN_TOGETHER images, the most correlated first."""
    count = stats.num_samples
    pairs = []
    for (a, first), (b, second) in combinations(enumerate(stats.classes), 2):
        both = stats.together[a][b]
        p, q = first.image_share, second.image_share
        if both < MIN_TOGETHER or p == 1 or q == 1:
            continue
        phi = (both / count - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))
        pairs.append(ClassPair(first.name, second.name, both, both / count / (p * q), float(phi)))
    return sorted(pairs, key=lambda pair: -pair.phi)


def split_drift(stats: SplitStats, other: SplitStats) -> Drift:
    """Compare the pixel shares of two splits of one store."""
    differences = [
        abs(mine.pixel_share - theirs.pixel_share)
        for mine, theirs in zip(stats.classes, other.classes, strict=True)
    ]
    largest = int(np.argmax(differences))
    mine, theirs = stats.classes[largest], other.classes[largest]
    shares = (mine.pixel_share, theirs.pixel_share)
    return Drift(stats.split, other.split, sum(differences) / 2, mine.name, shares)


def find_leaks(store: Path, manifest: Manifest) -> list[str]:
    """What two splits share, a line each: images with the same pixels, and groups. Raises StoreError."""
    images: dict[str, dict[str, str]] = {}
    groups: dict[str, set[str]] = {}
    for split in manifest.splits:
        for facts in _facts(store, manifest, split):
            for sample_id, group, digest in zip(facts.ids, facts.groups, facts.image_sha256, strict=True):
                images.setdefault(digest, {}).setdefault(split, sample_id)
                if group:
                    groups.setdefault(group, set()).add(split)
    pixels: dict[tuple[str, str], list[str]] = {}
    for places in images.values():
        for first, second in combinations(places, 2):
            pixels.setdefault((first, second), []).append(f"{places[first]} = {places[second]}")
    shared: dict[tuple[str, str], set[str]] = {}
    for group, splits in groups.items():
        for pair in combinations((split for split in manifest.splits if split in splits), 2):
            shared.setdefault(pair, set()).add(group)
    return [
        *(
            f"{first} and {second} share {format_count(len(names), 'image')}, by their pixels, as {names[0]}"
            for (first, second), names in pixels.items()
        ),
        *(
            f"{first} and {second} share {format_count(len(names), 'group')}, such as {min(names)}"
            for (first, second), names in shared.items()
        ),
    ]


def find_rare(store: Path, manifest: Manifest, split: str, count: int) -> list[int]:
    """Indices of the samples to look at: for each of the `count` rarest classes the one with most of it.

    Classes without a pixel are passed over. Raises StoreError.
    """
    histogram = np.concatenate([facts.histogram for facts in _facts(store, manifest, split)])
    images = (histogram > 0).sum(axis=0)
    rarest = [int(index) for index in np.argsort(images, kind="stable") if images[index]][:count]
    return list(dict.fromkeys(int(histogram[:, index].argmax()) for index in rarest))


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
    for facts in _facts(store, manifest, split):
        pixels += facts.histogram.sum(axis=0)
        pixels_around += (facts.histogram.sum(axis=1, keepdims=True) * (facts.histogram > 0)).sum(axis=0)
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


def _facts(store: Path, manifest: Manifest, split: str) -> Iterator[Facts]:
    for shard in manifest.split(split).shards:
        yield from read_facts(store, shard)
