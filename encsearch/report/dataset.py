"""The page of a data set: classes, context, drift between splits, leaks, sizes, and the rarest classes."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.pictures import colorize, draw_sheet, fit, overlay
from encsearch.data.statistics import ClassPair, Drift, SplitStats, class_pairs, split_drift
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.files import write_whole
from encsearch.report.charts.dataset import drift_chart, together_chart
from encsearch.report.page import environment, png_uri, show

TEMPLATE = "dataset.html"
NUM_RARE, NUM_PAIRS, NUM_SIZES = 6, 8, 8
_CELL_PX = 320


@dataclass(frozen=True)
class StoreFacts:
    """What is known of a store: statistics by split, pairs of classes in the first one, drift, leaks.

    `absent` are the classes without a pixel, by split. The first split is train where there is one.
    """

    name: str
    fingerprint: str
    splits: Mapping[str, SplitStats]
    pairs: tuple[ClassPair, ...]
    drift: tuple[Drift, ...]
    leaks: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]


def find_facts(store: Store) -> StoreFacts:
    """Read the columns of every split. Raises StoreError."""
    names = sorted(store.manifest.splits, key=lambda name: name != "train")
    splits = {name: store.stats(name) for name in names}
    first, *others = splits.values()
    absent = {
        name: tuple(one.name for one in stats.classes if not one.pixels) for name, stats in splits.items()
    }
    return StoreFacts(
        name=store.info.name,
        fingerprint=store.fingerprint,
        splits=splits,
        pairs=tuple(class_pairs(first)),
        drift=tuple(split_drift(first, other) for other in others),
        leaks=tuple(store.leaks()),
        absent=absent,
    )


def write_page(facts: StoreFacts, store: Store, target: Path) -> Path:
    """Write the page, one HTML file with its pictures in it. Raises UserError when it cannot be written."""
    first = next(iter(facts.splits.values()))
    charts = [together_chart(first), drift_chart(list(facts.splits.values()))]
    text = (
        environment()
        .get_template(TEMPLATE)
        .render(
            facts=facts,
            first=first,
            order=sorted(range(len(first.classes)), key=lambda index: -first.classes[index].pixels),
            origin=store.manifest.origin,
            figures=[show(chart) for chart in charts],
            rare=_draw_rare(store, first.split),
            num_pairs=NUM_PAIRS,
            num_sizes=NUM_SIZES,
        )
    )
    try:
        write_whole(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def _draw_rare(store: Store, split: str) -> str:
    """A sheet of the samples with most of the rarest classes, as a data URI."""
    samples = store.split(split)
    palette = np.array(store.info.palette, np.uint8)
    shown = [_shrink(samples[index]) for index in store.rare(split, NUM_RARE)]
    present = sorted({int(index) for one in shown for index in np.unique(one.mask) if index != IGNORE})
    sheet = draw_sheet(
        [[one.image, colorize(one.mask, palette), overlay(one.image, one.mask, palette)] for one in shown],
        ["image", "labels (ignored: black)", "overlay"],
        [one.id for one in shown],
        [store.info.classes[index] for index in present],
        palette[present],
        _CELL_PX,
    )
    return _to_uri(sheet)


def _shrink(sample: Sample) -> Sample:
    image, mask = fit(sample.image, sample.mask, _CELL_PX)
    return Sample(sample.id, image, mask)


def _to_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return png_uri(buffer.getvalue())
