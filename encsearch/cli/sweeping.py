"""`encsearch sweep` and `encsearch report`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, short, table
from encsearch.cli.training import out_option, overrides_argument, recipe_argument

if TYPE_CHECKING:
    from encsearch.workflow.sweep import Swept


@click.command()
@recipe_argument
@overrides_argument
@out_option
@json_option
def sweep(recipe: str, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Run RECIPE's search block, train the finalists again from scratch, and write the report."""
    from encsearch.cli.progress import progress
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    from encsearch.workflow.sweep import sweep as run

    with progress() as shown:
        done = run(config, out, shown)
    emit(swept_json(done), as_json, swept_text(done))
    say(f"next: encsearch promote {done.folder}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def report(folder: Path) -> None:
    """Write the HTML report of the sweep in FOLDER anew."""
    from encsearch.workflow.sweep import rewrite_report

    print(rewrite_report(folder))


def swept_text(done: "Swept") -> str:
    """The table of trials and finalists, and where the report is."""
    metric = done.summary.metric
    paths = list(done.records[0].values)
    rows = [
        [r.number, *(short(r.values[path]) for path in paths), _value(r.value), r.epochs, r.state]
        for r in done.records
    ]
    trials = table(["trial", *paths, f"best {metric}", "epochs", "state"], rows)
    confirmed = [
        [f.name, f.config.scaling.num_workers, _value(f.value), f.result.reports[-1].epoch]
        for f in (*done.confirmation.finalists, *done.confirmation.baselines)
    ]
    finalists = table(["confirmed", "workers", f"best {metric}", "epochs"], confirmed)
    return f"{trials}\n\n{finalists}\n\nreport: {done.report}\nfiles:  {done.folder}"


def swept_json(done: "Swept") -> dict[str, object]:
    return {
        **asdict(done.summary),
        "folder": str(done.folder),
        "report": str(done.report),
        "trials": [asdict(record) for record in done.records],
        "finalists": [
            {"name": f.name, "trial": f.trial, "value": f.value, "best": f.result.best.to_dict()}
            for f in (*done.confirmation.finalists, *done.confirmation.baselines)
        ],
    }


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
