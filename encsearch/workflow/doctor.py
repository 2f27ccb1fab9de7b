"""What of a cluster is fit for encsearch's jobs: findings of what its nodes have said."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from encsearch.errors import UserError
from encsearch.redaction import without_secrets
from encsearch.runner.doctor import PROBE_BYTES, Link, Node, choose_pairs, examine_nodes, measure_links
from encsearch.runner.ray_session import ray_session
from encsearch.text import format_bytes, format_count, format_duration, format_number
from encsearch.tracking.mlflow import connect, translate_failures
from encsearch.tracking.uris import existing_store
from encsearch.workflow.job import Progress

State = Literal["ok", "warning", "failed"]
MAX_SKEW_S = 1.0
MIN_OPEN_FILES, MIN_PROCESSES = 4096, 4096


@dataclass(frozen=True)
class Finding:
    """`where` is a node, a pair of nodes, or what else was looked at; `found` ends with the way out."""

    check: str
    where: str
    state: State
    found: str


def examine(out: Path | None, progress: Progress) -> list[Finding]:
    """Look at the cluster of RAY_ADDRESS, else at this machine.

    Every node writes to `out`; None: ./runs, or nothing on a cluster. Raises PreflightError if Ray does not
    answer.
    """
    is_shared = "RAY_ADDRESS" in os.environ
    if out is None and not is_shared:
        out = Path("runs").absolute()
    with ray_session(needs=None, dashboard=False):
        nodes, silent = examine_nodes(out)
        progress.phase("measuring the network")
        links = list(measure_links(nodes))
    progress.phase("asking MLflow")
    findings = [Finding("node", name, "failed", problem) for name, problem in silent.items()]
    if nodes:
        findings += [*judge_nodes(nodes, is_shared=is_shared), *judge_links(nodes, links)]
    return [*findings, ask_mlflow(is_shared=is_shared)]


def judge_nodes(nodes: Sequence[Node], *, is_shared: bool) -> list[Finding]:
    """What the nodes are and have, node by node; `is_shared`: others may reach the cluster."""
    return [
        *_judge_versions(nodes),
        *(_judge_devices(node) for node in nodes),
        *(_judge_memory(node) for node in nodes),
        *(_judge_limits(node) for node in nodes),
        *(_judge_clock(node) for node in nodes),
        *(_judge_storage(node) for node in nodes),
        _judge_token(nodes, is_shared),
    ]


def judge_links(nodes: Sequence[Node], links: Iterable[Link]) -> list[Finding]:
    """How fast pairs of nodes talk, and how many pairs were not tried."""
    if len(nodes) < 2:
        return [Finding("network", nodes[0].name, "ok", "one node: nothing to measure")]
    findings = [_judge_link(link) for link in links]
    left_out = len(nodes) * (len(nodes) - 1) // 2 - len(choose_pairs(len(nodes)))
    if left_out:
        each = f"{format_count(left_out, 'other pair')} not measured: of so many nodes each with the next one"
        findings.append(Finding("network", "the others", "ok", each))
    return findings


def ask_mlflow(*, is_shared: bool) -> Finding:
    """Whether the tracking store answers to the driver, which alone records."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        found = "MLFLOW_TRACKING_URI is not set: records go to mlflow.db of the folder that a command runs in"
        if is_shared:
            return Finding("MLflow", "driver", "warning", f"{found}; a submitted job refuses to start")
        return Finding("MLflow", "driver", "ok", found)
    started = time.monotonic()
    try:
        tracking = connect(existing_store(), experiment="Default")
        with translate_failures(tracking.uri):
            tracking.client.search_runs([tracking.experiment_id], max_results=1)
    except UserError as error:
        return Finding("MLflow", "driver", "failed", str(error))
    took = format_duration(time.monotonic() - started)
    return Finding("MLflow", "driver", "ok", f"{without_secrets(tracking.uri)} answers within {took}")


