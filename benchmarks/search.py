"""How many epochs does a search need? encsearch against random and Ray's stock search on real surfaces.

    python -m benchmarks.search                      # from the repository's root, 100 seeds, all surfaces

A surface is a training of every point of a grid over K x SE weight x learning rate, made by
benchmarks/search_surface.py. A search is told the curve of the cell that is nearest to what it proposes, and
an epoch of any trial costs 1. encsearch runs with the defaults of `search`, the recipe's values as its prior
and as the point that it tries first. Two questions are answered:

- epochs of all trials until one reaches 96 to 99 % of the surface's best, and the turns that this took: in a
  turn each worker trains an epoch, or waits. After the epochs of the whole grid a search has not arrived;
- the mean over fresh seeds of what a search ends with, for a number of epochs in all, finalists included.

Every method has the same space, workers and curves. Writes JSON, prints Markdown tables, and draws the share
of the seeds that have arrived.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.search_simulation import (
    LR,
    NUM_CODEWORDS,
    SE_WEIGHT,
    InOrder,
    Method,
    Metric,
    Surface,
    Values,
    by_means,
    find_hits,
    floor,
    load_surface,
    simulate,
)
from benchmarks.search_surface import FOLDER, PLANS
from encsearch.config import Config, Dimension, SearchConfig, load_config, with_values
from encsearch.search.study.proposals import Prior, recipe_prior
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study, known_points

UNITS = ("epochs", "turns")
SHARES = (0.99, 0.98, 0.97, 0.96)
WORKERS = (4, 1)
BUDGETS, FINALISTS = (135, 270, 540), 3
OURS, STOCK, RANDOM = "encsearch", "Ray OptunaSearch + ASHAScheduler", "random, full trainings"
WRONG, VERY_WRONG = "encsearch, wrong prior", "encsearch, very wrong prior"
# Close to what encsearch did before: it had a second rung at epoch 24 of 27.
BEFORE = "encsearch as before: ends at epoch 6, no prior"
STOCK_WITH, RANDOM_WITH = f"{STOCK}, first point", "random, first point"
FRESH = "mean of fresh seeds"
# What the slices of K and the other metrics are compared by.
MAIN = (OURS, BEFORE, WRONG, VERY_WRONG, STOCK, RANDOM)

Make = Callable[[int], Method]


def main() -> None:
    arguments = parse()
    results: dict[str, Any] = {}
    with ProcessPoolExecutor() as pool:
        for name in arguments.surfaces:
            results[name] = measure_surface(name, arguments.seeds, pool)
            print(describe(name, results[name]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summarize(results), indent=1) + "\n")
    draw(results, arguments.picture)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--surfaces", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/search_benchmark.png"))
    return parser.parse_args()


def measure_surface(name: str, seeds: int, pool: Executor) -> dict[str, Any]:
    """All settings of a surface: by setting the floors, and by method the hits of each seed."""
    recipe, path = PLANS[name].recipe, FOLDER / f"{name}.parquet"
    whole = load_surface(path)
    settings: dict[str, Any] = {}
    for workers in WORKERS:
        settings[f"mIoU, {count_workers(workers)}"] = measure(whole, recipe, workers, seeds, pool)
    for k in whole.num_codewords.tolist():
        settings[f"mIoU, K = {k}"] = measure(whole.slice(k), recipe, WORKERS[0], seeds, pool, MAIN)
    settings[FRESH] = measure_fresh(whole, recipe, seeds, pool)
    if has_metric(path, "miou_ambiguous"):
        other = load_surface(path, "miou_ambiguous")
        settings["ambiguous mIoU"] = measure(other, recipe, WORKERS[0], seeds, pool, MAIN)
    return {
        "cells": whole.miou[..., 0].size,
        "epochs_a_cell": whole.epochs,
        "best_miou": whole.best,
        "settings": settings,
        "gets": {budget: measure_outcome(whole, recipe, budget, seeds) for budget in BUDGETS},
    }


def measure(
    surface: Surface,
    recipe: str,
    workers: int,
    seeds: int,
    pool: Executor,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    targets = [share * surface.best for share in SHARES]
    names = [name for name in methods(surface, recipe) if only is None or name in only]
    hits = {name: pool.map(partial(search, surface, recipe, workers, name), range(seeds)) for name in names}
    return {
        "floors": [floor(surface, target, workers) for target in targets],
        "cells_that_reach": [int((surface.miou.max(axis=-1) >= target).sum()) for target in targets],
        "hits": {name: list(found) for name, found in hits.items()},
    }


def measure_fresh(surface: Surface, recipe: str, seeds: int, pool: Executor) -> dict[str, Any]:
    """Until a cell whose mean over fresh seeds reaches a share of the best mean is trained to its end."""
    means, workers = surface.means.values(), WORKERS[0]
    run = partial(search, surface, recipe, workers, is_fresh=True)
    hits = {name: pool.map(partial(run, name), range(seeds)) for name in MAIN}
    return {
        "floors": [(surface.epochs - 1) * workers + 1] * len(SHARES),
        "cells_that_reach": [sum(mean >= share * max(means) for mean in means) for share in SHARES],
        "hits": {name: list(found) for name, found in hits.items()},
    }


def search(
    surface: Surface, recipe: str, workers: int, name: str, seed: int, *, is_fresh: bool = False
) -> list[dict[str, int] | None]:
    """When one search reached each of the SHARES."""
    events = simulate(methods(surface, recipe)[name](seed), surface, workers)
    best = surface.best
    if is_fresh:
        events, best = by_means(events, surface), max(surface.means.values())
    hits = find_hits(events, [share * best for share in SHARES], surface.miou.size)
    return [asdict(hit) if hit else None for hit in hits]


def measure_outcome(surface: Surface, recipe: str, budget: int, seeds: int) -> dict[str, Any]:
    """By method, for each seed the mean of the winner's fresh seeds after `budget` epochs in all.

    The search leaves what FINALISTS trainings take; the one with the best first fresh seed wins. A cell
    without fresh seeds counts with its own figure, which is too high; their number is given.
    """
    found: dict[str, Any] = {"best_known": max(surface.means.values())}
    for name, make in methods(surface, recipe).items():
        if name not in MAIN:
            continue
        won = [find_winner(make(seed), surface, budget - FINALISTS * surface.epochs) for seed in range(seeds)]
        means = [surface.means.get(cell, float(surface.miou[cell].max())) for cell in won]
        found[name] = {"means": means, "without_fresh_seeds": sum(cell not in surface.truth for cell in won)}
    return found


def find_winner(method: Method, surface: Surface, limit: int) -> tuple[int, int, int]:
    """The cell that wins among the finalists: those with the most epochs, then the best value."""
    standing: dict[tuple[int, int, int], tuple[int, float]] = {}
    for event in islice(simulate(method, surface, WORKERS[0]), limit):
        cell = surface.cell(event.values)
        before = standing.get(cell, (0, -math.inf))
        standing[cell] = max(before[0], event.epoch), max(before[1], event.value)
    finalists = sorted(standing, key=lambda cell: standing[cell], reverse=True)[:FINALISTS]
    return max(finalists, key=lambda cell: surface.truth.get(cell, [surface.miou[cell].max()])[0])


def methods(surface: Surface, recipe: str) -> dict[str, Make]:
    """By name: what makes the method for a seed. A wrong prior is of a recipe with a poor cell's values."""
    space, epochs, config = search_space(surface), surface.epochs, load_config(recipe)
    cells = sorted(surface.cells(), key=lambda cell: surface.curve(cell).max())
    wrong, very_wrong = cells[len(cells) // 4], cells[0]
    ours = partial(Encsearch, space, epochs, config)
    first = known_points(config, SearchConfig(space=dict(space)))
    before = {"scheduler": "asha_stop", "asha": {"grace_epochs": max(1, epochs // 4)}}
    return {
        OURS: ours,
        BEFORE: partial(ours, words=True, prior="off", uniform=0.0, **before),
        "encsearch, prior off": partial(ours, prior="off"),
        "encsearch, choices as words": partial(ours, words=True),
        "encsearch, stopped for good": partial(ours, scheduler="asha_stop"),
        "encsearch, random sampler": partial(ours, sampler="random"),
        "TPE alone": partial(ours, prior="off", uniform=0.0, scheduler="none"),
        WRONG: partial(Encsearch, space, epochs, with_values(config, wrong)),
        VERY_WRONG: partial(Encsearch, space, epochs, with_values(config, very_wrong)),
        STOCK: partial(Stock, space, epochs, ()),
        STOCK_WITH: partial(Stock, space, epochs, first),
        RANDOM: lambda seed: InOrder(random_points(space, seed), epochs),
        RANDOM_WITH: lambda seed: InOrder(chain(first, random_points(space, seed)), epochs),
    }


class Encsearch:
    """encsearch's own study and scheduler, with every default but what `changes` says of `search`."""

    def __init__(
        self,
        space: Mapping[str, Dimension],
        epochs: int,
        config: Config,
        seed: int,
        *,
        words: bool = False,
        **changes: Any,
    ) -> None:
        """With `words` the sampler does not know that a choice's values are numbers."""
        search = SearchConfig(space=dict(space), seed=seed, **changes)
        points, prior = known_points(config, search), recipe_prior(config, search)
        self._read: dict[str, int] = {}
        if words:
            self._read = {f"k{value}": value for value in space[NUM_CODEWORDS].values}
            named = {**space, NUM_CODEWORDS: Dimension(choice=tuple(self._read))}
            search = search.model_copy(update={"space": named})
            points = tuple(map(self._name, points))
            prior = Prior(tuple(map(self._name, prior.centers)))
        self._study, self._epochs = Study(MEMORY, "simulation", search, epochs), epochs
        self._values: dict[int, Values] = {}
        self._study.believe(prior)
        self._study.queue(points)

    def _name(self, point: Values) -> Values:
        """A point with K as a word; without K if no word is its value."""
        word = f"k{point.get(NUM_CODEWORDS)}"
        rest = {path: value for path, value in point.items() if path != NUM_CODEWORDS}
        return {**rest, NUM_CODEWORDS: word} if word in self._read else rest

    def propose(self) -> tuple[int, Values] | None:
        number = self._study.promote(keep_one=False)
        if number is None:
            proposal = self._study.ask()
            if proposal is None:
                return None
            number = proposal.number
            k = proposal.values[NUM_CODEWORDS]
            self._values[number] = {**proposal.values, NUM_CODEWORDS: self._read.get(k, k)}
        return number, self._values[number]

    def ends(self, number: int, epoch: int, value: float) -> bool:
        self._study.report(number, epoch, value)
        if epoch == self._epochs:
            self._study.complete(number)
            return True
        match self._study.judge(number):
            case "continue":
                return False
            case "pause":
                self._study.pause(number)
            case "stop":
                self._study.prune(number)
        return True


class Stock:
    """Ray's own classes, by default with their defaults, called in the order of its controller.

    Ray 2.60, TuneController._process_trial_result and stop_trial: the searcher is not told of a report that
    stops its trial, and takes the last value for that of a finished trial.
    """

    def __init__(
        self,
        space: Mapping[str, Dimension],
        epochs: int,
        first: Sequence[Values],
        seed: int,
        *,
        grace_period: int = 1,
        reduction_factor: int = 4,
    ) -> None:
        self._searcher = OptunaSearch(seed=seed, points_to_evaluate=[dict(point) for point in first])
        domains = {path: tune_domain(dimension) for path, dimension in space.items()}
        self._searcher.set_search_properties("mIoU", "max", domains)
        self._scheduler = ASHAScheduler(
            metric="mIoU",
            mode="max",
            max_t=epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        self._trials: list[SimpleNamespace] = []

    def propose(self) -> tuple[int, Values] | None:
        trial = SimpleNamespace(trial_id=str(len(self._trials)))
        values = self._searcher.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        self._trials.append(trial)
        return len(self._trials) - 1, values

    def ends(self, number: int, epoch: int, value: float) -> bool:
        trial, result = self._trials[number], {"mIoU": value, "training_iteration": epoch}
        if self._scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            self._scheduler.on_trial_complete(None, trial, result)
            self._searcher.on_trial_complete(trial.trial_id, result)
            return True
        self._searcher.on_trial_result(trial.trial_id, result)
        return False


def search_space(surface: Surface) -> dict[str, Dimension]:
    """The extent of the surface, K as a choice as in the recipe."""
    return {
        NUM_CODEWORDS: Dimension(choice=tuple(surface.num_codewords.tolist())),
        SE_WEIGHT: Dimension(uniform=(surface.se_weights.min(), surface.se_weights.max())),
        LR: Dimension(loguniform=(surface.lrs.min(), surface.lrs.max())),
    }


def random_points(space: Mapping[str, Dimension], seed: int) -> Iterator[Values]:
    """Uniform over choices and ranges, over the logarithm where a range is logarithmic."""
    rng = np.random.default_rng(seed)
    while True:
        yield {path: _draw(rng, dimension) for path, dimension in space.items()}


def tune_domain(dimension: Dimension) -> tune.search.sample.Domain:
    """The dimension in Ray Tune's terms."""
    if dimension.kind == "choice":
        return tune.choice(list(dimension.values))
    return (tune.loguniform if dimension.kind == "loguniform" else tune.uniform)(*dimension.values)


def _draw(rng: np.random.Generator, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return dimension.values[rng.integers(len(dimension.values))]
    low, high = dimension.values
    if dimension.kind == "loguniform":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return rng.uniform(low, high)


def has_metric(path: Path, metric: Metric) -> bool:
    return bool(pq.read_table(path, columns=[metric])[metric].null_count == 0)


def count_workers(count: int) -> str:
    return f"{count} worker" + "s" * (count > 1)


def quartiles(hits: Sequence[Mapping[str, int] | None], what: str = "epochs") -> tuple[float, float, float]:
    """Lower, median, upper: order statistics, since a search that never arrived took infinitely long."""
    values = [hit[what] if hit else math.inf for hit in hits]
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    return lower, median, upper


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the hits of each method and share as quartiles, null where a search did not arrive."""

    def one(hits: Sequence[Mapping[str, int] | None]) -> dict[str, Any]:
        figures = {what: [v if math.isfinite(v) else None for v in quartiles(hits, what)] for what in UNITS}
        return {**figures, "reached": sum(hit is not None for hit in hits)}

    short: dict[str, Any] = json.loads(json.dumps(results))
    for found in short.values():
        for measured in found["settings"].values():
            hits = measured.pop("hits")
            measured["methods"] = {
                name: [one(share) for share in zip(*seeds, strict=True)] for name, seeds in hits.items()
            }
        for by_method in found["gets"].values():
            for name in by_method.keys() - {"best_known"}:
                by_method[name]["mean"] = float(np.mean(by_method[name].pop("means")))
    return short


def describe(name: str, found: Mapping[str, Any]) -> str:
    """A table a setting and target; the ratios are those of the medians, random search over the method.

    A median that did not arrive is inf, and so is a ratio to a random search of which half did not.
    Where neither arrived it is nan.
    """
    lines = [f"## {name}: {found['cells']} cells, best mIoU {found['best_miou']:.4f}"]
    for setting, measured in found["settings"].items():
        for place, share in enumerate(SHARES):
            by_method = {
                method: [hits[place] for hits in seeds] for method, seeds in measured["hits"].items()
            }
            head = f"{setting}, {share:.0%} of the best ({measured['cells_that_reach'][place]} cells)"
            lines += ["", f"### {head}; floor {measured['floors'][place]}", "", *table(by_method)]
    lines += ["", "### Mean over fresh seeds of what a search ends with", "", *outcome_table(found["gets"])]
    return "\n".join(lines)


def table(by_method: Mapping[str, Sequence[Mapping[str, int] | None]]) -> list[str]:
    lines = [
        "| method | median epochs | quartiles | reached | random / method | turns, random / method |",
        "|---|---|---|---|---|---|",
    ]
    epochs_of_random, turns_of_random = (quartiles(by_method[RANDOM], w)[1] for w in UNITS)
    for name, hits in by_method.items():
        lower, median, upper = quartiles(hits)
        turns = quartiles(hits, "turns")[1]
        reached = sum(hit is not None for hit in hits)
        lines.append(
            f"| {name} | {median:.0f} | {lower:.0f} - {upper:.0f} | {reached}/{len(hits)} "
            f"| {epochs_of_random / median:.2f} | {turns_of_random / turns:.2f} |"
        )
    return lines


def outcome_table(gets: Mapping[int, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| epochs in all | method | mean | regret | seeds without fresh trainings |",
        "|---|---|---|---|---|",
    ]
    for budget, by_method in gets.items():
        for name, outcome in by_method.items():
            if name == "best_known":
                continue
            mean = float(np.mean(outcome["means"]))
            regret = by_method["best_known"] - mean
            missing = outcome["without_fresh_seeds"]
            lines.append(f"| {budget} | {name} | {mean:.4f} | {regret:.4f} | {missing} |")
    return lines


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The share of the seeds that have arrived at 99 %, by epochs spent on a logarithmic axis."""
    figure = Figure(figsize=(4.2 * len(results), 3.8), layout="constrained")
    shown = {OURS: "C0", STOCK: "C1", RANDOM: "C2"}
    for axes, (name, found) in zip(
        figure.subplots(1, len(results), sharey=True, squeeze=False)[0], results.items(), strict=True
    ):
        hits = found["settings"][f"mIoU, {count_workers(WORKERS[0])}"]["hits"]
        for method, colour in shown.items():
            arrived = sorted(seed[0]["epochs"] for seed in hits[method] if seed[0])
            share = np.arange(1, len(arrived) + 1) / len(hits[method])
            axes.step(arrived, share, where="post", color=colour, label=method)
        axes.set(xscale="log", xlabel="epochs of all trials", ylim=(0, 1), title=name)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.axes[0].set_ylabel(f"seeds at {SHARES[0]:.0%} of the best mIoU")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
