"""The answer of a sweep in plain sentences: what won, and how sure that is."""

from collections.abc import Iterator, Sequence

from encsearch.report.facts import Valued, best_of, comparable, finalists_cost, rank_finalists, search_cost
from encsearch.report.summary import SweepSummary
from encsearch.search.confirm.ranking import Ranking, Standing
from encsearch.search.statistics import Estimate
from encsearch.text import (
    NOTHING,
    capitalize,
    format_cost,
    format_count,
    format_duration,
    format_interval,
    format_list,
    format_params,
    format_points,
    format_score,
)

Tile = tuple[str, str, str]
"""(label, figure, note)"""


def headline(summary: SweepSummary) -> str:
    """The answer in one sentence."""
    ranking = rank_finalists(summary)
    if ranking is None:
        best = best_of(comparable(summary.trials, summary.excluded))
        if best is None:
            return "No trial has a value: there is no winner."
        _, trial = best
        return f"Nothing was confirmed; trial {trial.number} was the best of the search, which proves little."
    winner = ranking.winner
    reached = capitalize(f"{winner.name} wins with {summary.metric} {format_score(winner.mean.mean)}")
    if len(ranking.standings) == 1:
        return f"{reached}; no other configuration was confirmed beside it."
    if not ranking.freedom:
        return f"{reached}; with one seed each it is not known whether it is the best."
    if ranking.indistinguishable:
        return f"{reached}, but is indistinguishable from {format_list(ranking.indistinguishable)}."
    return f"{reached}, and is told apart from {_others(len(ranking.standings))}."


def tiles(summary: SweepSummary) -> list[Tile]:
    """The figures that people look for first."""
    spent = search_cost(summary) + finalists_cost(summary)
    wall = (
        "" if summary.wall_seconds is None else f"{format_duration(summary.wall_seconds)} from start to end"
    )
    finished = sum(trial.state == "COMPLETE" for trial in summary.trials)
    return [
        _confirmed(summary),
        _certainty(summary),
        ("Trials", format_count(len(summary.trials)), f"{format_count(finished)} finished"),
        ("Cost", format_cost(spent, summary.cost_unit), wall),
    ]


def describe_winner(ranking: Ranking | None, metric: str, trials: Sequence[Valued]) -> tuple[str, ...]:
    """Describe the winner, its confidence, the finalists as good as it, and its lead over the baselines.

    `ranking` is None where nothing was confirmed; `trials` are the ones that may win. Their maximum is the
    largest of many noisy values and so too high on average: it is never reported as the expected value.
    """
    best = best_of(trials)
    if best is None:
        return ("No trial has a value: there is no winner.",)
    if ranking is None:
        return (
            _bias(best, len(trials)),
            "Nothing was trained again from scratch, so expect less from a new training.",
        )
    return (
        _result(ranking.winner, metric),
        *_explain_rule(ranking, metric),
        *_compare_finalists(ranking),
        *_optimism(ranking),
        *(_compare_baseline(standing) for standing in ranking.baselines),
        *_assumption(ranking),
        f"{_bias(best, len(trials))} {_excess(best, ranking)}",
    )


def describe_rivals(summary: SweepSummary) -> tuple[str, ...]:
    """List the configurations as good as the winner, with their values."""
    ranking = rank_finalists(summary)
    if ranking is None or len(ranking.standings) == 1:
        return ("Not known: it takes two configurations that were trained again.",)
    if not ranking.indistinguishable:
        return ("No other finalist.",)
    values = {trial.number: trial.values for trial in summary.trials}
    rivals = [
        f"{s.name} ({summary.metric} {format_score(s.mean.mean)}; "
        f"{format_params(values[s.configuration.trial])})"
        for s in ranking.standings
        if s.name in ranking.indistinguishable and s.configuration.trial is not None
    ]
    return (f"{capitalize(format_list(rivals))}.",)


def _confirmed(summary: SweepSummary) -> Tile:
    label, ranking = f"{summary.metric} to expect", rank_finalists(summary)
    if ranking is None:
        return (label, NOTHING, "nothing was confirmed")
    mean = ranking.winner.mean
    seeds = f"mean of {format_count(len(mean.values), 'seed')}" if len(mean.values) > 1 else "one seed"
    interval = f", 95 % interval {format_interval(mean.interval)}" if mean.interval else ""
    return (label, format_score(mean.mean), seeds + interval)


def _certainty(summary: SweepSummary) -> Tile:
    label, ranking = "Is it the best?", rank_finalists(summary)
    if ranking is None or not ranking.freedom or len(ranking.standings) == 1:
        return (label, "not known", "it takes two finalists and two seeds")
    others = _others(len(ranking.standings))
    if ranking.indistinguishable:
        return (label, "not certain", f"not told apart from {len(ranking.indistinguishable)} of {others}")
    return (label, "among its finalists", f"told apart from {others} with 95 %")