def _judge_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Nodes that differ from what most have."""
    usual = Counter(tuple(node.facts.versions.items()) for node in nodes).most_common(1)[0][0]
    text = ", ".join(f"{name} {number}" for name, number in usual)
    same = [node for node in nodes if tuple(node.facts.versions.items()) == usual]
    where = nodes[0].name if len(nodes) == 1 else f"{len(same)} of {format_count(len(nodes), 'node')}"
    findings = [Finding("versions", where, "ok", text)]
    for node in nodes:
        other = [
            f"{name} {number or 'is not installed'}, not {dict(usual).get(name)}"
            for name, number in node.facts.versions.items()
            if number != dict(usual).get(name)
        ]
        if other:
            found = f"{'; '.join(other)}; install the same on every node, as from requirements.lock"
            findings.append(Finding("versions", node.name, "failed", found))
    return findings


def _judge_devices(node: Node) -> Finding:
    counts = Counter(node.facts.devices)
    devices = ", ".join(f"{number} x {device}" for device, number in counts.items()) or "no GPU"
    found = f"{format_count(node.cpus, 'CPU')}, {devices}"
    if node.gpus != len(node.facts.devices):
        offered = f"Ray offers {format_count(node.gpus, 'GPU')}, torch can use {len(node.facts.devices)}"
        way_out = "look at the driver and at CUDA_VISIBLE_DEVICES, or start Ray with --num-gpus"
        # Fewer may be meant, as on a head that shall not train.
        state: State = "failed" if node.gpus > len(node.facts.devices) else "warning"
        return Finding("devices", node.name, state, f"{found}; {offered}; {way_out}")
    return Finding("devices", node.name, "ok", found)


def _judge_memory(node: Node) -> Finding:
    store, shm = node.object_store_bytes, node.facts.shm_bytes
    found = f"object store {format_bytes(store)}, /dev/shm {format_bytes(shm)}"
    if shm < store:
        way_out = (
            "Ray keeps objects on disk; give /dev/shm more (docker run --shm-size, an emptyDir of memory)"
        )
        return Finding("memory", node.name, "warning", f"{found}; {way_out}")
    return Finding("memory", node.name, "ok", found)


def _judge_limits(node: Node) -> Finding:
    limits = {
        "open files": (node.facts.open_files, MIN_OPEN_FILES, "ulimit -n"),
        "processes": (node.facts.processes, MIN_PROCESSES, "ulimit -u"),
    }
    found = ", ".join(
        f"{format_count(limit)} {name}" if limit is not None else f"{name} without limit"
        for name, (limit, _, _) in limits.items()
    )
    low = [
        f"raise {name} to {format_count(least)} or more ({command}) before Ray starts"
        for name, (limit, least, command) in limits.items()
        if limit is not None and limit < least
    ]
    return Finding("limits", node.name, "warning" if low else "ok", "; ".join([found, *low]))


def _judge_clock(node: Node) -> Finding:
    within = f"to within {format_duration(node.clock_within_s)}"
    if abs(node.clock_s) <= node.clock_within_s:
        return Finding("clock", node.name, "ok", f"as the driver's, {within}")
    side = "ahead of" if node.clock_s > 0 else "behind"
    found = f"{format_duration(abs(node.clock_s))} {side} the driver's, {within}"
    if abs(node.clock_s) > MAX_SKEW_S + node.clock_within_s:
        return Finding(
            "clock", node.name, "warning", f"{found}; times in MLflow and logs will not fit; run NTP"
        )
    return Finding("clock", node.name, "ok", found)


def _judge_storage(node: Node) -> Finding:
    if node.written_s is None and node.storage_problem is None:
        return Finding("storage", node.name, "warning", "not tried; name the folder of runs with --out")
    if node.storage_problem:
        way_out = "name storage that every node sees with --out"
        return Finding("storage", node.name, "failed", f"{node.storage_problem}; {way_out}")
    speeds = ", ".join(
        f"{verb} {format_bytes(PROBE_BYTES / seconds)}/s"
        for verb, seconds in (("writes", node.written_s), ("reads", node.read_s))
        if seconds
    )
    return Finding("storage", node.name, "ok", f"{speeds}, once {format_bytes(PROBE_BYTES)}")


def _judge_token(nodes: Sequence[Node], is_shared: bool) -> Finding:
    without = [node.name for node in nodes if not node.facts.has_token]
    if not is_shared:
        return Finding("authentication", "Ray", "ok", "a Ray of this command's own")
    if not without:
        return Finding("authentication", "Ray", "ok", "asks for a token")
    found = "asks for no token, so whoever reaches it can run programs; start it with RAY_AUTH_MODE=token"
    return Finding("authentication", "Ray", "warning", found)


def _judge_link(link: Link) -> Finding:
    where = " - ".join(link.nodes)
    if link.problem:
        way_out = (
            "open the ports between them, or name the interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
        )
        return Finding("network", where, "failed", f"{link.backend}: {link.problem}; {way_out}")
    speed = f"{format_bytes(link.bytes_per_s)}/s, {format_number(1000 * link.latency_s)} ms for one number"
    return Finding("network", where, "ok", f"{link.backend} all-reduce {speed}")
