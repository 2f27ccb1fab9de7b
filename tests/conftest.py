"""A small store that a tiny net learns in a second: three classes told apart by colour."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from encsearch.config import Config, ScalingConfig
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.store import write_store
from encsearch.workflow.progress import LineProgress

if TYPE_CHECKING:
    from tests.e2e.head import Head

# Before torch is imported, here and in processes of tests: small networks gain nothing by a second thread,
# and on a busy machine two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's own is 15: on a busy machine its workers would starve, and the tests wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")

# A refusal is one line; on a busy machine it may come after the line that says what goes on.
LineProgress.PHASE_S = 600

UNIT = Path(__file__).parent / "unit"

TOY_INFO = DatasetInfo(
    name="toy",
    classes=("ground", "red", "blue"),
    palette=((90, 90, 90), (200, 40, 40), (40, 40, 200)),
    groups={"objects": ("red", "blue")},
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests are fast without saying so."""
    for item in items:
        if UNIT in item.path.parents:
            item.add_marker(pytest.mark.fast)


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


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """This process's local Ray, for all tests that need one: its start costs more than most of them.

    On two cores it has exactly the CPUs of the largest training here.
    """
    from encsearch.runner.ray_session import ray_session

    with ray_session(needs=ScalingConfig(num_workers=2)):
        yield


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Head"]:
    """A running cluster that asks for a token, of three CPUs: a training of two workers leaves one over."""
    from tests.e2e.head import running_head

    with running_head(tmp_path_factory.mktemp("cluster"), num_cpus=3) as head:
        yield head


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database that MLflow has set up, which takes it seconds: to be copied into place."""
    from encsearch.tracking.mlflow import connect

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(f"sqlite:///{database}", "Default")
    return database


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
