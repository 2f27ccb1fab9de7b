"""The importance of the searched paths, with its uncertainty."""

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from encsearch.report.charts.chart import DASHED, Chart, Omitted, legend_below
from encsearch.report.facts import at_epoch, common_epoch
from encsearch.report.importance import (
    MAX_RESAMPLED,
    RESAMPLES,
    Importances,
    importances,
    rated_paths,
    trials_needed,
)
from encsearch.report.summary import SweepSummary
from encsearch.style import Palette
from encsearch.text import format_count, format_list, format_share, short_names


def importance_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "Which path matters"
    epoch = common_epoch(summary.trials)
    observed = at_epoch(summary, epoch) if epoch is not None else []
    trials = [(trial.values, value) for value, trial in observed]
    space = summary.search.space
    rated = rated_paths(space, trials)
    if not trials or not rated:
        return Omitted(title, "no path was tried with two values")
    if len(trials) < trials_needed(len(rated)):
        return Omitted(
            title,
            f"too few trials to tell: {format_count(len(rated), 'path')} need "
            f"{format_count(trials_needed(len(rated)), 'trial')} at one epoch, and {len(trials)} can be used",
        )
    found = importances(space, trials, summary.search.seed)
    caption = (
        f"{_basis(len(trials), epoch, summary.metric)} {_finding(found)} {_unrated(set(space) - set(rated))}"
    )
    height = 1.7 + 0.42 * len(rated)
    return Chart("importances.png", title, caption.strip(), height, partial(_draw, found, short_names(space)))


def _basis(num_trials: int, epoch: int | None, metric: str) -> str:
    fewer = (
        f" Each resample and shuffle has {MAX_RESAMPLED} of the trials, so that both are rather too wide."
        if num_trials > MAX_RESAMPLED
        else ""
    )
    return (
        f"From the {metric} of {format_count(num_trials, 'trial')} at epoch {epoch}, the last that most of "
        "them reached. Bars are the evaluator's shares, thin lines the 90 % interval over resampled trials, "
        f"the broken line the largest share of any path in {RESAMPLES} shuffles of the values. The two "
        f"evaluators answer different questions and need not agree.{fewer}"
    )


def _finding(found: Sequence[Importances]) -> str:
    """List the paths beyond chance, if there are any."""
    both = [path for path in found[0].beyond_chance if all(path in each.beyond_chance for each in found)]
    one = [f"{path} ({each.evaluator})" for each in found for path in each.beyond_chance if path not in both]
    if not both and not one:
        return "No path is beyond chance: these trials are too few, or too noisy, to tell."
    parts = [f"by both: {format_list(both)}"] * bool(both) + [f"by one alone: {format_list(one)}"] * bool(one)
    return f"Beyond chance {'; '.join(parts)}."


def _unrated(paths: set[str]) -> str:
    if not paths:
        return ""
    return f"Not rated, since not every trial has it with a value of its own: {format_list(sorted(paths))}."


def _draw(found: Sequence[Importances], names: Mapping[str, str], figure: Figure, palette: Palette) -> None:
    for plot, each in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        _draw_one(plot, each, names, palette)
    interval = Line2D([], [], color=palette.ink, linewidth=1.6, label="90 % interval over resampled trials")
    chance = Line2D(
        [], [], color=palette.hues["purple"], linewidth=2, linestyle=DASHED, label="chance, shuffled values"
    )
    legend_below(figure, [interval, chance])


def _draw_one(plot: Axes, each: Importances, names: Mapping[str, str], palette: Palette) -> None:
    shares = [path.share for path in each.paths]
    rows = range(len(shares))
    beyond, within = palette.hues["blue"], palette.hues["grey"]
    colours = [beyond if path.path in each.beyond_chance else within for path in each.paths]
    plot.barh(rows, shares, height=0.55, color=colours, alpha=0.85)
    plot.hlines(
        rows, [p.low for p in each.paths], [p.high for p in each.paths], color=palette.ink, linewidth=1.6
    )
    right = 1.05 * max(1.0, *(path.high for path in each.paths))
    _draw_chance(plot, each.chance, right, palette)
    plot.set_yticks(rows, [names[path.path] for path in each.paths])
    plot.tick_params(axis="y", length=0, labelcolor=palette.ink)
    plot.set_ylim(len(shares) - 0.4, -0.6)
    plot.set_xlim(0, right)
    plot.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    plot.set_title(f"{each.evaluator}: {each.meaning}", fontsize=9.5)
    plot.grid(False, axis="y")


def _draw_chance(plot: Axes, chance: float, right: float, palette: Palette) -> None:
    """Draw a line, or a label if it lies beyond the right end of the axis."""
    if chance <= right:
        plot.axvline(chance, color=palette.hues["purple"], linewidth=2, linestyle=DASHED)
        return
    plot.annotate(
        f"chance: {format_share(chance)} \N{RIGHTWARDS ARROW}",
        (0.99, 0.04),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        color=palette.hues["purple"],
    )
