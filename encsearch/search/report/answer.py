"""The answer of a sweep in words: what won, and how sure that is."""

from encsearch.search.confirm.verdict import verdict
from encsearch.search.report.confirmed import ranking_of
from encsearch.search.report.facts import best_of_search, comparable, finalists_cost, search_cost
from encsearch.search.report.summary import SweepSummary
from encsearch.search.report.text import (
    capital,
    counted,
    format_cost,
    format_duration,
    format_value,
    format_values,
    listed,
)

Tile = tuple[str, str, str]
"""(label, figure, note)"""


def headline(summary: SweepSummary) -> str:
    """The answer in one sentence."""
    ranking = ranking_of(summary)
    if ranking is None:
        best = best_of_search(summary)
        if best is None:
            return "No trial has a value: there is no winner."
        return f"Nothing was confirmed; trial {best.number} was the best of the search, which proves little."
    reached = capital(f"{ranking.winner.name} wins with {summary.metric} {ranking.winner.mean.mean:.4f}")
    if len(ranking.standings) == 1:
        return f"{reached}; no other configuration was confirmed beside it."
    if not ranking.freedom:
        return f"{reached}; with one seed each nobody can tell whether it is the best."
    if ranking.indistinguishable:
        return f"{reached}, but is indistinguishable from {listed(ranking.indistinguishable)}."
    return f"{reached}, and is told apart from {_others(len(ranking.standings))}."


def tiles(summary: SweepSummary) -> list[Tile]:
    """What people look for first."""
    spent = search_cost(summary) + finalists_cost(summary)
    wall = (
        "" if summary.wall_seconds is None else f"{format_duration(summary.wall_seconds)} from start to end"
    )
    to_the_end = sum(trial.state == "COMPLETE" for trial in summary.trials)
    return [
        _confirmed(summary),
        _certainty(summary),
        ("Trials", str(len(summary.trials)), f"{to_the_end} ran to the end"),
        ("Cost", format_cost(spent, summary.cost_unit), wall),
    ]


def won(summary: SweepSummary) -> tuple[str, ...]:
    trials = [trial for _, trial in comparable(summary)]
    return verdict(ranking_of(summary), summary.metric, trials)


def as_good(summary: SweepSummary) -> tuple[str, ...]:
    """The configurations that could as well have won, with their values."""
    ranking = ranking_of(summary)
    if ranking is None or len(ranking.standings) == 1:
        return ("Not known: it takes two configurations that were trained again.",)
    if not ranking.indistinguishable:
        return ("No other finalist.",)
    values = {trial.number: trial.values for trial in summary.trials}
    told = [
        f"{s.name} ({summary.metric} {s.mean.mean:.4f}; {format_values(values[s.configuration.trial])})"
        for s in ranking.standings
        if s.name in ranking.indistinguishable and s.configuration.trial is not None
    ]
    return (f"{capital(listed(told))}.",)


def _confirmed(summary: SweepSummary) -> Tile:
    label, ranking = f"{summary.metric} to expect", ranking_of(summary)
    if ranking is None:
        return (label, format_value(None), "nothing was confirmed")
    mean = ranking.winner.mean
    seeds = f"mean of {len(mean.values)} seeds" if len(mean.values) > 1 else "one seed"
    interval = f", 95 % {mean.interval[0]:.4f} to {mean.interval[1]:.4f}" if mean.interval else ""
    return (label, format_value(mean.mean), seeds + interval)


def _certainty(summary: SweepSummary) -> Tile:
    label, ranking = "Is it the best?", ranking_of(summary)
    if ranking is None or not ranking.freedom or len(ranking.standings) == 1:
        return (label, "not known", "it takes two finalists and two seeds")
    others = _others(len(ranking.standings))
    if ranking.indistinguishable:
        return (label, "cannot be told", f"from {len(ranking.indistinguishable)} of {others}")
    return (label, "of its finalists", f"told apart from {others} with 95 %")


def _others(num_finalists: int) -> str:
    return counted(num_finalists - 1, "other finalist")
