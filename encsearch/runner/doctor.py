"""What the nodes of a cluster are and have, what they can write, and how fast two of them talk."""

import hashlib
import os
import platform
import resource
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

from encsearch.errors import PreflightError, last_line
from encsearch.runner.nodes import ask, living_nodes, node_name, read_answer

PACKAGES = ("encsearch", "ray", "torch")
CLOCK_TRIES = 5
PROBE_BYTES = 16 * 2**20
LINK_BYTES = 64 * 2**20
LINK_REPEATS, LINK_WARM_UP = 5, 2
LINK_TIMEOUT_S = 30
MAX_LINKS = 28  # all pairs of 8 nodes
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class NodeFacts:
    """Of a process that Ray starts there. A limit is None if there is none; sizes are in bytes."""

    versions: Mapping[str, str | None]
    devices: tuple[str, ...]
    has_nccl: bool
    shm_bytes: int
    open_files: int | None
    processes: int | None
    has_token: bool


@dataclass(frozen=True)
class Node:
    """`described` is what `ray.nodes` says; `clock_s` is how far its clock is ahead of the driver's.

    That is known to within `clock_within_s`.

    `written_s` and `read_s` are what PROBE_BYTES took, the latter those that another node has written; else
    `storage_problem` says why there are none.
    """

    name: str
    described: Mapping[str, Any]
    cpus: float
    gpus: float
    object_store_bytes: float
    facts: NodeFacts
    clock_s: float
    clock_within_s: float
    written_s: float | None = None
    read_s: float | None = None
    storage_problem: str | None = None


@dataclass(frozen=True)
class Link:
    """An all-reduce between two nodes: of LINK_BYTES in bytes a second, of one number in seconds."""

    nodes: tuple[str, str]
    backend: str
    bytes_per_s: float = 0.0
    latency_s: float = 0.0
    problem: str | None = None


def examine_nodes(out: Path | None) -> tuple[list[Node], dict[str, str]]:
    """Ask every living node of the connected cluster; each writes to `out` and reads what another wrote.

    Without `out` nothing is written. Returns the nodes that have answered, and why others have not, by name.
    """
    nodes, facts, silent = [], [], {}
    for node, answer in [(node, ask(node, _look)) for node in living_nodes()]:
        try:
            facts.append((read_answer(node, answer), *_compare_clocks(node)))
            nodes.append(node)
        except PreflightError as error:
            silent[node_name(node)] = str(error)
    storage = _try_storage(nodes, out) if out and nodes else [(None, None, None)] * len(nodes)
    found = [
        Node(
            node_name(node),
            node,
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Resources"].get("object_store_memory", 0.0),
            *one,
            *stored,
        )
        for node, one, stored in zip(nodes, facts, storage, strict=True)
    ]
    return found, silent


def measure_links(nodes: Sequence[Node]) -> Iterator[Link]:
    """Measure one pair of nodes after the other: all, or of many nodes each with the next one."""
    for first, second in choose_pairs(len(nodes)):
        pair = (nodes[first], nodes[second])
        backend = "nccl" if all(node.facts.has_nccl for node in pair) else "gloo"
        yield _measure_link([node.described for node in pair], backend)


def choose_pairs(num_nodes: int) -> list[tuple[int, int]]:
    """All pairs of nodes, or a ring where those are more than MAX_LINKS."""
    pairs = list(combinations(range(num_nodes), 2))
    if len(pairs) <= MAX_LINKS:
        return pairs
    return [(number, (number + 1) % num_nodes) for number in range(num_nodes)]


