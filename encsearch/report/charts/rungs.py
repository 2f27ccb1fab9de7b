"""Early stopping as a chart: the trials that reached each rung, and the ones that went on."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from encsearch.report.charts.chart import Chart, Omitted, colour_of, legend_below, show_percent
from encsearch.report.facts import valued
from encsearch.report.summary import SweepSummary
from encsearch.search.stopping import bracket_of, checked_epochs
from encsearch.search.trials import Trial
from encsearch.style import Palette

SPREAD, MAX_STEP = 0.4, 0.02
"""Width of all marks at a rung, and of each one, in rung distances: equal values are side by side."""


@dataclass(frozen=True)
class Arrival:
    """A trial at a rung, with its value there; `went_on` is False where it was stopped."""

    number: int
    epoch: int
    value: float
    went_on: bool


@dataclass(frozen=True)
class Bracket:
    """The trials of one bracket; `rungs` end with the full length, where no trial is stopped."""

    index: int
    rungs: tuple[int, ...]
    arrivals: tuple[Arrival, ...]

    def count(self, epoch: int, went_on: bool | None = None) -> int:
        return sum(a.epoch == epoch and went_on in (None, a.went_on) for a in self.arrivals)


def rung_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "Early stopping, rung by rung"
    search = summary.search
    if search.minimize:
        return Omitted(title, "early stopping compares one figure and does not apply to two objectives")
    match search.scheduler:
        case "none":
            return Omitted(title, "no trial was to be stopped early (search.scheduler=none)")
        case "median":
            return Omitted(
                title, "the median rule has no rungs; the learning curves show which trials were stopped"
            )
        case "asha":
            kept = search.asha.reduction_factor
            caption = (
                f"A trial pauses at a rung, and goes on when it is among the best 1/{kept} of all that have "
                "reached it; a paused trial that was never promoted counts as stopped there."
            )
        case "asha_stop" | "hyperband":
            kept = search.asha.reduction_factor
            caption = (
                f"At a rung a trial goes on if it is among the best 1/{kept} of its bracket's trials that "
                "had reached it by then, so an early trial may go on with a value at which a later one is "
                "stopped."
            )
    found = brackets(summary)
    if not found:
        return Omitted(title, "no trial reached a rung")
    return Chart("rungs.png", title, caption, 4.4, partial(_draw_rungs, found, summary.metric))


def brackets(summary: SweepSummary) -> tuple[Bracket, ...]:
    """Brackets with arrivals; a trial that failed later, or that the budget ended, went on."""
    search, epochs = summary.search, summary.epochs
    by_bracket: dict[int, list[Trial]] = {}
    for _, trial in valued(summary.trials):
        by_bracket.setdefault(bracket_of(search, epochs, trial.number), []).append(trial)
    found = []
    for index, trials in sorted(by_bracket.items()):
        rungs = (*checked_epochs(search, epochs, trials[0].number), epochs)
        arrivals = [
            Arrival(trial.number, epoch, value, went_on=not _is_stopped(trial) or trial.epochs > epoch)
            for trial in trials
            for epoch, value in trial.curve
            if epoch in rungs
        ]
        found.append(Bracket(index, rungs, tuple(arrivals)))
    return tuple(bracket for bracket in found if bracket.arrivals)


def _is_stopped(trial: Trial) -> bool:
    """Whether the scheduler stopped the trial; a budget or a limit would give a reason."""
    return trial.state == "PRUNED" and trial.reason is None


def _draw_rungs(found: tuple[Bracket, ...], metric: str, figure: Figure, palette: Palette) -> None:
    widths = [len(bracket.rungs) + 0.6 for bracket in found]
    plots = figure.subplots(1, len(found), sharey=True, squeeze=False, width_ratios=widths)[0]
    for plot, bracket in zip(plots, found, strict=True):
        _draw_bracket(plot, bracket, palette)
        if len(found) > 1:
            plot.set_title(f"bracket {bracket.index}")
    show_percent(plots[0].yaxis, f"{metric} at the rung,")
    legend_below(figure, [_handle(True, palette), _handle(False, palette)])


def _draw_bracket(plot: Axes, bracket: Bracket, palette: Palette) -> None:
    by_trial: dict[int, list[Arrival]] = {}
    for arrival in sorted(bracket.arrivals, key=lambda a: a.number):
        by_trial.setdefault(arrival.number, []).append(arrival)
    step = min(MAX_STEP, SPREAD / len(by_trial))
    lines: list[list[tuple[float, float]]] = []
    marks: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for place, own in enumerate(by_trial.values()):
        shift = (place - (len(by_trial) - 1) / 2) * step
        lines.append([(bracket.rungs.index(a.epoch) + shift, a.value) for a in own])
        for point, arrival in zip(lines[-1], own, strict=True):
            marks[arrival.went_on].append(point)
    plot.add_collection(LineCollection(lines, colors=palette.muted, linewidths=1, alpha=0.5, zorder=2))
    for went_on, points in marks.items():
        xs, ys = zip(*points, strict=True) if points else ((), ())
        plot.plot(xs, ys, zorder=4, **_mark(went_on, palette))
    labels = [f"epoch {epoch}\n{_fates(bracket, epoch)}" for epoch in bracket.rungs]
    plot.set_xticks(range(len(labels)), labels)
    plot.set_xlim(-0.45, len(labels) - 0.55)
    plot.grid(False, axis="x")


def _fates(bracket: Bracket, epoch: int) -> str:
    came = f"{bracket.count(epoch)} came"
    return came if epoch == bracket.rungs[-1] else f"{came}\n{bracket.count(epoch, went_on=True)} went on"


def _mark(went_on: bool, palette: Palette) -> dict[str, Any]:
    colour = colour_of("complete" if went_on else "pruned", palette)
    return {
        "linestyle": "none",
        "marker": "o" if went_on else "v",
        "markersize": 7,
        "color": colour,
        "markerfacecolor": colour if went_on else palette.paper,
        "markeredgewidth": 1.4,
    }


def _handle(went_on: bool, palette: Palette) -> Line2D:
    return Line2D([], [], label="went on" if went_on else "was stopped here", **_mark(went_on, palette))
