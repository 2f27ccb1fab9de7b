"""A network with random weights as a bundle: what serving is tested with needs no training."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from encsearch.config import Config, DataConfig, ModelConfig
from encsearch.data.datasets import DatasetInfo, default_palette
from encsearch.inference.bundle import Bundle, write_bundle
from encsearch.model.encnet import EncNet

INFO = DatasetInfo("toy", ("sky", "road (wet)", "car"), default_palette(3))
CONFIG = Config(
    name="toy",
    data=DataConfig(store="store"),
    model=ModelConfig(backbone="tiny", output_stride=4, num_codewords=4, channels=8),
)


def write_tiny_model(folder: Path) -> Path:
    """Its label maps hold every class: the classifier's bias is shifted to where the logits meet."""
    torch.manual_seed(0)
    model = EncNet.from_config(CONFIG.model, len(INFO.classes))
    with torch.no_grad():
        for _ in range(10):  # batch norm sees images, so that the logits depend on them
            model(torch.randn(8, 3, 32, 32))
        model.classifier[-1].bias -= model.eval()(torch.randn(8, 3, 32, 32)).logits.mean(dim=(0, 2, 3))
    known = {"class_iou": {"sky": 0.75, "car": 0.25}, "num_images": {"train": 48, "val": 10}}
    write_bundle(Bundle(model, CONFIG, INFO, "abc", metrics={"mIoU": 0.5}, **known), folder)
    return folder


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))
