"""The trainings from scratch: every seed, the mean and its interval, and who cannot be told apart."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from encsearch.report.charts.style import Chart, Omitted, Palette, legend_below, show_percent
from encsearch.report.summary import FinalistRow, SweepSummary
from encsearch.search.confirm.ranking import Configuration, Ranking, Standing, rank

Role = str
"""What a configuration is to the winner."""

WINNER, AS_GOOD, WORSE, BASELINE = "winner", "not told apart from it", "told apart from it", "baseline"


def ranking_of(summary: SweepSummary) -> Ranking | None:
    """The finalists by the rule that named the winner; None where nothing was confirmed."""
    finalists = _configurations([row for row in summary.finalists if row.trial is not None])
    if not finalists:
        return None
    baselines = _configurations([row for row in summary.finalists if row.trial is None])
    return rank(finalists, baselines, summary.search.minimize)


def finalist_chart(summary: SweepSummary) -> Chart | Omitted:
    title = "Trained again from scratch"
    ranking = ranking_of(summary)
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
    """Each configuration and what it is to the winner, the winner first and the baselines last."""
    return [
        (ranking.winner, WINNER),
        *((s, AS_GOOD if _is_as_good(s) else WORSE) for s in ranking.standings[1:]),
        *((s, BASELINE) for s in ranking.baselines),
    ]


def _is_as_good(standing: Standing) -> bool:
    return standing.lead is not None and not standing.lead.tells_apart


def _configurations(rows: Sequence[FinalistRow]) -> list[Configuration]:
    groups: dict[str, list[FinalistRow]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return [
        Configuration(name, group[0].trial, {r.seed: r.value for r in group}, group[0].parameters or 0)
        for name, group in groups.items()
    ]


def _draw(standings: list[tuple[Standing, Role]], metric: str, figure: Figure, palette: Palette) -> None:
    axes = figure.add_subplot()
    colours = _colours(palette)
    for row, (standing, role) in enumerate(standings):
        _draw_standing(axes, row, standing, colours[role], palette)
    axes.axvline(
        standings[0][0].mean.mean, color=colours[WINNER], linestyle=(0, (5, 3)), linewidth=1, zorder=1
    )
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


def _colours(palette: Palette) -> dict[Role, str]:
    marks = palette.marks
    return {
        WINNER: marks["winner"],
        AS_GOOD: marks["pruned"],
        WORSE: marks["complete"],
        BASELINE: marks["running"],
    }
