"""The forecasts of the end, made during the sweep, against the end that came."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from encsearch.report.charts.style import Chart, Omitted, Palette
from encsearch.report.summary import SweepSummary
from encsearch.search.budget.forecast import Backtest, ForecastPoint, backtest
from encsearch.text import format_list, format_share

MIN_FORECASTS = 2


def eta_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "How good the forecasts were"
    points, ended_s = summary.forecasts, summary.wall_seconds
    if len(points) < MIN_FORECASTS or ended_s is None:
        return Omitted(title, "no forecasts of the end were recorded")
    tested = backtest(points, ended_s)
    assert tested
    return Chart("forecasts.png", title, told(tested), 3.6, partial(_draw, points, ended_s))


def told(tested: Backtest) -> str:
    errors = [
        f"{format_share(error, signed=True)} {f'at {format_share(share)}' if share else 'at the start'}"
        for share, error in tested.errors
    ]
    return (
        f"The median was off by {format_list(errors)} of the way (positive: the sweep ended sooner). The "
        f"true end was within {format_share(tested.held)} of the intervals, each of which was to hold it "
        "with 80 %."
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which so long a time reads well, and its seconds."""
    if seconds < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _draw(points: Sequence[ForecastPoint], ended_s: float, figure: Figure, palette: Palette) -> None:
    name, unit = time_unit(ended_s)
    axes = figure.add_subplot()
    xs = [point.elapsed_s / unit for point in points]
    colour = palette.marks["complete"]
    axes.fill_between(
        xs,
        [point.low_s / unit for point in points],
        [point.high_s / unit for point in points],
        color=colour,
        alpha=0.22,
        linewidth=0,
        label="foreseen with 80 %",
    )
    axes.plot(
        xs, [point.median_s / unit for point in points], color=colour, linewidth=2, label="median forecast"
    )
    axes.axhline(ended_s / unit, color=palette.marks["winner"], linestyle=(0, (5, 3)), label="the true end")
    axes.set_xlim(0, ended_s / unit)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{name} since the start")
    axes.set_ylabel(f"foreseen end, {name}")
    figure.legend(loc="outside lower center", ncols=3)
