"""A bundle as an MLflow model: stored with this package's code, and registered as a version."""

import base64
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Map
from numpy.typing import NDArray

from encsearch.config import CONFIG_FILE, TIMM_PREFIX, load_config
from encsearch.data.codec import encode_png
from encsearch.inference.bundle import CARD_FILE, code_digest, code_packages, weights_digest
from encsearch.tracking.mlflow import Tracking, call_with_retries, translate_failures
from encsearch.tracking.registry.decisions import MAX_DESCRIPTION
from encsearch.tracking.registry.versions import CODE_TAG, fetch_all_pages

WEIGHTS_TAG = "weights.sha256"
SERVING_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pillow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "torch",
    "torchvision",
)
SIGNATURE = ModelSignature(
    # The one input type of MLflow 3.17 that takes arrays of any shape from Python and text over HTTP.
    inputs=Schema([TensorSpec(np.dtype("O"), (-1,), "image")]),
    outputs=Schema([ColSpec(AnyType(), "labels"), ColSpec(Map("double"), "presence")]),
    params=ParamSchema([ParamSpec("labels", "string", "array")]),
)


def register(
    tracking: Tracking, run_id: str, bundle_dir: Path, model_name: str, tags: Mapping[str, str]
) -> str:
    """Store a bundle as a pyfunc model of the run, and register it as a new version of `model_name`.

    The model carries this package's code, that of its own parts and pinned requirements, so it loads and
    serves without an installed encsearch. Its card is the version's description. Returns the version. Raises
    PreflightError.
    """
    client = tracking.client
    with translate_failures(tracking.uri):
        _ensure_registered_model(tracking, model_name)
        logged = client.create_logged_model(tracking.experiment_id, name=model_name, source_run_id=run_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        # MLflow keeps the folder's name, `download_bundle` looks for "bundle", and links are refused.
        bundle = Path(shutil.copytree(bundle_dir, Path(scratch) / "bundle"))
        _save_pyfunc(folder, bundle, Model(run_id=run_id, model_id=logged.model_id))
        with translate_failures(tracking.uri):
            client.log_model_artifacts(logged.model_id, str(folder))
    tags = {
        WEIGHTS_TAG: weights_digest(bundle_dir),
        **({CODE_TAG: digest} if (digest := code_digest(bundle_dir)) else {}),
        "version.encsearch": installed_version("encsearch"),
        **tags,
    }
    description = _description((bundle_dir / CARD_FILE).read_text(encoding="utf-8"))

    def create() -> str:
        """A try that fails may have stored the version, so every try looks for it first."""
        for found in fetch_all_pages(client.search_model_versions, filter_string=f"name = '{model_name}'"):
            if found.model_id == logged.model_id:
                return str(found.version)
        created = client.create_model_version(
            model_name,
            # Not "models:/ID": MLflow 3.17 looks that up in its global store instead of the client's.
            logged.artifact_location,
            run_id=run_id,
            tags=tags,
            description=description,
            model_id=logged.model_id,
        )
        return str(created.version)

    with translate_failures(tracking.uri):
        client.finalize_logged_model(logged.model_id, "READY")
    return call_with_retries(tracking.uri, create)


def _save_pyfunc(folder: Path, bundle_dir: Path, metadata: Model) -> None:
    package = Path(__file__).parents[2]  # encsearch/
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=metadata,
        # Named as a file, not imported: MLflow runs it, and it stands above this layer.
        python_model=str(package / "serving" / "pyfunc.py"),
        artifacts={"bundle": str(bundle_dir)},
        code_paths=[str(package)],
        signature=SIGNATURE,
        input_example=_example(),
        # Otherwise MLflow infers the requirements in a subprocess, which takes 100 s.
        pip_requirements=[_pin(name) for name in _requirements(bundle_dir)],
    )


def _example() -> dict[str, NDArray[np.object_]]:
    """Return one grey image as the scoring server takes it; MLflow shows a request made from it."""
    image = encode_png(np.full((32, 32, 3), 128, np.uint8))
    return {"image": np.array([base64.b64encode(image).decode()], dtype=object)}


def _description(card: str) -> str:
    """Return the card, cut after a whole line if it is too long for MLflow."""
    if len(card) <= MAX_DESCRIPTION:
        return card
    note = f"\n\n(The whole card is {CARD_FILE} among the version's files.)"
    return card[: MAX_DESCRIPTION - len(note)].rpartition("\n")[0] + note


def _requirements(bundle_dir: Path) -> tuple[str, ...]:
    backbone = load_config(bundle_dir / CONFIG_FILE).model.backbone
    own = code_packages(bundle_dir)
    timm = ["timm"] if backbone.startswith(TIMM_PREFIX) else []
    return tuple(dict.fromkeys([*SERVING_REQUIREMENTS, *timm, *own]))


def _pin(package: str) -> str:
    """Pin a package without the local part of its version (+cpu), which no package index has."""
    return f"{package}=={installed_version(package).partition('+')[0]}"


def _ensure_registered_model(tracking: Tracking, name: str) -> None:
    try:
        tracking.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
