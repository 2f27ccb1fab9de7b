"""`encsearch check`, `train`, `recipes`, `config` and `schema`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import absolute, emit, json_option, say, table
from encsearch.files import check_name
from encsearch.parts import is_part
from encsearch.text import format_count, format_percent, format_score

if TYPE_CHECKING:
    from encsearch.config import Config
    from encsearch.workflow.checked import Checked
    from encsearch.workflow.train import Trained


def folder_name(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """A click callback; see `check_name`."""
    if name is not None:
        check_name(name)
    return name


# A file, or the name of one of `encsearch recipes`.
recipe_argument = click.argument("recipe")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[PATH=VALUE]...")
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    callback=absolute,
    help="Folder for the runs.",
)
name_option = click.option(
    "--name",
    callback=folder_name,
    help="Of the folder below --out; a job that has it goes on.  [default: the recipe's and the time]",
)


def show(config: "Config", checked: "Checked", as_json: bool) -> None:
    """Print the result of a check; see `workflow.check`."""
    from encsearch.workflow.checked import describe_check

    search = asdict(checked.search) if checked.search else None
    facts = {**asdict(checked.preflight), "gpu": checked.gpu, "search": search}
    emit(facts, as_json, "\n".join(describe_check(config, checked)))


@click.command()
@recipe_argument
@overrides_argument
@out_option
@click.option("--measure/--no-measure", default=True, help="Time a few steps of a sweep's networks here.")
@click.option(
    "--trials-at-once",
    type=click.IntRange(min=1),
    help="Trials that the cluster will run.  [default: search.max_concurrent, or what fits this machine]",
)
@json_option
def check(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    measure: bool,
    trials_at_once: int | None,
    as_json: bool,
) -> None:
    """Validate RECIPE against its store, and forecast what a sweep takes; exit code 3 if it cannot run.

    For a recipe with a search block: memory, disk, the first trials, and how long the sweep will take.
    """
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    from encsearch.workflow.check import check as run

    show(config, run(config, out, measure=measure, trials_at_once=trials_at_once), as_json)


@click.command()
@recipe_argument
@overrides_argument
@out_option
@name_option
@click.option("--in-process", is_flag=True, help="Train in this process, without Ray.")
@json_option
def train(
    recipe: str, overrides: tuple[str, ...], out: Path, name: str | None, in_process: bool, as_json: bool
) -> None:
    """Train RECIPE once, record it in MLflow, keep the best checkpoint as a model bundle."""
    from encsearch.cli.progress import progress
    from encsearch.cli.resuming import resume_named
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    if resume_named(out, name, "training", config, as_json):
        return
    with progress("checking the recipe and its data") as shown:
        from encsearch.workflow.train import train as run  # torch, which takes seconds

        done = run(config, out, shown, in_process=in_process, name=name)
    report_trained(done, as_json)


def report_trained(done: "Trained", as_json: bool) -> None:
    """Print the result of a training."""
    best = done.result.best
    rows = [(name, format_percent(iou)) for name, iou in best.class_iou.items()]
    scores = ", ".join(
        f"{name} {format_score(value)}"
        for name, value in best.metrics.items()
        if name.startswith(("mIoU", "pixAcc")) or is_part(name)
    )
    best_epoch = f"best epoch {best.epoch}, over {format_count(len(rows), 'class')}"
    text = f"{table(['class', 'IoU %'], rows)}\n{best_epoch}: {scores}\nfiles: {done.folder}"
    figures = {name: value for name, value in best.to_dict().items() if name not in ("points", "label_maps")}
    result = {"folder": str(done.folder), "best": figures, **asdict(done.summary)}
    emit(result, as_json, text)
    say(f"next: encsearch promote {done.folder}")


@click.command()
@click.argument("name", required=False)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes that come with encsearch, or print NAME as it is written.

    Each is used by its name, as in `encsearch train camvid`, or extended: a recipe of one's own may begin
    with `extends: camvid`, and what it says replaces what that one says.
    """
    from encsearch.config import describe_near, find_recipe, recipe_names
    from encsearch.errors import UserError

    texts = {known: find_recipe(known).read_text(encoding="utf-8") for known in recipe_names()}
    if name is None:
        firsts = {known: text.partition("\n")[0].lstrip("# ") for known, text in texts.items()}
        emit(firsts, as_json, table(["recipe", "what it trains"], list(firsts.items())))
    elif name in texts:
        emit({name: texts[name]}, as_json, texts[name].rstrip())
    else:
        raise UserError(f"{name} is none of our recipes; {describe_near(name)}")


@click.command()
@recipe_argument
@overrides_argument
@json_option
def config(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE with its OVERRIDES (path=value) and every default resolved."""
    from encsearch.config import load_config, to_yaml

    resolved = load_config(recipe, overrides)
    emit(resolved.model_dump(mode="json"), as_json, to_yaml(resolved).rstrip())


@click.command()
@click.option("--paths", "only_paths", is_flag=True, help="One config path a line instead.")
def schema(only_paths: bool) -> None:
    """Print the JSON schema of a recipe, for editors that complete YAML."""
    from encsearch.config import json_schema, paths

    emit(json_schema(), as_json=not only_paths, text="\n".join(paths()))
