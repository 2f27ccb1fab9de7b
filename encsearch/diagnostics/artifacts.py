"""Write the diagnostics of a run: context.json and three pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from encsearch.data.datasets import SHOWN_IMAGES, Sample, evenly_spaced
from encsearch.diagnostics.figures import (
    ASSIGNMENT_FILE,
    CODEWORDS_FILE,
    DEAD_SHARE,
    JSON_FILE,
    SCALING_FILE,
    ClassScaling,
    CodewordFigures,
    ContextDiagnostics,
    ScalingFigures,
    to_json,
)
from encsearch.diagnostics.measure import assignment_map, diagnose
from encsearch.inference.bundle import Bundle
from encsearch.style import LIGHT, look
from encsearch.text import format_count, format_number, format_share

HEAT_MAPS = 3
MAX_TICKS = 64
MAX_ROWS = 40
# Distinct colours for the most used codewords; the others share the grey.
COLOURS = (
    *("#4363d8", "#f58231", "#3cb44b", "#e6194b", "#ffe119", "#911eb4", "#42d4f4", "#9a6324"),
    *("#f032e6", "#808000", "#000075", "#bfef45", "#fabed4", "#469990", "#800000", "#dcbeff"),
)
OTHERS = "#a8adb5"


def write_diagnostics(bundle: Bundle, samples: Sequence[Sample], folder: Path) -> ContextDiagnostics | None:
    """Diagnose all samples and draw some of them; nothing is written if there are no diagnostics.

    codewords.png is only for models with codewords, assignment.png with more than one, scaling.png only if a
    class has images with and without it.
    """
    diagnostics = diagnose(bundle, samples)
    if diagnostics is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(to_json(diagnostics), encoding="utf-8")
    if diagnostics.codewords:
        draw_codewords(diagnostics.codewords, folder / CODEWORDS_FILE)
    if diagnostics.codewords and len(diagnostics.codewords.usage) > 1:
        shown = evenly_spaced(samples, SHOWN_IMAGES)
        maps = [assignment_map(bundle, sample) for sample in shown]
        draw_assignment(shown, maps, diagnostics.codewords, folder / ASSIGNMENT_FILE)
    if diagnostics.scaling and diagnostics.scaling.classes:
        draw_scaling(diagnostics.scaling, folder / SCALING_FILE)
    return diagnostics


@look(LIGHT)
def draw_codewords(figures: CodewordFigures, target: Path) -> None:
    """Usage, smoothing factor and distance to the features of each codeword, the most used first."""
    order = _sort_by_usage(figures)
    places = np.arange(len(order))
    colours = [_choose_colours(figures)[index] for index in order]
    figure = Figure(figsize=(min(4 + 0.22 * len(order), 14), 7))
    usage, smoothing, offset = figure.subplots(3, sharex=True, height_ratios=(3, 2, 2))
    for axes in (usage, smoothing, offset):
        axes.grid(False, axis="x")

    usage.bar(places, np.array(figures.usage)[order], color=colours)
    usage.axhline(1 / len(order), color=LIGHT.ink, linewidth=0.9, label="even use, 1/K")
    usage.axhline(DEAD_SHARE / len(order), color=LIGHT.ink, linewidth=0.9, linestyle=":", label="dead below")
    usage.set_ylabel("usage\n(mean assignment)")
    usage.set_title(
        f"{format_count(len(order), 'codeword')}: effective number "
        f"{format_number(figures.effective_number)}, {len(figures.dead)} dead",
        fontsize=10,
    )
    usage.legend(fontsize=8, frameon=False)

    factors = np.array(figures.smoothing_factors)[order]
    smoothing.bar(places, factors, color=np.where(factors < 0, LIGHT.hues["red"], LIGHT.hues["blue"]))
    smoothing.axhline(0, color=LIGHT.ink, linewidth=0.9)
    smoothing.set_ylabel("smoothing factor")

    offset.bar(places, np.array(figures.offsets)[order], color=LIGHT.muted)
    offset.axhline(1, color=LIGHT.ink, linewidth=0.9)
    offset.set_ylabel("distance to the mean\nfeature, in spreads")
    offset.set_xlabel("codeword, the most used first")
    offset.set_xticks(places if len(order) <= MAX_TICKS else [], order if len(order) <= MAX_TICKS else [])
    offset.tick_params(axis="x", labelsize=7)
    figure.savefig(target)


@look(LIGHT)
def draw_assignment(
    samples: Sequence[Sample],
    maps: Sequence[NDArray[np.float32]],
    figures: CodewordFigures,
    target: Path,
) -> None:
    """One row per sample: image, each pixel's strongest codeword, and the assignment to the most used ones.

    maps (h, w, K), one per sample. The heat maps share one scale, up to their highest assignment; a dead
    codeword has none.
    """
    top = [index for index in _sort_by_usage(figures) if index not in figures.dead][:HEAT_MAPS]
    colours = _choose_colours(figures)
    table = np.array([to_rgb(colour) for colour in colours])
    height, width = samples[0].image.shape[:2]
    columns = 2 + len(top)
    cell_inch = 2.2
    rows_inch = cell_inch * height / width * len(samples)
    figure = Figure(figsize=(cell_inch * columns + 0.9, rows_inch + 1.0))
    grid: NDArray[Any] = figure.subplots(len(samples), columns, squeeze=False)
    for row, sample, assignment in zip(grid, samples, maps, strict=True):
        row[0].imshow(sample.image)
        row[1].imshow(table[assignment.argmax(axis=2)], interpolation="nearest")
    highest = max(float(assignment[..., top].max()) for assignment in maps)
    for column, index in zip(grid.T[2:], top, strict=True):
        for axes, assignment in zip(column, maps, strict=True):
            heat = axes.imshow(assignment[..., index], vmin=0, vmax=highest, cmap="magma")
    figure.colorbar(heat, ax=grid, shrink=0.6, aspect=30, pad=0.01, label="assignment")
    for axes in grid.flat:
        axes.set_axis_off()
    titles = ["image", "strongest codeword", *(f"codeword {index}" for index in top)]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    _legend(figure, maps, figures)
    figure.savefig(target)


@look(LIGHT)
def draw_scaling(figures: ScalingFigures, target: Path) -> None:
    """Classes x channels: how the scaling factors of images with a class differ, beside the effect of chance.

    Neighbouring rows are similar, and the channels are ordered by the class that they differ most for. At
    most MAX_ROWS classes are shown, those with the largest differences.
    """
    strongest_rows = sorted(figures.classes, key=lambda row: -row.rms)[:MAX_ROWS]
    rows = _sort_by_similarity(strongest_rows)
    differences = np.array([row.differences for row in rows])
    strongest = np.abs(differences).argmax(axis=0)
    channels = np.lexsort((differences[strongest, np.arange(len(strongest))], strongest))
    limit = float(np.abs(differences).max())
    figure = Figure(figsize=(11, 1.8 + 0.24 * len(rows)))
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))

    heat.grid(False)
    image = heat.imshow(
        differences[:, channels],
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    labels = [f"{row.name} ({row.num_with}/{row.num_with + row.num_without})" for row in rows]
    heat.set_yticks(range(len(rows)), labels, fontsize=8)
    heat.set_xticks([])
    heat.set_xlabel(f"{differences.shape[1]} channels, by the class that they differ most for")
    heat.set_title("Scaling factors of images with the class, less those of the others")
    figure.colorbar(image, ax=heat, pad=0.01)

    places = np.arange(len(rows))
    bars.barh(places, [row.rms for row in rows], color=LIGHT.hues["blue"], height=0.7)
    chance = [row.rms_by_chance for row in rows]
    bars.vlines(chance, places - 0.45, places + 0.45, color=LIGHT.ink, linewidth=1.2)
    bars.grid(False, axis="y")
    bars.tick_params(axis="y", labelleft=False)
    bars.set_xlabel("root mean square\n(line: by chance)")
    figure.savefig(target)


def _legend(figure: Figure, maps: Sequence[NDArray[np.float32]], figures: CodewordFigures) -> None:
    """The codewords that are strongest somewhere in the shown images, with their usage in all images."""
    colours = _choose_colours(figures)
    strongest = {int(index) for assignment in maps for index in np.unique(assignment.argmax(axis=2))}
    order = [index for index in _sort_by_usage(figures) if index in strongest]
    named = [index for index in order if colours[index] != OTHERS]
    handles = [
        Patch(color=colours[index], label=f"codeword {index}: {format_share(figures.usage[index])}")
        for index in named
    ]
    if len(named) < len(order):
        rest = sum(figures.usage[index] for index in order if colours[index] == OTHERS)
        handles.append(
            Patch(
                color=OTHERS, label=f"{format_count(len(order) - len(named), 'other')}: {format_share(rest)}"
            )
        )
    figure.legend(
        handles=handles,
        title="usage (mean assignment) over all diagnosed images",
        loc="outside lower center",
        ncols=min(len(handles), 5),
        fontsize=8,
        title_fontsize=8,
    )


def _sort_by_usage(figures: CodewordFigures) -> list[int]:
    return [int(index) for index in np.argsort(-np.array(figures.usage), kind="stable")]


def _choose_colours(figures: CodewordFigures) -> list[str]:
    """A colour for each codeword, the same in both pictures; only the most used ones have their own."""
    colours = [OTHERS] * len(figures.usage)
    for colour, index in zip(COLOURS, _sort_by_usage(figures), strict=False):
        colours[index] = colour
    return colours


def _sort_by_similarity(rows: Sequence[ClassScaling]) -> list[ClassScaling]:
    """Order the rows along the first principal direction of their differences."""
    directions, _, _ = np.linalg.svd(np.array([row.differences for row in rows]), full_matrices=False)
    return [rows[int(index)] for index in np.argsort(directions[:, 0], kind="stable")]
