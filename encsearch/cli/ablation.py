"""`encsearch ablate`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.training import name_option, out_option, overrides_argument, recipe_argument
from encsearch.text import format_count

if TYPE_CHECKING:
    from encsearch.config import Config
    from encsearch.search.ablation.plan import Ablation, Series
    from encsearch.workflow.ablate.run import Ablated


@click.command()
@recipe_argument
@overrides_argument
@out_option
@name_option
@click.option("--dry-run", is_flag=True, help="Check every row and list the trainings, without training.")
@json_option
def ablate(
    recipe: str, overrides: tuple[str, ...], out: Path, name: str | None, dry_run: bool, as_json: bool
) -> None:
    """Train the paper's ablation of RECIPE side by side, and compare the rows.

    FCN, + Encoding, + SE-loss, pooling in the codewords' place, other heads, and the curves over K and alpha,
    each with every seed, as the recipe's ablate: block says. The scores are those of the last epoch. FCN,
    EncNet and the gate are scored again by the size of objects; the latter two also by the classes that they
    find in an image, beside a dictionary of visual words.
    """
    from encsearch.cli.progress import progress
    from encsearch.cli.resuming import resume_named
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    if resume_named(out, name, "ablation", config, as_json, only_new=["--dry-run"] if dry_run else []):
        return
    from encsearch.workflow.ablate.run import ablate as run
    from encsearch.workflow.ablate.run import dry_run as rehearse

    if dry_run:
        plan = rehearse(config, out)
        emit(_plan_json(plan), as_json, _plan_text(config, plan))
        return
    with progress("checking the recipe and its data") as shown:
        done = run(config, out, shown, name=name)
    report_ablated(done, as_json)


def report_ablated(done: "Ablated", as_json: bool) -> None:
    """Print the result of an ablation."""
    emit(_ablated_json(done), as_json, _ablated_text(done))
    for name, reason in done.story.failures.items():
        say(f"failed and left out: {name}: {reason}")


def _plan_text(config: "Config", plan: "Ablation") -> str:
    rows = [[t.row, t.config.train.epochs, t.config.train.seed, t.name] for t in plan.trainings]
    total = sum(training.config.train.epochs for training in plan.trainings)
    return (
        f"{table(['row', 'epochs', 'seed', 'name'], rows)}\n\n"
        f"{format_count(len(plan.trainings), 'training')}, {format_count(total, 'epoch')} in all, "
        f"{format_count(len(config.ablate.seeds), 'seed')}; "
        f"{format_count(len(plan.scorings), 'scoring')} after them"
    )


def _plan_json(plan: "Ablation") -> dict[str, Any]:
    return {
        "trainings": [
            {
                "name": training.name,
                "row": training.row,
                "epochs": training.config.train.epochs,
                "seed": training.config.train.seed,
            }
            for training in plan.trainings
        ],
        "scorings": [asdict(scoring) for scoring in plan.scorings],
    }


def _ablated_text(done: "Ablated") -> str:
    from encsearch.report.ablation import figure_table, num_values, select_series, verdicts

    metric = done.story.metric
    tables = []
    shown: list[tuple[Series, ...]] = [("rows", "codewords", "se_weights"), ("sizes",), ("presence",)]
    for series in shown:
        figures = select_series(done.story, *series)
        if figures:
            titles, cells = figure_table(figures, metric)
            rows = [
                [f.point.label, f.point.epochs, num_values(f), *own]
                for f, own in zip(figures, cells, strict=True)
            ]
            tables += [table(["row", "epochs", "n", *titles], rows), ""]
    return "\n".join(
        [
            *tables,
            "[95 % interval of the mean over seeds]; * the interval of the difference excludes 0",
            *verdicts(done.story),
            "",
            f"report: {done.report}",
            f"files:  {done.folder}",
        ]
    )


def _ablated_json(done: "Ablated") -> dict[str, Any]:
    return {
        **asdict(done.summary),
        "folder": str(done.folder),
        "report": str(done.report),
        "figures": [asdict(figures) for figures in done.story.figures],
        "trainings": [asdict(result) for result in done.story.results],
        "failures": dict(done.story.failures),
    }
