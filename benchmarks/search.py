"""How many epochs does a search need? encsearch against random, grid and Ray's stock search on one surface.

    python -m benchmarks.search                      # from the repository's root

The surface is real: a training of every point of a grid over K x SE weight x learning rate, made by
benchmarks/search_surface.py. A search is told the curve of the cell that is nearest to what it proposes, four
trials at once, and an epoch of any trial costs 1. Counted are the epochs of all trials until one reports 99 %
of the best mIoU of the whole surface. Every method has the same space, concurrency and curves. Prints a
Markdown table and what it rests on, writes JSON, and draws the share of the seeds that have arrived.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
    Surface,
    Values,
    epochs_to,
    load_surface,
    reports,
)
from encsearch.config import Dimension, SearchConfig, load_config
from encsearch.config.search import AshaConfig
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study, known_points

RECIPE = "jobs/recipes/demo.yaml"
SHARE_OF_BEST = 0.99
OURS, STOCK, RANDOM, GRID = "encsearch", "Ray OptunaSearch + ASHAScheduler", "random", "grid, random order"
EARLY_RUNGS = "encsearch, rungs at 1, 3, 9 epochs"
OURS_WITHOUT, STOCK_WITH = f"{OURS}, no first point", f"{STOCK}, encsearch's first point"


def main() -> None:
    arguments = parse()
    surface = load_surface(arguments.surface)
    measure = partial(measured, surface=surface, workers=arguments.workers, limit=surface.miou.size)
    spent = {
        name: [measure(make(seed)) for seed in range(arguments.seeds)]
        for name, make in methods(surface).items()
    }
    facts = {
        **facts_of(surface),
        "workers": arguments.workers,
        "limit": surface.miou.size,
        "grid_in_fixed_order": measure(InOrder(surface.cells(), surface.epochs)),
        "against_stock": compared(spent[OURS], spent[STOCK]),
        "against_stock_both_without_first_point": compared(spent[OURS_WITHOUT], spent[STOCK]),
        "against_stock_both_with_first_point": compared(spent[OURS], spent[STOCK_WITH]),
    }
    print(table(spent))
    print(json.dumps(facts, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**facts, "table": table(spent).splitlines(), "epochs": spent}) + "\n"
    )
    draw(spent, arguments.picture)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4, help="trials at once")
    parser.add_argument("--surface", type=Path, default=Path("benchmarks/surface/scenes.parquet"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/search_benchmark.png"))
    return parser.parse_args()


def methods(surface: Surface) -> dict[str, Callable[[int], Method]]:
    """By name: what makes the method for a seed. The first point is what encsearch tries first by default."""
    space, epochs = search_space(surface), surface.epochs
    first = first_points(space)
    return {
        OURS: partial(Encsearch, space, epochs, first),
        OURS_WITHOUT: partial(Encsearch, space, epochs, ()),
        f"{OURS_WITHOUT}, no stopping": partial(Encsearch, space, epochs, (), scheduler="none"),
        f"{OURS_WITHOUT}, random sampler": partial(Encsearch, space, epochs, (), sampler="random"),
        EARLY_RUNGS: partial(
            Encsearch, space, epochs, first, asha={"grace_epochs": 1, "reduction_factor": 3}
        ),
        STOCK: partial(Stock, space, epochs, ()),
        STOCK_WITH: partial(Stock, space, epochs, first),
        f"{STOCK}, encsearch's rungs": partial(
            Stock, space, epochs, (), grace_period=AshaConfig().first_rung(epochs)
        ),
        f"{RANDOM}, encsearch's first point": lambda seed: InOrder(
            chain(first, random_points(space, seed)), epochs
        ),
        RANDOM: lambda seed: InOrder(random_points(space, seed), epochs),
        GRID: lambda seed: InOrder(shuffled(surface.cells(), seed), epochs),
    }


class Encsearch:
    """encsearch's own study and stopping rule, with every default but what `changes` says."""

    def __init__(
        self, space: Mapping[str, Dimension], epochs: int, first: Sequence[Values], seed: int, **changes: Any
    ) -> None:
        search = SearchConfig(space=dict(space), seed=seed, **changes)
        self._study, self._epochs = Study(MEMORY, "simulation", search, epochs), epochs
        self._study.queue(first)

    def propose(self) -> tuple[int, Values] | None:
        proposal = self._study.ask()
        assert proposal
        return proposal.number, proposal.values

    def ends(self, number: int, epoch: int, value: float) -> bool:
        self._study.report(number, epoch, value)
        if epoch == self._epochs:
            self._study.complete(number)
            return True
        stops = self._study.should_stop(number)
        if stops:
            self._study.prune(number)
        return stops


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


