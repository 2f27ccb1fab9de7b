"""The model as MLflow loads and serves it: MLflow runs this file, and no module of the package imports it."""

import base64
import os
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from encsearch.data.codec import encode_png
from encsearch.errors import UserError
from encsearch.inference.predictor import Prediction
from encsearch.serving.pictures import read_pictures
from encsearch.tracking.registry.fetch import load

FORMATS = ("array", "png")
MAX_PIXELS = "ENCSEARCH_MAX_PIXELS"
"""The variable that sets how many pixels the images of one request may have that come as text."""


class SegmentationModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """MLflow calls `load_context` once, with that argument name, and `predict` for every request."""

    def load_context(self, context: Any) -> None:
        self._predictor = load(Path(context.artifacts["bundle"]))
        given = os.environ.get(MAX_PIXELS, str(self._predictor.pixels_at_once))
        if not given.isdecimal():
            raise MlflowException.invalid_parameter_value(f"{MAX_PIXELS}={given} is no number of pixels")
        self._max_pixels = int(given)
        # MLflow's server calls `predict` from several threads, and each pass may take what the bound allows.
        self._one_at_a_time = threading.Lock()

    # MLflow 3.17 passes {"image": ndarray}, but warns about any type hint except this one, and about none.
    def predict(self, model_input: np.ndarray, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return for each image `labels` and `presence`, the probability of each class to be somewhere in it.

        `labels` is (H, W) uint8, or with params={"labels": "png"} such a PNG file as base64 text. `presence`
        is empty for a model without context module. Images that come as text, as all do over HTTP, may have
        ENCSEARCH_MAX_PIXELS pixels together, by default what goes through the network at once. Raises
        MlflowException, which is status 400 over HTTP.
        """
        labels_format = (params or {}).get("labels", FORMATS[0])
        try:
            if labels_format not in FORMATS:
                raise UserError(f"labels={labels_format} is no format; try {' or '.join(FORMATS)}")
            pictures = read_pictures(model_input, self._max_pixels)
            with self._one_at_a_time:
                found = list(self._predictor.segment(pictures))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [_row(prediction, labels_format) for prediction in found]


def _row(prediction: Prediction, labels_format: str) -> dict[str, Any]:
    labels: Any = prediction.labels
    if labels_format == "png":
        labels = base64.b64encode(encode_png(prediction.labels)).decode()
    return {"labels": labels, "presence": dict(prediction.presence or {})}


mlflow.models.set_model(SegmentationModel())
