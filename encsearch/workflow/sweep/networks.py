"""What a sweep does with networks: functions that its driver calls in a process with torch (`torch_process`).

They import what needs torch when they are called, so that the driver can name them without it.
"""

from collections.abc import Mapping
from pathlib import Path

from encsearch.config import Config
from encsearch.data.datasets import evenly_spaced
from encsearch.data.store import Store
from encsearch.parts import code_from
from encsearch.reports import Report
from encsearch.search.ledger import Network
from encsearch.workflow.checked import Checked

SHEET_IMAGES = 6


def check_recipe(config: Config, out: Path, *, measure: bool, trials_at_once: int | None) -> Checked:
    """See `workflow.check`."""
    from encsearch.workflow.check import check

    return check(config, out, measure=measure, trials_at_once=trials_at_once)


def measure_network(trial: Config, store: Store, *, with_memory: bool) -> Network:
    """Measure a trial's network; its memory only on request, since it takes a second."""
    from encsearch.model.encnet import count_parameters
    from encsearch.train.memory import training_gib

    gib = training_gib(trial, store) if with_memory else None
    with code_from(trial.code):
        return Network(count_parameters(trial.model, len(store.info.classes)), gib)


def keep_finalist(config: Config, store: Store, checkpoint: Path, best: Report, artifacts: Path) -> None:
    """Write what remains of a finalist's model: its bundle, its pictures, its diagnostics."""
    from encsearch.inference.bundle import checkpoint_model, write_bundle
    from encsearch.workflow.artifacts import write_context, write_panels

    bundle = checkpoint_model(config, store, checkpoint, best)
    write_bundle(bundle, artifacts / "bundle")
    write_panels(bundle, store, artifacts)
    write_context(bundle, store, artifacts)


def compare_models(models: Mapping[str, tuple[Config, Path]], store: Store, split: str, target: Path) -> None:
    """Draw the predictions of models, by title and given as checkpoints, on the same images of a split."""
    from encsearch.inference.bundle import checkpoint_model
    from encsearch.inference.predictor import Predictor, comparison_sheet

    samples = evenly_spaced(store.split(split), SHEET_IMAGES)
    predictors = {
        title: Predictor(checkpoint_model(config, store, checkpoint))
        for title, (config, checkpoint) in models.items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    comparison_sheet(samples, store.info, predictors).save(target)
