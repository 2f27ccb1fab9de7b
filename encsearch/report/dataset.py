"""The page of a data set: classes, context, drift between splits, leaks, sizes, and the rarest classes."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from encsearch.data.pictures import draw_labelled
from encsearch.data.statistics import ClassPair, Drift, SplitStats, absent_classes, class_pairs, split_drift
from encsearch.data.store import Store
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
    absent = {name: tuple(absent_classes(stats)) for name, stats in splits.items()}
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
    """Write the page, one HTML file with its pictures in it. Raises TrainingError if that fails."""
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
    write_whole(target, text)
    return target


def _draw_rare(store: Store, split: str) -> str:
    """A sheet of the samples with most of the rarest classes, as a data URI."""
    samples = store.split(split)
    shown = [samples[index] for index in store.rare(split, NUM_RARE)]
    return _to_uri(draw_labelled(shown, store.info, _CELL_PX))


def _to_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return png_uri(buffer.getvalue())
