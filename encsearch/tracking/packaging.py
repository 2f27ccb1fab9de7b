"""A bundle as an MLflow model: stored with this package's code, and registered as a version."""

import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from encsearch.config import TIMM_PREFIX, load_config
from encsearch.tracking.mlflow import Tracking, answering
from encsearch.tracking.registry import CONFIG_FILE

SERVING_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchvision",
)
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))]),
    outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1))]),
)


def register(
    tracking: Tracking, run_id: str, bundle_dir: Path, model_name: str, tags: Mapping[str, str]
) -> str:
    """Store a bundle as a pyfunc model of the run and make a new version of `model_name` of it.

    The model carries this package's code and pinned requirements, so it loads and serves without an
    installed encsearch. Returns the version. Raises PreflightError.
    """
    client = tracking.client
    with answering(tracking.uri):
        _ensure_registered_model(tracking, model_name)
        logged = client.create_logged_model(tracking.experiment_id, name=model_name, source_run_id=run_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _save_pyfunc(folder, bundle_dir, Model(run_id=run_id, model_id=logged.model_id))
        with answering(tracking.uri):
            client.log_model_artifacts(logged.model_id, str(folder))
    with answering(tracking.uri):
        client.finalize_logged_model(logged.model_id, "READY")
        created = client.create_model_version(
            model_name,
            # Not "models:/ID": MLflow 3.17 looks that up in its global store instead of the client's.
            logged.artifact_location,
            run_id=run_id,
            tags=dict(tags),
            model_id=logged.model_id,
        )
    return str(created.version)


def _save_pyfunc(folder: Path, bundle_dir: Path, metadata: Model) -> None:
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        # MLflow 3.17 asks for an input example although the signature is explicit.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=metadata,
            # Named as a file, not imported: MLflow runs it, and it stands above this layer.
            python_model=str(package / "serving_model.py"),
            artifacts={"bundle": str(bundle_dir)},
            code_paths=[str(package)],
            signature=SIGNATURE,
            # Left to itself MLflow infers the requirements in a subprocess, which takes 100 s.
            pip_requirements=[_pin(name) for name in _requirements(bundle_dir)],
        )


def _requirements(bundle_dir: Path) -> tuple[str, ...]:
    backbone = load_config(bundle_dir / CONFIG_FILE).model.backbone
    return (*SERVING_REQUIREMENTS, "timm") if backbone.startswith(TIMM_PREFIX) else SERVING_REQUIREMENTS


def _pin(package: str) -> str:
    """Without the local part (+cpu), which no package index has."""
    return f"{package}=={installed_version(package).partition('+')[0]}"


def _ensure_registered_model(tracking: Tracking, name: str) -> None:
    try:
        tracking.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
