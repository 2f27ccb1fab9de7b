"""A small store that a tiny net learns in a second: three classes told apart by colour."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encsearch.config import Config
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.store import write_store

TOY_INFO = DatasetInfo(
    name="toy",
    classes=("ground", "red", "blue"),
    palette=((90, 90, 90), (200, 40, 40), (40, 40, 200)),
    groups={"objects": ("red", "blue")},
)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 10 validation images of 32 px; a band of 0 to 8 rows of each mask is void."""
    store = tmp_path_factory.mktemp("data") / "toy"
    write_store(store, TOY_INFO, {"train": _samples("train", 24), "val": _samples("val", 10)})
    return store


@pytest.fixture
def toy_config(toy_store: Path) -> Config:
    """Two epochs of three steps on the toy store."""
    return Config.model_validate(
        {
            "name": "toy",
            "data": {"store": str(toy_store)},
            "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
            "optim": {"lr": 0.02, "head_lr_factor": 2},
            "train": {"epochs": 2, "global_batch_size": 8, "steps_per_epoch": 3, "val_batch_size": 4},
        }
    )


def _samples(split: str, count: int) -> Iterator[EncodedSample]:
    rng = np.random.default_rng(len(split))
    for index in range(count):
        mask = np.zeros((32, 32), dtype=np.uint8)
        for label in (1, 2):
            top, left = rng.integers(0, 20, size=2)
            mask[top : top + 10, left : left + 10] = label
        colours = np.array(TOY_INFO.palette)[mask]
        image = np.clip(colours + rng.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)
        mask[: index % 9] = 255
        yield EncodedSample(f"{split}-{index:03d}", _png(image), _png(mask), group=f"{split}-{index}")


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
