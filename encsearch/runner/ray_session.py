"""Attach to the cluster that RAY_ADDRESS names, or start a local one that is quiet and cheap."""

import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from encsearch.config import ScalingConfig
from encsearch.errors import PreflightError, first_line
from encsearch.text import format_count, format_duration, format_number

# Measured on Ray 2.60: without these a trivial two-worker fit costs a fifth more CPU time.
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
CHEAPER_TRAIN = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A worker that is stopped would hold up the next start by 30 s; it answers at once or not at all.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that cannot go on reports why instead of a metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Otherwise Tune swallows Ctrl-C and returns as if the sweep had ended.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Otherwise Ray warns at each import about a change in a future version.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray starts Python with -c, which would import files from the working directory, such as a random.py.
SAFE = {"PYTHONSAFEPATH": "1"}

CONNECT_TIMEOUT_S = 5
NODES_POLL_S = 1.0


@contextmanager
def ray_session(
    *, needs: ScalingConfig | None, wanted: Sequence[ScalingConfig] = (), dashboard: bool = True
) -> Iterator[None]:
    """Connect to Ray for the duration of the block; one training of `needs` fits there, if any is named.

    RAY_ADDRESS names a running cluster, where `needs.wait_s` are waited for the nodes of that training and of
    all that are `wanted` at once; without it a local one is started, with a token of its own, and stopped at
    the end. Without `dashboard` that starts sooner, but can run no trials. An existing connection is reused.
    Raises PreflightError when the cluster cannot be reached, or has too little for one training, which would
    wait for ever.
    """
    import ray

    if ray.is_initialized():
        _check_fits(needs, ray.cluster_resources())
        yield
        return
    with tempfile.TemporaryDirectory(prefix="encsearch-") as empty:
        with _enter_folder(empty):
            _connect(needs, dashboard=dashboard)
        try:
            if "RAY_ADDRESS" in os.environ and needs and needs.wait_s:
                _wait_for_nodes(needs, wanted)
            _check_fits(needs, ray.cluster_resources())
            yield
        finally:
            ray.shutdown()


@contextmanager
def rehearse_session(*, needs: ScalingConfig) -> Iterator[None]:
    """Refuse whatever `ray_session` refuses, but start no local Ray."""
    if "RAY_ADDRESS" in os.environ:
        with ray_session(needs=needs.model_copy(update={"wait_s": 0})):
            yield
        return
    import torch

    _check_fits(needs, {"CPU": _local_cpus(needs), "GPU": torch.cuda.device_count()})
    yield


def describe_shortage(needs: ScalingConfig, resources: Mapping[str, float]) -> str | None:
    """What the cluster lacks for one training, with both numbers; None if the training fits."""
    least = needs.min_workers or needs.num_workers
    for name, each in _list_worker_needs(needs).items():
        present = resources.get(name, 0)
        if _count_workers(name, each, present) < least:
            workers = f"{format_count(least, 'worker')} x {format_number(each)}"
            needed = f"{format_count(least * each, name)} ({workers})"
            room = f", each with room for {int(1 / each + 1e-6)}" if least * each <= present else ""
            return f"{needed}, but the cluster has {format_number(present)}{room}"
    return None