def _others(num_finalists: int) -> str:
    return format_count(num_finalists - 1, "other finalist")


def _result(winner: Standing, metric: str) -> str:
    seeds = len(winner.configuration.values)
    trained = f"Trained again from scratch with {format_count(seeds, 'seed')}, {winner.name} reaches {metric}"
    if winner.mean.interval is None:
        return f"{trained} {format_score(winner.mean.mean)}."
    interval = format_interval(winner.mean.interval)
    return f"{trained} {format_score(winner.mean.mean)} on average (95 % interval {interval})."


def _explain_rule(ranking: Ranking, metric: str) -> Iterator[str]:
    """The rule by which it won, or that no rule could decide."""
    winner, count = ranking.winner, len(ranking.standings)
    if ranking.standard_error is None:
        yield "With one seed the noise between seeds is unknown: another may be better or worse."
        if count > 1:
            yield f"The best value of {count} finalists won; whether it is really the best is not known."
    elif ranking.best != winner.name:
        yield _explain_smaller(ranking, ranking.standard_error)
    elif count > 1:
        bound = f"It has the best lower 95 % bound of {count} finalists, {format_score(winner.lower_bound)}"
        error = format_points(ranking.standard_error)
        smaller = f"no smaller one is as good within one standard error ({error})"
        yield f"{bound}." if ranking.minimize else f"{bound}, and {smaller}."
    if ranking.minimize:
        yield (
            f"The finalists come from the Pareto front of {metric} and {ranking.minimize}: none is better in "
            "both, so this winner is a proposal; you can choose another from the front."
        )


def _explain_smaller(ranking: Ranking, error: float) -> str:
    winner = ranking.winner
    best = next(standing for standing in ranking.standings if standing.name == ranking.best)
    return (
        f"{capitalize(best.name)} has the best lower 95 % bound, {format_score(best.lower_bound)}; "
        f"{winner.name} with {format_score(winner.lower_bound)} is as good within one standard error "
        f"({format_points(error)}), and wins by fewer parameters: "
        f"{format_count(winner.configuration.parameters)} instead of "
        f"{format_count(best.configuration.parameters)}."
    )


def _compare_finalists(ranking: Ranking) -> Iterator[str]:
    """The finalists that cannot be told apart from the winner, and its lead over the others."""
    if ranking.freedom and ranking.indistinguishable:
        yield f"With 95 % confidence it cannot be told apart from {format_list(ranking.indistinguishable)}."
    for standing in ranking.standings[1:]:
        if standing.lead and standing.lead.tells_apart:
            yield f"It is {_distance(standing.lead, standing.name)}."


def _optimism(ranking: Ranking) -> Iterator[str]:
    """Choosing among finalists is a selection too, of far fewer and surer figures than the search's."""
    if ranking.optimism and len(ranking.standings) > 1:
        yield (
            f"Being the best of {len(ranking.standings)} means, its own may be too high, by at most "
            f"{format_points(ranking.optimism)} on average."
        )


def _compare_baseline(baseline: Standing) -> str:
    assert baseline.lead
    if baseline.lead.interval is None:
        return f"It is {_distance(baseline.lead, baseline.name)}; one seed each gives no interval."
    addition = "" if baseline.lead.tells_apart else ", so the two cannot be told apart"
    return f"It is {_distance(baseline.lead, baseline.name)}{addition}."


def _assumption(ranking: Ranking) -> Iterator[str]:
    if ranking.freedom:
        yield (
            "Intervals are Student's t and assume that all configurations vary alike between seeds "
            f"({format_count(ranking.freedom, 'degree')} of freedom among the finalists); differences are "
            "paired by seed, and their intervals hold together with 95 %, separately for finalists and "
            "for baselines."
        )


def _bias(best: Valued, count: int) -> str:
    value, trial = best
    return (
        f"The best value inside the search, {format_score(value)} of trial {trial.number}, is the largest of "
        f"{format_count(count, 'noisy value')} and so too high on average."
    )


def _excess(best: Valued, ranking: Ranking) -> str:
    """Distance of the search's maximum from that configuration's mean, or else from the winner's."""
    value, trial = best
    standing = next((s for s in ranking.standings if s.configuration.trial == trial.number), ranking.winner)
    above = value - standing.mean.mean
    confirmed = f"the confirmed mean of {standing.name}, {format_score(standing.mean.mean)}"
    if above >= 0:
        return f"Here it is {format_points(above)} above {confirmed}."
    return f"Here, though, it is {format_points(-above)} below {confirmed}."


def _distance(lead: Estimate, name: str) -> str:
    interval = f" (95 % interval {format_interval(lead.interval, signed=True)})" if lead.interval else ""
    return f"{format_points(abs(lead.mean))} {'above' if lead.mean >= 0 else 'below'} {name}{interval}"
