"""A user with a small data set, and what a sweep leaves that nothing interrupts."""

import shutil
from pathlib import Path

import pytest

from tests.chaos.evidence import Evidence, read_evidence
from tests.chaos.sweeps import RECIPE, User, new_user, sweep_folder
from tests.e2e.head import Head
from tests.e2e.shell import Shell

# Two trials by TPE, and a rung to be stopped at, in the least time; `python -m benchmarks.kills` kills more
# often, longer sweeps, and trials on a local Ray too.
BRIEF = {
    **RECIPE,
    "train": {**RECIPE["train"], "epochs": 4},
    "search": {**RECIPE["search"], "budget": {"trials": 5}},
}


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> User:
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(empty_database, folder)
    return new_user(folder, recipe=BRIEF)


@pytest.fixture(scope="session")
def user_of_a_cluster(user: User, cluster: Head) -> User:
    """The same, but the driver alone is a process of theirs."""
    return User(Shell(user.shell.folder, cluster.variables), lambda: (cluster.pid,))


@pytest.fixture(scope="session")
def undisturbed(user_of_a_cluster: User) -> Evidence:
    out = user_of_a_cluster.shell.folder / "runs" / "undisturbed"
    user_of_a_cluster.shell.run("sweep", "toy.yaml", "--out", str(out))
    folder = sweep_folder(out)
    assert folder
    return read_evidence(folder, user_of_a_cluster.tracking_uri)
