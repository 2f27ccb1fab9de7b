"""One Ray for all tests here: its start costs more than most of them."""

from collections.abc import Iterator

import pytest

from encsearch.config import ScalingConfig
from encsearch.runner.ray_session import ray_session


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A local Ray; on two cores it has exactly the CPUs of the largest training here."""
    with ray_session(needs=ScalingConfig(num_workers=2)):
        yield
