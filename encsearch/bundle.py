"""A trained model as a folder that stands on its own: weights, configuration, classes and scores.

model.safetensors   the state dict; nothing in a bundle is ever unpickled
config.yaml         every default written out, so that later defaults do not change the model
dataset.json        name, classes, palette and groups, and the fingerprint of the data
metrics.json        the scores that the model had on that data's validation split
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from encsearch.config import Config, load_config, to_yaml
from encsearch.data.datasets import DatasetInfo
from encsearch.errors import PreflightError, UserError
from encsearch.model.encnet import EncNet

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
DATASET_FILE = "dataset.json"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Bundle:
    """A model in eval mode on the CPU, and what is known of it."""

    model: EncNet
    config: Config
    info: DatasetInfo
    fingerprint: str
    metrics: Mapping[str, float]


def write_bundle(
    folder: Path,
    model: nn.Module,
    config: Config,
    info: DatasetInfo,
    *,
    fingerprint: str,
    metrics: Mapping[str, float],
) -> None:
    """Write a bundle that is either whole or absent; an existing one at `folder` is replaced."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, scratch / WEIGHTS_FILE)
    (scratch / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    _write_json(scratch / DATASET_FILE, info.to_dict() | {"fingerprint": fingerprint})
    _write_json(scratch / METRICS_FILE, dict(metrics))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle; the backbone's own weight file is not needed.

    Raises UserError when a file is missing or damaged, or when the weights are of another model.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE, DATASET_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a model bundle, {name} is missing; name a trained model's folder")
    config = load_config(folder / CONFIG_FILE)
    dataset = _read_json(folder / DATASET_FILE)
    metrics = _read_json(folder / METRICS_FILE)
    try:
        info = DatasetInfo.from_dict(dataset)
        fingerprint = dataset["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / DATASET_FILE}: damaged, {error!r}") from None
    return Bundle(_read_model(folder, config, len(info.classes)), config, info, fingerprint, metrics)


def existing_device(name: str) -> torch.device:
    """The device to run a model on: "cpu", "cuda" or "cuda:1".

    Raises UserError for another name, PreflightError for a GPU that is not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise UserError(f"device={name} is not a device that models run on; try cpu or cuda")
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise PreflightError(
            f"device={name}, but PyTorch {torch.__version__} finds {num_gpus} GPUs here; try cpu"
        )
    return device


def _read_model(folder: Path, config: Config, num_classes: int) -> EncNet:
    """Build the model without storage and give it the file's tensors: no random number is drawn."""
    shape = config.model.model_copy(update={"weights": None})
    with torch.device("meta"):
        model = EncNet.from_config(shape, num_classes)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / WEIGHTS_FILE}: not the weights of this model ({reason})") from None
    return model.eval()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, it holds no mapping")
    return values
