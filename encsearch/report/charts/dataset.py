"""Charts of a data set: which classes come together, and how the splits differ."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from encsearch.data.statistics import MIN_TOGETHER, SplitStats
from encsearch.report.charts.chart import Chart, Omitted, legend_below
from encsearch.style import Hue, Palette
from encsearch.text import format_count

MAX_CLASSES = 60
"""Shown in one heat map; more have no room for their names."""

SPLIT_HUES: tuple[Hue, ...] = ("blue", "orange", "green", "purple", "red")
_MAX_LIFT = 3.0  # log2


def together_chart(stats: SplitStats) -> Chart | Omitted:
    """A heat map of log2(lift) of every two classes, like ones beside each other."""
    title = f"Classes together, {stats.split}"
    together = np.array(stats.together, dtype=np.float64)
    images = np.diagonal(together)
    shown = np.sort(np.argsort(-images, kind="stable")[:MAX_CLASSES])
    shown = shown[images[shown] > 0]
    if len(shown) < 3:
        return Omitted(title, "fewer than three classes have a pixel")
    together, images = together[np.ix_(shown, shown)], images[shown]
    order = _cluster(together, images, stats.num_samples)
    with np.errstate(divide="ignore"):
        lift = np.log2(together * stats.num_samples / np.outer(images, images))
    known = together >= MIN_TOGETHER
    np.fill_diagonal(known, val=False)
    # Never together, though by chance they would be in MIN_TOGETHER images: known to avoid each other.
    known |= (together == 0) & (np.outer(images, images) / stats.num_samples >= MIN_TOGETHER)
    values = np.where(known, np.clip(lift, -_MAX_LIFT, _MAX_LIFT), np.nan)[np.ix_(order, order)]
    names = [stats.classes[index].name for index in shown[order]]
    left_out = len(stats.classes) - len(shown)
    caption = (
        "Blue: in the same images more often than by chance, 1 = twice as often; orange: less often. "
        f"Blank: too few images to say. {format_count(stats.num_samples, 'image')}. This is the context that "
        "the encoding layer and the SE-loss can learn."
    )
    if left_out:
        caption += f" {format_count(left_out, 'rarer or absent class')} not shown."
    return Chart(
        f"together-{stats.split}.png",
        title,
        caption,
        1.6 + 0.24 * len(names),
        partial(_draw_map, values, names),
    )


def _cluster(together: NDArray[np.float64], images: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """An order in which classes of like presence (phi) are neighbours: average linkage of 1 - phi."""
    p = images / count
    spread = np.sqrt(np.outer(p * (1 - p), p * (1 - p)))
    phi = np.divide(together / count - np.outer(p, p), spread, out=np.zeros_like(spread), where=spread > 0)
    distance = np.clip(1 - (phi + phi.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0)
    return np.asarray(leaves_list(linkage(squareform(distance, checks=False), "average")))


def _draw_map(values: NDArray[np.float64], names: list[str], figure: Figure, palette: Palette) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list(
        "lift", [palette.hues["orange"], palette.paper, palette.hues["blue"]]
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=colours, vmin=-_MAX_LIFT, vmax=_MAX_LIFT)
    axes.grid(visible=False)
    axes.set_anchor("W")
    size = 8 if len(names) > 30 else 9.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02)
    bar.set_label("log2 of lift")
    bar.outline.set_visible(False)  # type: ignore[operator]


def drift_chart(splits: list[SplitStats]) -> Chart | Omitted:
    """The share of images with each class, a mark a split; the classes by their share in the first split."""
    title = "Images with each class, by split"
    if len(splits) < 2:
        return Omitted(title, "there is one split only")
    first = splits[0]
    order = sorted(range(len(first.classes)), key=lambda index: first.classes[index].image_share)
    shown = order[-MAX_CLASSES:]
    caption = "A split whose marks lie apart has other images than the one that is trained on."
    if len(shown) < len(order):
        caption += f" The {format_count(len(order) - len(shown), 'rarest class')} not shown."
    return Chart("drift.png", title, caption, 1.4 + 0.24 * len(shown), partial(_draw_drift, splits, shown))


def _draw_drift(splits: list[SplitStats], shown: list[int], figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    shares = np.array([[stats.classes[index].image_share for index in shown] for stats in splits])
    axes.hlines(places, shares.min(axis=0), shares.max(axis=0), color=palette.rule, linewidth=3)
    handles = []
    for stats, row, hue, mark in zip(splits, shares, SPLIT_HUES, "osD^v", strict=False):
        (handle,) = axes.plot(
            row, places, mark, color=palette.hues[hue], markeredgecolor=palette.paper, label=stats.split
        )
        handles.append(handle)
    axes.set_yticks(places, [splits[0].classes[index].name for index in shown], fontsize=9)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=None))
    axes.set_xlabel("% of images")
    legend_below(figure, handles)
