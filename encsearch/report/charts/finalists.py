"""The trainings from scratch: every seed, the mean, its interval, and the finalists as good as the winner."""

from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from encsearch.report.charts.chart import DASHED, Chart, Omitted, legend_below, show_percent
from encsearch.report.facts import rank_finalists
from encsearch.report.summary import SweepSummary
from encsearch.search.confirm.ranking import Ranking, Standing
from encsearch.style import Hue, Palette

Role = str
"""A configuration's relation to the winner."""

WINNER, AS_GOOD, WORSE, BASELINE = "winner", "not told apart from it", "told apart from it", "baseline"
HUES: dict[Role, Hue] = {WINNER: "green", AS_GOOD: "orange", WORSE: "blue", BASELINE: "grey"}


def finalist_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "Trained again from scratch"
    ranking = rank_finalists(summary)
    if ranking is None:
        return Omitted(title, "nothing was trained again after the search")
    standings = roles(ranking)
    intervals = (
        "Lines are 95 % intervals of the means (Student's t, one variance for all configurations)."
        if any(standing.mean.interval for standing, _ in standings)
        else "With one seed each there is no interval."
    )
    caption = (
        f"Every dot is one seed, the bar their mean. {intervals} Whether two can be told apart is decided by "
        "their difference, paired by seed, and not by whether these intervals overlap."
    )
    height = 1.5 + 0.5 * len(standings)
    return Chart("finalists.png", title, caption, height, partial(_draw, standings, summary.metric))


def roles(ranking: Ranking) -> list[tuple[Standing, Role]]:
    """Each configuration and its relation to the winner, the winner first and the baselines last."""
    return [
        (ranking.winner, WINNER),
        *((s, AS_GOOD if _is_as_good(s) else WORSE) for s in ranking.standings[1:]),
        *((s, BASELINE) for s in ranking.baselines),
    ]


def _is_as_good(standing: Standing) -> bool:
    return standing.lead is not None and not standing.lead.tells_apart


def _draw(standings: list[tuple[Standing, Role]], metric: str, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    colours = {role: palette.hues[hue] for role, hue in HUES.items()}
    for row, (standing, role) in enumerate(standings):
        _draw_standing(axes, row, standing, colours[role], palette)
    axes.axvline(standings[0][0].mean.mean, color=colours[WINNER], linestyle=DASHED, linewidth=1, zorder=1)
    names = [f"{s.name} (baseline)" if role == BASELINE else s.name for s, role in standings]
    axes.set_yticks(range(len(standings)), names)
    axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
    axes.set_ylim(len(standings) - 0.4, -0.6)
    axes.grid(False, axis="y")
    show_percent(axes.xaxis, metric)
    present = dict.fromkeys(role for _, role in standings)
    legend_below(
        figure, [Line2D([], [], color=colours[role], linewidth=3, marker="o", label=role) for role in present]
    )


def _draw_standing(axes: Axes, row: int, standing: Standing, colour: str, palette: Palette) -> None:
    if standing.mean.interval:
        axes.hlines(row, *standing.mean.interval, color=colour, linewidth=3, alpha=0.45)
    axes.plot(standing.mean.mean, row, marker="|", markersize=20, markeredgewidth=3, color=colour, zorder=3)
    values = standing.mean.values
    axes.plot(
        values,
        [row] * len(values),
        linestyle="none",
        marker="o",
        markersize=7,
        color=colour,
        markeredgecolor=palette.paper,
        zorder=4,
    )
