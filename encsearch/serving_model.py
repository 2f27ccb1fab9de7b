"""The model as MLflow loads and serves it: MLflow runs this file, and nothing of the package imports it.

Images (B, H, W, 3) uint8 -> label maps (B, H, W) uint8.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from encsearch.predict import load


class SegmentationModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """MLflow calls `load_context` once, with that argument name, and `predict` for every request."""

    def load_context(self, context: Any) -> None:
        self._predictor = load(Path(context.artifacts["bundle"]))

    # Bare np.ndarray: MLflow 3.17 warns of no hint, and of NDArray[...].
    def predict(self, model_input: np.ndarray) -> np.ndarray:
        return np.stack(self._predictor.predict(model_input))


mlflow.models.set_model(SegmentationModel())
