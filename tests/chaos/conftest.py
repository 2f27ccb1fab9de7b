"""A user with a small data set, and what a sweep leaves that nothing interrupts."""

import pytest

from tests.chaos.evidence import Evidence, read_evidence
from tests.chaos.sweeps import User, bring_to_end, new_user


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return new_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="session")
def undisturbed(user: User) -> Evidence:
    (attempt,), folder = bring_to_end(user, "undisturbed", [])
    assert attempt.code == 0
    return read_evidence(folder, user.tracking_uri)