def _look() -> NodeFacts:
    devices: tuple[str, ...] = ()
    has_nccl = False
    with suppress(ImportError):  # the versions have it that there is no torch
        import torch

        from encsearch.runner.hardware import describe_gpu

        devices = tuple(describe_gpu(f"cuda:{number}") for number in range(torch.cuda.device_count()))
        has_nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    return NodeFacts(
        versions={"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        devices=devices,
        has_nccl=has_nccl,
        shm_bytes=shutil.disk_usage(SHM).total if SHM.exists() else 0,
        open_files=_limit(resource.RLIMIT_NOFILE),
        processes=_limit(resource.RLIMIT_NPROC),
        has_token=os.environ.get("RAY_AUTH_MODE", "token" if _finds_token() else "disabled") == "token",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _limit(name: int) -> int | None:
    soft, _ = resource.getrlimit(name)
    return None if soft == resource.RLIM_INFINITY else soft


def _finds_token() -> bool:
    return bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys())


def _compare_clocks(node: Mapping[str, Any]) -> tuple[float, float]:
    """How far the node is ahead and to within what: the fastest answer is of the middle of what it took."""
    tries = []
    for _ in range(CLOCK_TRIES):
        sent = time.time()
        there = read_answer(node, ask(node, _read_clock))
        took = time.time() - sent
        tries.append((took / 2, there - sent - took / 2))
    within, ahead = min(tries)
    return ahead, within


def _read_clock() -> float:
    return time.time()


def _try_storage(
    nodes: Sequence[Mapping[str, Any]], out: Path
) -> list[tuple[float | None, float | None, str | None]]:
    """Per node the seconds of writing and reading, and its problem; each reads what the next writer wrote."""
    content = secrets.token_bytes(2**20) * (PROBE_BYTES // 2**20)
    digest = hashlib.sha256(content).hexdigest()
    probes = [f".probe-{secrets.token_hex(4)}" for _ in nodes]
    results: list[tuple[float | None, float | None, str | None]] = []
    try:
        writings = [
            _ask_storage(n, _write, out, probe, content) for n, probe in zip(nodes, probes, strict=True)
        ]
        for number, (node, (written, problem)) in enumerate(zip(nodes, writings, strict=True)):
            order = [*range(number + 1, len(nodes)), *range(number + 1)]
            other = next((probes[one] for one in order if writings[one][0]), None)
            read, blind = _ask_storage(node, _read, out, other, digest) if other else (None, None)
            results.append((written, read, problem or blind))
    finally:
        for node in nodes:
            _ask_storage(node, _clean, out, probes)
    return results


def _ask_storage(node: Mapping[str, Any], function: Callable[..., Any], *question: Any) -> Any:
    """Seconds and a problem; one of the two is None."""
    try:
        return read_answer(node, ask(node, function, *question))
    except PreflightError as error:
        return None, str(error)


def _write(out: Path, probe: str, content: bytes) -> tuple[float | None, str | None]:
    started = time.perf_counter()
    try:
        with open(_existing(out) / probe, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return None, f"cannot write to {out} ({error.strerror})"
    return time.perf_counter() - started, None


def _read(out: Path, probe: str, digest: str) -> tuple[float | None, str | None]:
    started = time.perf_counter()
    try:
        content = (_existing(out) / probe).read_bytes()
    except OSError as error:
        return None, f"does not see in {out} what another node has written ({error.strerror})"
    took = time.perf_counter() - started
    if hashlib.sha256(content).hexdigest() != digest:
        return None, f"reads in {out} something else than another node has written"
    return took, None


def _clean(out: Path, probes: Sequence[str]) -> None:
    for probe in probes:
        with suppress(OSError):
            (_existing(out) / probe).unlink(missing_ok=True)


def _existing(out: Path) -> Path:
    """The folder, or where a job would make it; a file stands in the way of both."""
    return next(path for path in (out, *out.parents) if path.exists())


def _measure_link(nodes: Sequence[Mapping[str, Any]], backend: str) -> Link:
    """Both nodes form a process group of two, as the workers of a training do."""
    import ray

    names = (node_name(nodes[0]), node_name(nodes[1]))
    try:
        port = read_answer(nodes[0], ask(nodes[0], _free_port))
    except PreflightError as error:
        return Link(names, backend, problem=str(error))
    address = nodes[0]["NodeManagerAddress"]
    place = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
    answers = [ask(node, _all_reduce, rank, place, backend) for rank, node in enumerate(nodes)]
    try:
        bytes_per_s, latency_s = ray.get(answers, timeout=3 * LINK_TIMEOUT_S)[0]
    except ray.exceptions.RayError as error:
        for answer in answers:
            ray.cancel(answer, force=True)
        return Link(names, backend, problem=last_line(error))
    return Link(names, backend, bytes_per_s, latency_s)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _all_reduce(rank: int, place: str, backend: str) -> tuple[float, float]:
    """Bytes a second of a large all-reduce, and seconds of a small one: the medians."""
    import torch
    from torch import distributed

    device = torch.device("cuda:0" if backend == "nccl" else "cpu")
    distributed.init_process_group(
        backend, init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=LINK_TIMEOUT_S)
    )
    try:
        large_s = _time_all_reduce(torch.zeros(LINK_BYTES // 4, device=device))
        return LINK_BYTES / large_s, _time_all_reduce(torch.zeros(1, device=device))
    finally:
        distributed.destroy_process_group()


def _time_all_reduce(tensor: Any) -> float:
    from torch import distributed

    times = []
    for _ in range(LINK_WARM_UP + LINK_REPEATS):
        started = time.perf_counter()
        distributed.all_reduce(tensor)
        tensor.sum().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return sorted(times[LINK_WARM_UP:])[LINK_REPEATS // 2]
