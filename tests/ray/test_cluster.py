"""A cluster of several nodes: what was on a lost one goes on elsewhere, and one without the files is refused.

Each test has a cluster of its own, of Ray's processes on this machine, and a driver of its own beside it.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from encsearch.config import Config, ScalingConfig, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.data.store import Store
from encsearch.errors import PreflightError
from encsearch.files import read_lines
from encsearch.runner.nodes import check_nodes
from encsearch.runner.ray_session import ray_session, trainings_at_once
from encsearch.search.trials import Trial, TrialEvent
from encsearch.search.tune.trial import SUPERVISOR, trial_resources
from tests.ray.test_sweep import Observer, swept

EPOCHS, LOST_AFTER = 4, 2
HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_whose_node_is_lost_goes_on_where_it_was_on_another(
    toy_config: Config, tmp_path: Path, num_workers: int
) -> None:
    """A second trial of the same values, which loses nothing, has the same curve to the last digit."""
    same_twice = {"space": {"optim.lr": {"choice": [0.02]}}, "scheduler": "none", "budget": {"trials": 2}}
    config = with_values(
        toy_config, {"train.epochs": EPOCHS, "scaling.num_workers": num_workers, "search": same_twice}
    )

    found = _in_a_process(_lose_a_node, config, tmp_path)

    hit, spared = found.records
    assert (hit.state, spared.state) == ("COMPLETE", "COMPLETE")
    assert hit.curve == spared.curve
    assert [epoch for epoch, _ in hit.curve] == found.recorded == list(range(1, EPOCHS + 1))
    assert hit.hardware == spared.hardware
    assert len(hit.hardware) == 1
    (line,) = found.lines
    assert line.startswith("trial 0 lost its process and starts again")
    # It went on from its checkpoint: of what was trained at most the epoch of the loss is trained again.
    trained = [report["epoch"] for report in read_lines(tmp_path / "trials" / "0000" / "reports.jsonl")]
    assert trained[:LOST_AFTER] == [1, 2]
    assert len(trained) <= EPOCHS + 1


def test_a_node_without_the_files_is_refused(toy_config: Config, tmp_path: Path) -> None:
    """The driver and the node each have a working folder, as if it were a disk of their own."""
    driver, node = tmp_path / "driver", tmp_path / "node"
    shutil.copytree(toy_config.data.store, driver / "toy")
    node.mkdir()

    blind, outside, other, seeing = _in_a_process(_ask_node, driver, node)

    assert "does not see the folder of runs" in blind
    assert "cannot read the store" in outside
    assert "has other data in /proc/self/cwd/toy" in other
    assert seeing == ""
    assert all(told.startswith("node ") and "\n" not in told for told in (blind, outside, other))
    assert list((tmp_path / "shared").iterdir()) == []


def test_without_an_address_a_session_has_a_ray_of_its_own_beside_a_running_cluster() -> None:
    """Ray itself would attach to the cluster that was started last on this machine."""
    assert _in_a_process(_num_cpus_beside_a_cluster) >= 1


def test_trials_of_half_a_gpu_are_packed_and_a_group_books_its_workers_alone() -> None:
    half = ScalingConfig(gpus_per_worker=0.5)
    worker = {"CPU": 1.0, "GPU": 0.5}
    pair = half.model_copy(update={"num_workers": 2})

    assert trainings_at_once(half, {"CPU": 4, "GPU": 1}) == 2
    assert trial_resources(half).bundles == [worker]
    assert trial_resources(pair).bundles == [SUPERVISOR, worker, worker]
    assert not SUPERVISOR.keys() & worker.keys()


@dataclass(frozen=True)
class _Found:
    records: tuple[Trial, ...]
    recorded: list[int]
    lines: list[str]


class _LosesANode(Observer):
    """Once, as soon as a trial has reported the epoch LOST_AFTER."""

    def __init__(self, lose: Callable[[], None]) -> None:
        super().__init__()
        self._lose = lose
        self._is_lost = False

    def follow(self, event: TrialEvent) -> None:
        if event.epoch == LOST_AFTER and not self._is_lost:
            self._is_lost = True
            self._lose()


def _lose_a_node(config: Config, folder: Path) -> _Found:
    """The head has no CPU, so trials run on nodes of one CPU, as many as they need."""
    cluster = _start_head()
    nodes = [cluster.add_node(num_cpus=1) for _ in range(config.scaling.num_workers)]

    def lose() -> None:
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1)

    observer = _LosesANode(lose)
    try:
        with ray_session(needs=config.scaling):
            records = swept(config, folder, observer)
    finally:
        cluster.shutdown()
    return _Found(records, [report.epoch for report in observer.recorders[0].reports], observer.lines)


def _ask_node(driver: Path, node: Path) -> list[str]:
    """What `check_nodes` says as the node gets to see more and more; "" when it says nothing."""
    store, shared = "/proc/self/cwd/toy", driver.parent / "shared"
    os.chdir(node)
    cluster = _start_head()
    cluster.add_node(num_cpus=1)
    os.chdir(driver)
    answers = []
    try:
        with ray_session(needs=ScalingConfig()):
            answers.append(_answer(store, Path("/proc/self/cwd/runs")))
            answers.append(_answer(store, shared))
            generate_scenes(node / "toy", num_train=1, num_val=1, num_test=1)
            answers.append(_answer(store, shared))
            shutil.rmtree(node / "toy")
            shutil.copytree(driver / "toy", node / "toy")
            answers.append(_answer(store, shared))
    finally:
        cluster.shutdown()
    return answers


def _num_cpus_beside_a_cluster() -> float:
    """The cluster that runs has none."""
    cluster = _start_head()
    del os.environ["RAY_ADDRESS"]
    try:
        with ray_session(needs=ScalingConfig()):
            return float(ray.cluster_resources()["CPU"])
    finally:
        cluster.shutdown()


def _answer(store: str, out: Path) -> str:
    try:
        check_nodes(Store(store), out)
    except PreflightError as error:
        return str(error)
    return ""


def _start_head() -> Cluster:
    """Without a CPU, in a folder of its own, which keeps its address from others on this machine."""
    # Not pytest's folder: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH_CHECKS},
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def _in_a_process(scenario: Callable[..., Any], *arguments: Any) -> Any:
    """This one is connected to the cluster that the other tests share."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(scenario, *arguments).result()
