"""A cluster of several nodes: what was on a lost one goes on elsewhere, and one without the files is refused.

They share a cluster of Ray's processes on this machine, whose head has no CPU, and a driver of its own beside
it; each test brings its nodes.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

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

pytestmark = pytest.mark.ray  # beside the tests on the session's Ray, which end first

EPOCHS, LOST_AFTER = 4, 2
HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_whose_node_is_lost_goes_on_where_it_was_on_another(
    driver: Executor, toy_config: Config, tmp_path: Path, num_workers: int
) -> None:
    """A sweep of the same values, which loses nothing, has the same curve to the last digit."""
    search = {"space": {"optim.lr": {"choice": [0.02]}}, "scheduler": "none", "budget": {"trials": 1}}
    config = with_values(
        toy_config, {"train.epochs": EPOCHS, "scaling.num_workers": num_workers, "search": search}
    )

    found = driver.submit(_lose_a_node, config, tmp_path).result()

    hit, spared = found.hit, found.spared
    assert (hit.state, spared.state) == ("COMPLETE", "COMPLETE")
    assert hit.curve == spared.curve
    assert [epoch for epoch, _ in hit.curve] == found.recorded == list(range(1, EPOCHS + 1))
    assert hit.hardware == spared.hardware
    assert len(hit.hardware) == 1
    # On a busy machine it is told that the trial is slow, too.
    (line,) = [line for line in found.lines if "straggler" not in line]
    assert line.startswith("trial 0 lost its process and starts again")
    # It went on from its checkpoint: of what was trained at most the epoch of the loss is trained again.
    reports = read_lines(tmp_path / "hit" / "trials" / "0000" / "reports.jsonl")
    trained = [report["epoch"] for report in reports]
    assert trained[:LOST_AFTER] == [1, 2]
    assert len(trained) <= EPOCHS + 1


def test_a_node_without_the_files_is_refused(driver: Executor, toy_config: Config, tmp_path: Path) -> None:
    """The driver and the node each have a working folder, as if it were a disk of their own."""
    here, there = tmp_path / "driver", tmp_path / "node"
    shutil.copytree(toy_config.data.store, here / "toy")
    there.mkdir()

    blind, outside, other, seeing = driver.submit(_ask_node, here, there).result()

    assert "does not see the folder of runs" in blind
    assert "cannot read the store" in outside
    assert "has other data in /proc/self/cwd/toy" in other
    assert seeing == ""
    assert all(told.startswith("node ") and "\n" not in told for told in (blind, outside, other))
    assert list((tmp_path / "shared").iterdir()) == []


def test_without_an_address_a_session_has_a_ray_of_its_own_beside_a_running_cluster(driver: Executor) -> None:
    """Ray itself would attach to the cluster that was started last on this machine, and has no CPU."""
    assert driver.submit(_num_cpus_beside_the_cluster).result() >= 1


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
    hit: Trial
    spared: Trial
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
    """Trials run on nodes of one CPU, as many as they need."""
    nodes = [_cluster.add_node(num_cpus=1) for _ in range(config.scaling.num_workers)]

    def lose() -> None:
        _cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(_cluster.add_node(num_cpus=1))

    observer = _LosesANode(lose)
    try:
        with ray_session(needs=config.scaling):
            (hit,) = swept(config, folder / "hit", observer)
            (spared,) = swept(config, folder / "spared", Observer())
    finally:
        for node in nodes:
            _cluster.remove_node(node)
    return _Found(hit, spared, [report.epoch for report in observer.recorders[0].reports], observer.lines)


def _ask_node(here: Path, there: Path) -> list[str]:
    """What `check_nodes` says as the node gets to see more and more; "" when it says nothing."""
    store, shared = "/proc/self/cwd/toy", here.parent / "shared"
    os.chdir(there)
    node = _cluster.add_node(num_cpus=1)
    os.chdir(here)
    answers = []
    try:
        with ray_session(needs=ScalingConfig()):
            answers.append(_answer(store, Path("/proc/self/cwd/runs")))
            answers.append(_answer(store, shared))
            generate_scenes(there / "toy", num_train=1, num_val=1, num_test=1)
            answers.append(_answer(store, shared))
            shutil.rmtree(there / "toy")
            shutil.copytree(here / "toy", there / "toy")
            answers.append(_answer(store, shared))
    finally:
        _cluster.remove_node(node)
    return answers


def _num_cpus_beside_the_cluster() -> float:
    address = os.environ.pop("RAY_ADDRESS")
    try:
        with ray_session(needs=ScalingConfig()):
            return float(ray.cluster_resources()["CPU"])
    finally:
        os.environ["RAY_ADDRESS"] = address


def _answer(store: str, out: Path) -> str:
    try:
        check_nodes(Store(store), out)
    except PreflightError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _connected() -> None:
    """Not to the Ray of the session: the process with the cluster connects."""


@pytest.fixture(scope="module")
def driver() -> Iterator[Executor]:
    """A process with the cluster, since this one may be connected to another Ray."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start_head) as pool:
        with pytest.MonkeyPatch.context() as patch:
            # Ray reads them when it is imported.
            patch.setenv("RAY_AUTH_MODE", "token")
            patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
            pool.submit(os.getpid).result()
        yield pool
        pool.submit(_stop_cluster).result()


_cluster: Cluster
"""In the driver's process."""


def _start_head() -> None:
    """Without a CPU, in a folder of its own, which keeps its address from others on this machine."""
    global _cluster
    # Not pytest's folder: Ray puts Unix sockets below it, whose paths may have 107 bytes.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
    _cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH_CHECKS},
    )
    os.environ["RAY_ADDRESS"] = _cluster.address


def _stop_cluster() -> None:
    _cluster.shutdown()
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
