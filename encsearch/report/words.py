"""The sentences on the first page of a report, except for its answer: see verdict.py."""

from collections.abc import Iterator, Sequence

from encsearch.config import Dimension, Minimized, Sampler, Scheduler
from encsearch.parts import PartName, is_part
from encsearch.report.facts import (
    Straggler,
    best_of,
    comparable,
    ended_early,
    finalists_cost,
    rank_finalists,
    search_cost,
)
from encsearch.report.summary import SweepSummary
from encsearch.report.verdict import describe_rivals, describe_winner
from encsearch.search.budget.rules import spent_by
from encsearch.text import (
    format_cost,
    format_count,
    format_duration,
    format_list,
    format_number,
    format_param,
    format_params,
    format_points,
    format_price,
)

# Trials that a sentence lists.
MAX_NUMBERS = 100


def paragraphs(summary: SweepSummary) -> list[tuple[str, tuple[str, ...]]]:
    """(question, sentences) in the order of the page."""
    candidates = comparable(summary.trials, summary.excluded)
    return [
        ("What was searched", describe_search(summary)),
        ("What won, and how sure", describe_winner(rank_finalists(summary), summary.metric, candidates)),
        ("Who else is as good", describe_rivals(summary)),
        ("What it cost", describe_cost(summary)),
        ("What was left out", describe_left_out(summary)),
        ("How it ended", describe_ending(summary)),
    ]


def describe_search(summary: SweepSummary) -> tuple[str, ...]:
    search = summary.search
    space = [f"{path} ({describe_dimension(dimension)})" for path, dimension in search.space.items()]
    goals = [f"the highest {summary.metric}", *([_goal(search.minimize)] if search.minimize else [])]
    sentences = [
        f"{format_count(len(summary.trials), 'trial')} searched {format_list(space)} for "
        f"{format_list(goals)}.",
        f"The values came from {_method(search.sampler)}{_around(summary)}; {_stopping(search.scheduler)}.",
    ]
    if search.minimize:
        sentences.append("Early stopping compares one figure and does not apply to two objectives.")
    if summary.warm_started:
        sentences.append(
            f"The sampler did not start from nothing: it knew the trials of {summary.warm_started}."
        )
    return (*sentences, describe_fates(summary))


def describe_dimension(dimension: Dimension) -> str:
    """Describe a searched path: its choices or its range, and its condition."""
    values = [format_param(value) for value in dimension.values]
    text = format_list(values, "or") if dimension.kind == "choice" else f"{values[0]} to {values[1]}"
    if dimension.kind.startswith("log"):
        text += ", on a log scale"
    conditions = [
        f"{path} is {format_list([format_param(value) for value in allowed], 'or')}"
        for path, allowed in dimension.when.items()
    ]
    return f"{text}, where {format_list(conditions)}" if conditions else text


def describe_fates(summary: SweepSummary) -> str:
    """Count the trials by the way they ended."""
    trials = summary.trials
    trained = [trial for trial in trials if not trial.refused]
    pruned = [trial for trial in trained if trial.state == "PRUNED"]
    counts = {
        "ran to the end": sum(
            trial.state == "COMPLETE" and not ended_early(summary, trial) for trial in trained
        ),
        "ended by train.early_stop": sum(ended_early(summary, trial) for trial in trained),
        "stopped early": sum(trial.reason is None for trial in pruned),
        "ended by the budget": sum(trial.reason is not None for trial in pruned),
        "refused by a limit": len(trials) - len(trained),
        "failed": sum(trial.state == "FAIL" for trial in trained),
        "not ended": sum(trial.state == "RUNNING" for trial in trained),
    }
    parts = [f"{format_count(count)} {fate}" for fate, count in counts.items() if count]
    return f"Outcomes: {format_list(parts)}." if parts else "None was started."


def describe_cost(summary: SweepSummary) -> tuple[str, ...]:
    unit, search, finalists = summary.cost_unit, search_cost(summary), finalists_cost(summary)
    trained = [trial for trial in summary.trials if not trial.refused]
    used = sum(trial.epochs for trial in trained)
    planned = sum(trial.epochs if ended_early(summary, trial) else summary.epochs for trial in trained)
    trainings = format_count(len(summary.finalists), "training")
    price = summary.config.scaling.price
    sentences = [
        f"{format_cost(search + finalists, unit)}{format_price(price(search + finalists))}: "
        f"{format_cost(search, unit)} for the search, "
        f"{format_cost(finalists, unit)} for {trainings} from scratch after it."
        if summary.finalists
        else f"{format_cost(search, unit)}{format_price(price(search))}, all of it for the search."
    ]
    sentences.append(f"These are booked {unit}s times the seconds of their epochs, idle or not.")
    sentences += _price_points(summary, price(search + finalists))
    if summary.wall_seconds is not None:
        sentences.append(f"From start to end it took {format_duration(summary.wall_seconds)}.")
    epochs = f"{format_count(used)} of the {format_count(planned)} epochs"
    sentences.append(f"The trials ran {epochs} that they would have taken to the end.")
    return tuple(sentences)