def first_points(space: Mapping[str, Dimension]) -> tuple[Values, ...]:
    """What encsearch tries first: the paper's K and SE weight, and the recipe's learning rate."""
    recipe = load_config(RECIPE)
    return known_points(recipe, SearchConfig(space=dict(space)))


def random_points(space: Mapping[str, Dimension], seed: int) -> Iterator[Values]:
    """Uniform over choices and ranges, over the logarithm where a range is logarithmic."""
    rng = np.random.default_rng(seed)
    while True:
        yield {path: _draw(rng, dimension) for path, dimension in space.items()}


def shuffled(cells: Sequence[Values], seed: int) -> list[Values]:
    return [cells[place] for place in np.random.default_rng(seed).permutation(len(cells))]


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


def measured(method: Method, surface: Surface, workers: int, limit: int) -> int | None:
    """Epochs until the target is reached, of all trials together."""
    return epochs_to(SHARE_OF_BEST * surface.best, reports(method, surface, workers), limit)


def quartiles(spent: Sequence[int | None]) -> tuple[float, float, float]:
    """Lower, median, upper: order statistics, since a search that never arrived took infinitely long."""
    values = [math.inf if epochs is None else epochs for epochs in spent]
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    return lower, median, upper


def table(spent: Mapping[str, Sequence[int | None]]) -> str:
    """A row a method; the ratio is that of the medians, random search over the method."""
    lines = ["| method | median epochs | quartiles | reached | random / method |", "|---|---|---|---|---|"]
    of_random = quartiles(spent[RANDOM])[1]
    for name, epochs in spent.items():
        lower, median, upper = quartiles(epochs)
        reached = len(epochs) - list(epochs).count(None)
        lines.append(
            f"| {name} | {median:.0f} | {lower:.0f} - {upper:.0f} | {reached}/{len(epochs)} "
            f"| {of_random / median:.2f} |"
        )
    return "\n".join(lines)


def facts_of(surface: Surface) -> dict[str, Any]:
    """What there is to find, and how easy the first point makes it."""
    reaches = surface.miou.max(axis=-1) >= SHARE_OF_BEST * surface.best
    (first,) = first_points(search_space(surface))
    return {
        "cells": reaches.size,
        "epochs_a_cell": surface.epochs,
        "best_miou": surface.best,
        "target_miou": SHARE_OF_BEST * surface.best,
        "cells_that_reach_it": int(reaches.sum()),
        "first_point": dict(first),
        "first_point_miou": float(surface.curve(first).max()),
    }


def compared(ours: Sequence[int | None], other: Sequence[int | None]) -> dict[str, int]:
    """In how many seeds `ours` took fewer, as many and more epochs; never arriving is more than any."""
    pairs = [(a or math.inf, b or math.inf) for a, b in zip(ours, other, strict=True)]
    return {
        "fewer": sum(a < b for a, b in pairs),
        "equal": sum(a == b for a, b in pairs),
        "more": sum(a > b for a, b in pairs),
    }


def draw(spent: Mapping[str, Sequence[int | None]], path: Path) -> None:
    """The share of the seeds that have arrived, by epochs spent on a logarithmic axis."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = {OURS: "C0", OURS_WITHOUT: "C0", STOCK: "C1", STOCK_WITH: "C1", RANDOM: "C2", GRID: "C3"}
    for name, colour in shown.items():
        arrived = sorted(epochs for epochs in spent[name] if epochs is not None)
        share = np.arange(1, len(arrived) + 1) / len(spent[name])
        style = "--" if name in (OURS_WITHOUT, STOCK_WITH) else "-"
        axes.step(arrived, share, where="post", color=colour, linestyle=style, label=name)
    axes.set(xscale="log", xlabel="epochs of all trials", ylabel="share of the seeds", ylim=(0, 1))
    axes.set_title(f"Epochs until a trial reaches {SHARE_OF_BEST:.0%} of the best mIoU")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
