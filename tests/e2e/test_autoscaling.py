"""A cluster whose nodes come when somebody waits for them, as by an autoscaler; here the test brings them."""

from collections.abc import Iterator

import pytest

from tests.e2e.head import Head, Workers, running_head
from tests.e2e.hosts import wait_until
from tests.e2e.shell import Shell, one_line

pytestmark = pytest.mark.own_ray

RECIPE = ("train", "toy.yaml", "scaling.num_workers=2", "train.epochs=1")
DEMAND = "{'CPU': 1.0} * 2"


@pytest.fixture
def head(shell: Shell) -> Iterator[Head]:
    """Without CPUs, and without nodes beside it."""
    with running_head(shell.folder, num_cpus=0) as head:
        yield head


def test_a_training_waits_for_nodes_which_an_autoscaler_is_asked_for(shell: Shell, head: Head) -> None:
    user = Shell(shell.folder, head.variables)
    refused = one_line(user.run(*RECIPE, code=3))
    assert "needs 2 CPUs (2 workers x 1), but the cluster has 0; change scaling.* or add nodes" in refused

    training = user.start("encsearch", *RECIPE, "scaling.wait_s=300")
    status = ("status", f"--address={head.address}")
    wait_until(lambda: DEMAND in user.run(*status, program=("ray",)).stdout, lambda: "nothing is asked for")
    nodes = Workers(head, shell.folder, count=2)
    try:
        _, said = training.communicate()
    finally:
        nodes.close()
    assert training.returncode == 0, said
    assert "toy epoch 1/1" in said
