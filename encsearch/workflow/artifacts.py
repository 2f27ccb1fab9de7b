"""What explains a trained model: its bundle, pictures of predictions, diagnostics of its context."""

from pathlib import Path

from encsearch.data.datasets import SHOWN_IMAGES, evenly_spaced
from encsearch.data.pictures import save_png
from encsearch.data.store import Store
from encsearch.inference.bundle import Bundle
from encsearch.inference.predictor import Predictor, comparison_sheet
from encsearch.tracking.run_files import PANELS
from encsearch.workflow.job import CONTEXT_FOLDER

# Validation images for the diagnostics of the context module, fewer if they are large: 4 Mpx in all, which
# take a second or two with a small network, but never under the minimum.
MAX_DIAGNOSED, MIN_DIAGNOSED, DIAGNOSED_PIXELS = 64, 8, 2**22


def write_panels(bundle: Bundle, store: Store, artifacts: Path, device: str = "cpu") -> None:
    """Write PANELS: truth and predictions for the same validation images in every run.

    A sweep's stay on the CPU: beside its driver no GPU is booked, and trials fill the ones that are seen.
    """
    samples = evenly_spaced(store.split(bundle.config.data.val_split), SHOWN_IMAGES)
    target = artifacts / PANELS
    target.parent.mkdir(parents=True, exist_ok=True)
    save_png(comparison_sheet(samples, bundle.info, {"prediction": Predictor(bundle, device)}), target)


def write_context(bundle: Bundle, store: Store, artifacts: Path) -> None:
    """Write `context/`: diagnostics of the context module on validation images, if the model has one."""
    from encsearch.diagnostics.artifacts import write_diagnostics  # matplotlib: only once there is a model

    dataset = store.split(bundle.config.data.val_split)
    affordable = DIAGNOSED_PIXELS // dataset[0].mask.size
    samples = evenly_spaced(dataset, min(max(affordable, MIN_DIAGNOSED), MAX_DIAGNOSED))
    write_diagnostics(bundle, samples, artifacts / CONTEXT_FOLDER)
