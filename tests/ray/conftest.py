"""All tests here need a Ray."""

import pytest


@pytest.fixture(autouse=True)
def _connected(ray_here: None) -> None:
    """To the one of the session."""
