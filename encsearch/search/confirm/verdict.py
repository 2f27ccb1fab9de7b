"""What a ranking says, in plain sentences."""

from collections.abc import Iterator, Sequence

from encsearch.search.confirm.ranking import Ranking, Standing
from encsearch.search.statistics import Estimate
from encsearch.search.trials import TrialRecord


def verdict(ranking: Ranking | None, metric: str, trials: Sequence[TrialRecord]) -> tuple[str, ...]:
    """What won, how sure that is, what is as good, and how it stands against the baselines.

    `ranking` is None where nothing was confirmed; `trials` are those of the search. Their maximum is the
    largest of many noisy values and so too high on average: it is never given as what to expect.
    """
    best = best_of_search(trials)
    if best is None:
        return ("No trial has a value: there is no winner.",)
    if ranking is None:
        return (
            _bias(best, trials),
            "Nothing was trained again from scratch, so expect less from a new training.",
        )
    return (
        _result(ranking.winner, metric),
        *_why(ranking, metric),
        *_as_good(ranking),
        *_optimism(ranking),
        *(_against(standing) for standing in ranking.baselines),
        *_assumption(ranking),
        f"{_bias(best, trials)} {_excess(best, ranking)}",
    )


def best_of_search(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest value, or None."""
    return max(_scored(trials), key=lambda trial: trial.value or 0.0, default=None)


def _scored(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.value is not None and trial.state != "FAIL"]


def _result(winner: Standing, metric: str) -> str:
    seeds = len(winner.configuration.values)
    trained = f"Trained again from scratch with {_count(seeds, 'seed')}, {winner.name} reaches {metric}"
    if winner.mean.interval is None:
        return f"{trained} {winner.mean.mean:.4f}."
    return f"{trained} {winner.mean.mean:.4f} on average ({_interval(winner.mean)})."


def _why(ranking: Ranking, metric: str) -> Iterator[str]:
    """By which rule it has won, or that no rule can tell."""
    winner, count = ranking.winner, len(ranking.standings)
    if ranking.standard_error is None:
        yield "With one seed the noise between seeds is unknown: another may be better or worse."
        if count > 1:
            yield f"The best value of {count} finalists won; whether it is the best of them cannot be told."
    elif ranking.best != winner.name:
        yield _smaller(ranking, ranking.standard_error)
    elif count > 1:
        bound = f"It has the best lower 95 % bound of {count} finalists, {winner.lower_bound:.4f}"
        smaller = f"no smaller one is as good within one standard error ({ranking.standard_error:.4f})"
        yield f"{bound}." if ranking.minimize else f"{bound}, and {smaller}."
    if ranking.minimize:
        yield (
            f"The finalists are of the Pareto front of {metric} and {ranking.minimize}: none is better in "
            "both, so this winner is a proposal, and the front is there to choose from."
        )


def _smaller(ranking: Ranking, error: float) -> str:
    winner = ranking.winner
    best = next(standing for standing in ranking.standings if standing.name == ranking.best)
    return (
        f"The best lower 95 % bound is that of {best.name}, {best.lower_bound:.4f}; {winner.name} with "
        f"{winner.lower_bound:.4f} is as good within one standard error ({error:.4f}), and wins by fewer "
        f"parameters: {winner.configuration.parameters:,} instead of {best.configuration.parameters:,}."
    )


def _as_good(ranking: Ranking) -> Iterator[str]:
    """Which finalists cannot be told apart from the winner, and by how much it leads the others."""
    if ranking.freedom and ranking.indistinguishable:
        yield f"With 95 % confidence it cannot be told apart from {_list(ranking.indistinguishable)}."
    for standing in ranking.standings[1:]:
        if standing.lead and standing.lead.tells_apart:
            yield f"It is {_distance(standing.lead, standing.name)}."


def _optimism(ranking: Ranking) -> Iterator[str]:
    """Choosing among finalists is a selection too, of far fewer and surer figures than the search's."""
    if ranking.optimism and len(ranking.standings) > 1:
        yield (
            f"As the best of {len(ranking.standings)} means its own may be too high, by at most "
            f"{ranking.optimism:.4f} on average."
        )


def _against(baseline: Standing) -> str:
    assert baseline.lead
    if baseline.lead.interval is None:
        return f"It is {_distance(baseline.lead, baseline.name)}; one seed each gives no interval."
    told = "" if baseline.lead.tells_apart else ", so the two cannot be told apart"
    return f"It is {_distance(baseline.lead, baseline.name)}{told}."


def _assumption(ranking: Ranking) -> Iterator[str]:
    if ranking.freedom:
        yield (
            "Intervals are Student's t and assume that all configurations vary alike between seeds "
            f"({_count(ranking.freedom, 'degree')} of freedom among the finalists); differences are paired "
            "by seed, and their intervals hold together with 95 %, those over finalists and those over "
            "baselines each."
        )


def _bias(best: TrialRecord, trials: Sequence[TrialRecord]) -> str:
    count = len(_scored(trials))
    return (
        f"The best value inside the search, {best.value:.4f} of trial {best.number}, is the largest of "
        f"{_count(count, 'noisy value')} and so too high on average."
    )


def _excess(best: TrialRecord, ranking: Ranking) -> str:
    """By how much the search's maximum was above the mean of that configuration, else of the winner."""
    standing = next((s for s in ranking.standings if s.configuration.trial == best.number), ranking.winner)
    assert best.value is not None
    above = best.value - standing.mean.mean
    confirmed = f"the confirmed mean of {standing.name}, {standing.mean.mean:.4f}"
    return f"Here it is {abs(above):.4f} {'above' if above >= 0 else 'below'} {confirmed}."


def _distance(lead: Estimate, name: str) -> str:
    interval = f" ({_interval(lead)})" if lead.interval else ""
    return f"{abs(lead.mean):.4f} {'above' if lead.mean >= 0 else 'below'} {name}{interval}"


def _interval(of: Estimate) -> str:
    assert of.interval
    return f"95 % interval {of.interval[0]:.4f} to {of.interval[1]:.4f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