def _price_points(summary: SweepSummary, price: float | None) -> list[str]:
    """What a point of the metric cost that the best trial has over the first one."""
    trials = comparable(summary.trials, summary.excluded)
    best = best_of(trials)
    if price is None or best is None or not trials or best[0] <= trials[0][0]:
        return []
    gain = best[0] - trials[0][0]
    each = format_price(price / (100 * gain), " a point").removeprefix(", ")
    return [f"Over the first trial the search gained {format_points(gain)}: {each}."]


def describe_left_out(summary: SweepSummary) -> tuple[str, ...]:
    """List the trials that do not count; the reasons are in a table further down."""
    failed = [trial.number for trial in summary.trials if trial.state == "FAIL"]
    refused = [trial.number for trial in summary.trials if trial.refused]
    reruns = [f"{t.number} (repeats {t.rerun_of})" for t in summary.trials if t.rerun_of is not None]
    sentences = []
    if summary.flags:
        verb = "is" if len(summary.flags) == 1 else "are"
        fate = "kept nevertheless" if summary.search.flagged == "keep" else "left out of the choice"
        sentences.append(
            f"{_trials(sorted(summary.flags))} ran under other conditions and {verb} {fate} "
            f"(search.flagged={summary.search.flagged})."
        )
    if reruns:
        sentences.append(f"Run again for this reason: {format_list(reruns)}.")
    if refused:
        sentences.append(f"{_trials(refused)} exceeded search.limits.")
    if failed:
        sentences.append(f"{_trials(failed)} failed.")
    return (*sentences, "The reasons are below.") if sentences else ("Nothing: every trial counts.",)


def describe_ending(summary: SweepSummary) -> tuple[str, ...]:
    """Describe which limit ended the search, whether the sweep kept it, and the next values."""
    started, planned = spent_by(summary.trials, 0.0).trials, summary.search.budget.trials
    if summary.ended_by is not None:
        first = f"After {format_count(started, 'trial')} of {planned}: {summary.ended_by}."
    elif started < planned:
        first = f"After {format_count(started, 'trial')} of {planned} there was nothing left to try."
    else:
        first = f"All {format_count(started, 'trial')} of the budget were run."
    sentences = [first, *_overrun(summary)]
    if summary.next_values:
        trials = [f"({format_params(values)})" for values in summary.next_values]
        sentences.append(f"It would have tried next: {format_list(trials)}.")
    return tuple(sentences)


def describe_stragglers(slow: Sequence[Straggler]) -> str:
    if not slow:
        return "No trial took over twice the median time an epoch."
    parts = [
        f"trial {s.number} ({format_duration(s.seconds_an_epoch)}, {format_number(s.ratio)} times)"
        for s in slow
    ]
    return (
        f"Over twice the median time an epoch: {format_list(parts)}. A larger network, a slower machine, or "
        "a device shared with others may be why."
    )


def _goal(minimize: Minimized) -> str:
    match minimize:
        case "parameters":
            return "the fewest parameters"
        case "latency_ms":
            return "the lowest latency_ms"


def _method(sampler: Sampler | PartName) -> str:
    if is_part(sampler):
        return sampler
    match sampler:
        case "tpe":
            return "TPE"
        case "gp":
            return "a Gaussian process"
        case "cmaes":
            return "CMA-ES"
        case "random":
            return "random draws"
        case "grid":
            return "a grid"
        case "qmc":
            return "a quasi-random sequence"


def _around(summary: SweepSummary) -> str:
    count = sum(trial.origin == "prior" for trial in summary.trials)
    return f", those of {format_count(count, 'trial')} from around the prior" if count else ""


def _stopping(scheduler: Scheduler) -> str:
    match scheduler:
        case "asha":
            return "ASHA paused every trial at a rung, and the best went on"
        case "asha_stop":
            return "ASHA stopped the weaker trials early"
        case "hyperband":
            return "Hyperband stopped the weaker trials of each bracket early"
        case "median":
            return "the median rule stopped the weaker trials early"
        case "none":
            return "no trial was to be stopped early"


def _overrun(summary: SweepSummary) -> Iterator[str]:
    """Report an overrun: finalists that have begun are not cut, so they may exceed their reserved time."""
    taken_s, wall_s = summary.wall_seconds, summary.search.budget.wall
    if taken_s is not None and wall_s is not None and taken_s > wall_s:
        yield (
            f"It took {format_duration(taken_s)}, over its wall budget of {format_duration(wall_s)}: the "
            "finalists took longer than the time reserved for them."
        )


def _trials(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:MAX_NUMBERS]]
    if len(numbers) > MAX_NUMBERS:
        shown.append(f"{format_count(len(numbers) - MAX_NUMBERS)} more")
    return f"Trial{'' if len(numbers) == 1 else 's'} {format_list(shown)}"
