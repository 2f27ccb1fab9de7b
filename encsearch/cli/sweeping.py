"""`encsearch sweep` and `encsearch report`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import absolute, emit, json_option, say, table
from encsearch.cli.training import name_option, out_option, overrides_argument, recipe_argument
from encsearch.text import NOTHING, format_param, format_percent

if TYPE_CHECKING:
    from encsearch.workflow.sweep.run import Swept

BUDGET_SPENT = 5


@click.command()
@recipe_argument
@overrides_argument
@out_option
@name_option
@click.option("--dry-run", is_flag=True, help="Check everything and forecast the sweep; start nothing.")
@click.option(
    "--warm-start-from",
    type=click.Path(path_type=Path),
    callback=absolute,
    help="Folder of a sweep whose trials the sampler learns from.",
)
@click.option(
    "--prior-from",
    type=click.Path(path_type=Path),
    callback=absolute,
    help="Folder of a sweep, also of other data, whose best trials are the prior.",
)
@json_option
def sweep(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    name: str | None,
    dry_run: bool,
    warm_start_from: Path | None,
    prior_from: Path | None,
    as_json: bool,
) -> None:
    """Run RECIPE's search block, train the finalists again from scratch, and write the report.

    Exit code 5 if a budget ended the search before its last trial; the result is complete all the same.
    """
    from encsearch.cli.progress import progress
    from encsearch.cli.resuming import resume_named
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    options = {"--dry-run": dry_run, "--warm-start-from": warm_start_from, "--prior-from": prior_from}
    given = [option for option, value in options.items() if value]
    if resume_named(out, name, "sweep", config, as_json, only_new=given):
        return
    from encsearch.workflow.sweep.folder import Earlier

    earlier = Earlier(warm_start_from, prior_from)
    if dry_run:
        from encsearch.cli.training import show
        from encsearch.workflow.sweep.run import dry_run as rehearse

        show(config, rehearse(config, out, earlier=earlier), as_json)
        return
    with progress("checking the recipe and its data") as shown:
        from encsearch.workflow.sweep.run import sweep as run

        done = run(config, out, shown, earlier=earlier, name=name)
    report_swept(done, as_json)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def report(folder: Path) -> None:
    """Write the HTML report of the sweep in FOLDER again."""
    from encsearch.workflow.sweep.story import rewrite_report

    emit(None, False, str(rewrite_report(folder)))


def swept_text(done: "Swept") -> str:
    """Format the tables of trials and finalists, how sure the winner is, and where the report is."""
    from encsearch.report.facts import comparable
    from encsearch.report.verdict import describe_winner

    metric, trials = done.summary.metric, done.trials
    paths = list(dict.fromkeys(path for trial in trials for path in trial.values))
    # The second objective, where there is one.
    minimize = done.confirmation.ranking.minimize
    second = [minimize] if minimize else []
    rows = [
        [
            r.number,
            *(format_param(r.values.get(path, NOTHING)) for path in paths),
            format_percent(r.value),
            *(r.minimized for _ in second),
            r.epochs,
            r.state,
        ]
        for r in trials
    ]
    trial_table = table(["trial", *paths, f"best {metric} %", *second, "epochs", "state"], rows)
    confirmed = [
        [f.name, f.config.scaling.num_workers, format_percent(f.value), f.result.reports[-1].epoch]
        for f in (*done.confirmation.finalists, *done.confirmation.baselines)
    ]
    finalists = table(["confirmed", "workers", f"best {metric} %", "epochs"], confirmed)
    candidates = comparable(trials, done.excluded)
    sentences = "\n".join(describe_winner(done.confirmation.ranking, metric, candidates))
    return f"{trial_table}\n\n{finalists}\n\n{sentences}\n\nreport: {done.report}\nfiles:  {done.folder}"


def swept_json(done: "Swept") -> dict[str, object]:
    return {
        **asdict(done.summary),
        "folder": str(done.folder),
        "report": str(done.report),
        "ended_by": done.ended_by,
        "ranking": asdict(done.confirmation.ranking),
        "trials": [asdict(trial) for trial in done.trials],
        "finalists": [
            {"name": f.name, "trial": f.trial, "value": f.value, "best": f.result.best.to_dict()}
            for f in (*done.confirmation.finalists, *done.confirmation.baselines)
        ],
    }


def report_swept(done: "Swept", as_json: bool) -> None:
    """Print the result of a sweep. Exits with BUDGET_SPENT if a budget ended it."""
    emit(swept_json(done), as_json, swept_text(done))
    say(f"next: encsearch promote {done.folder}")
    if done.ended_by:
        sys.exit(BUDGET_SPENT)