def trainings_at_once(needs: ScalingConfig, resources: Mapping[str, float]) -> int:
    """How many trainings fit on the cluster at once; at least one, since an autoscaler may add the rest."""
    workers = [
        _count_workers(name, each, resources.get(name, 0)) for name, each in _list_worker_needs(needs).items()
    ]
    return max(1, min(workers) // needs.num_workers)


def _count_workers(name: str, each: float, present: float) -> int:
    """How many workers have room; a part of a GPU is a part of one, so that 0.6 fits five times on five."""
    if name == "GPU" and each < 1:
        return int(present) * int(1 / each + 1e-6)
    return int(present / each + 1e-6)


def _check_fits(needs: ScalingConfig | None, resources: Mapping[str, float]) -> None:
    if needs and (lacking := describe_shortage(needs, resources)):
        is_waiting = needs.wait_s and "RAY_ADDRESS" in os.environ
        waited = f" after {format_duration(needs.wait_s)}" if is_waiting else ""
        raise PreflightError(
            f"one training needs {lacking}{waited}; change scaling.* or add nodes (scaling.wait_s waits for "
            "those of an autoscaler)"
        )


def _wait_for_nodes(needs: ScalingConfig, wanted: Sequence[ScalingConfig]) -> None:
    """Until the cluster has room for a training of `needs` and all that are `wanted`, or the time is over.

    An autoscaler adds nodes for placement groups that wait; unlike `request_resources`, which the last caller
    decides for all, those of several jobs add up.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    deadline = time.monotonic() + needs.wait_s
    # They book the same for a worker; the finalist of a sweep may have more workers than all its trials.
    total = max([needs], list(wanted), key=lambda some: sum(one.num_workers for one in some))
    groups: list[Any] = []
    try:
        while time.monotonic() < deadline:
            resources = ray.cluster_resources()
            fitting = trainings_at_once(wanted[0], resources) if wanted else 0
            if not describe_shortage(needs, resources) and fitting >= len(wanted):
                return
            groups = groups or [placement_group([_list_worker_needs(one)] * one.num_workers) for one in total]
            time.sleep(NODES_POLL_S)
    finally:
        for group in groups:
            remove_placement_group(group)


def _list_worker_needs(needs: ScalingConfig) -> dict[str, float]:
    return {"CPU": needs.cpus_per_worker} | ({"GPU": needs.gpus_per_worker} if needs.gpus_per_worker else {})


@contextmanager
def _enter_folder(folder: str) -> Iterator[None]:
    """Work in `folder`, since Ray 2.60 puts the working directory first on its workers' import path.

    The current one may be gone, or hold a random.py. A descriptor leads back to it even without its name.
    """
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _connect(needs: ScalingConfig | None, *, dashboard: bool) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    # A process of Ray's that hears of nodes which are about to go; a Ray of one's own is one node.
    watcher = {PREEMPTION_WATCHER: "0" if address is None else "1"}
    for name, value in (CHEAPER_TRAIN | QUIET | SAFE | watcher).items():
        os.environ.setdefault(name, value)
    arguments: dict[str, Any] = {}
    if address is not None:
        _check_listening(address)
    else:
        # Ray 2.60 needs a token on a local cluster and would write one with mode 0644 into the home
        # folder; this one is only for this session.
        if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Trials need the dashboard's state service to free the resources of one that was stopped.
        # Without "local" Ray 2.60 attaches to any cluster that was started on this machine.
        arguments = {
            "address": "local",
            "num_cpus": _local_cpus(needs),
            "include_dashboard": dashboard,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **arguments)
    except Exception as error:  # Ray 2.60 raises nothing narrower when a node does not start in time
        what = f"Ray at RAY_ADDRESS={address} cannot be reached" if address else "Ray cannot be started here"
        raise PreflightError(f"{what}: {first_line(error)}") from None
    # Restored, since Ray 2.60 installs a C handler that prints a stack and aborts without closing anything.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _local_cpus(needs: ScalingConfig | None) -> int:
    """The CPUs that a local Ray announces: one training always fits, as threads that take turns."""
    return max(os.cpu_count() or 1, math.ceil(needs.num_workers * needs.cpus_per_worker) if needs else 0)


def _check_listening(address: str) -> None:
    """Fail fast if nothing listens: Ray 2.60 would try for more than ten minutes, noisily."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local" and the like are for Ray to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, ValueError) as error:  # an invalid host name is a ValueError
        raise PreflightError(
            f"Ray at RAY_ADDRESS={address} cannot be reached: {error}; start the cluster or unset RAY_ADDRESS"
        ) from None
