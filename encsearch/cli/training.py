"""`encsearch check` and `encsearch train`."""

from dataclasses import asdict
from pathlib import Path

import click

from encsearch.cli.console import emit, json_option, percent, say, table

recipe_argument = click.argument("recipe")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[PATH=VALUE]...")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)


@click.command()
@recipe_argument
@overrides_argument
@out_option
@json_option
def check(recipe: str, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Validate RECIPE against its store, and count steps and parameters; exit code 3 if it cannot run."""
    from encsearch.config import load_config
    from encsearch.experiment import preflight

    config = load_config(recipe, overrides)
    found = preflight(config, out)
    lines = [
        f"{config.data.store}: {found.num_train} training and {found.num_val} validation samples, "
        f"{found.num_classes} classes, fingerprint {found.fingerprint[:12]}",
        f"{config.model.backbone} with context {config.model.context}: {found.num_parameters:,} parameters",
        f"{config.train.epochs} epochs of {found.steps_per_epoch} steps, global batch size "
        f"{config.train.global_batch_size}",
    ]
    if config.search:
        lines.append(f"{config.search.num_trials} trials over {', '.join(config.search.space)}")
    emit(asdict(found), as_json, "\n".join(lines))


@click.command()
@recipe_argument
@overrides_argument
@out_option
@click.option("--in-process", is_flag=True, help="Train in this process, without Ray.")
@json_option
def train(recipe: str, overrides: tuple[str, ...], out: Path, in_process: bool, as_json: bool) -> None:
    """Train RECIPE once, record it in MLflow, keep the best checkpoint as a model bundle."""
    from encsearch.cli.progress import progress
    from encsearch.config import load_config

    config = load_config(recipe, overrides)
    from encsearch.workflow.train import train as run

    with progress() as shown:
        done = run(config, out, shown, in_process=in_process)
    best = done.result.best
    rows = [(name, percent(iou)) for name, iou in best.class_iou.items()]
    scores = ", ".join(
        f"{name} {100 * value:.2f}"
        for name, value in best.metrics.items()
        if name.startswith(("mIoU", "pixAcc"))
    )
    text = f"{table(['class', 'IoU %'], rows)}\nbest epoch {best.epoch}: {scores}\nfiles: {done.folder}"
    result = {"folder": str(done.folder), "best": best.to_dict(), **asdict(done.summary)}
    emit(result, as_json, text)
    say(f"next: encsearch promote {done.folder}")
