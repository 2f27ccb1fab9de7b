"""`encsearch demo`: everything that encsearch does, once, on generated data."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import absolute, emit, say

if TYPE_CHECKING:
    from encsearch.workflow.sweep.run import Swept

NUM_PICTURES = 6


@click.command()
@click.option("--recipe", default="scenes", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, callback=absolute
)
def demo(recipe: str, out: Path) -> None:
    """Generate `scenes`, sweep EncNet on it, confirm, promote, predict unseen images, report."""
    from encsearch.config import load_config

    store = out / "scenes"
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    config = load_config(recipe, [f"data.store={store}"])

    from encsearch.cli.progress import progress
    from encsearch.cli.sweeping import swept_text
    from encsearch.data.scenes import generate_scenes
    from encsearch.errors import GateRefusedError
    from encsearch.workflow.promote import promote
    from encsearch.workflow.sweep.run import sweep

    with progress("looking at what is there") as shown:
        if not store.exists():
            shown.phase("generating the data set scenes")
            generate_scenes(store)
        done = sweep(config, out / "runs", shown)
        shown.phase("scoring the winner, and the model that has the alias")
        try:
            promoted = promote(str(done.folder))
            shown.say(f"{promoted.uri} is version {promoted.version}: {'; '.join(promoted.reasons)}")
        except GateRefusedError as refused:
            # In a second demo on the same records the first one's champion may be as good.
            shown.say(str(refused))
        shown.phase("predicting unseen images with the champion")
        champion = f"models:/{config.promote.model_name}@{config.promote.alias}"
        picture = _predict_unseen(champion, done, done.folder / "unseen.png", out / "unseen")
    pages = f"picture: {picture}\nMLflow: encsearch ui {done.folder}"
    emit(None, False, f"{swept_text(done)}\n{pages}")
    say(
        f"done; its records and its model are in a store of their own, for a shell that has\n"
        f"  export MLFLOW_TRACKING_URI={shlex.quote(os.environ['MLFLOW_TRACKING_URI'])}\n"
        f"  encsearch runs list\n"
        f"  encsearch predict {champion} {shlex.quote(str(out / 'unseen'))} --out masks"
    )


def _predict_unseen(champion: str, done: "Swept", target: Path, pictures: Path) -> Path:
    """Draw test images, their truth, the label maps of a baseline of each context, and the champion's.

    The images alone are written to the folder `pictures`.
    """
    from PIL import Image

    from encsearch.data.datasets import evenly_spaced
    from encsearch.data.store import Store
    from encsearch.inference.bundle import checkpoint_model
    from encsearch.inference.predictor import Predictor, comparison_sheet
    from encsearch.search.confirm.finalists import name_context
    from encsearch.tracking.registry.fetch import load

    store = Store(done.summary.store)
    models = {
        name_context(baseline.config.model.context): Predictor(
            checkpoint_model(baseline.config, store, baseline.result.best_checkpoint)
        )
        for baseline in done.confirmation.baselines
    }
    models["EncNet"] = load(champion)
    samples = evenly_spaced(store.split("test"), NUM_PICTURES)
    pictures.mkdir(exist_ok=True)
    for sample in samples:
        Image.fromarray(sample.image).save(pictures / f"{sample.id}.png")
    comparison_sheet(samples, store.info, models).save(target)
    return target
