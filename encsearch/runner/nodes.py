"""Check that the other nodes of a cluster see the files that a training needs."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from encsearch.data.store import Store
from encsearch.errors import PreflightError, UserError, last_line

ANSWER_TIMEOUT_S = 60


def check_nodes(store: Store, out: Path) -> None:
    """Raises PreflightError, naming the node, unless every node reads the store and sees `out`.

    On the driver's own node there is nothing to check.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    out.mkdir(parents=True, exist_ok=True)
    probe = out.absolute() / f".probe-{secrets.token_hex(4)}"
    probe.touch()
    try:
        _ask_all(others, store.address, store.fingerprint, str(probe))
    finally:
        probe.unlink()


def _ask_all(nodes: list[Mapping[str, Any]], *question: str) -> None:
    look = ray.remote(_check_this_node)
    answers = [
        look.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(*question)
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        # Only the address distinguishes several nodes on one host.
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"
        try:
            problem = ray.get(answer, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            reason = last_line(error)
            raise PreflightError(
                f"node {name} cannot be asked ({reason}); install the driver's encsearch on it, or remove it"
            ) from None
        if problem:
            raise PreflightError(f"node {name} {problem}; put it on storage that every node sees")


def _check_this_node(store: str, fingerprint: str, probe: str) -> str | None:
    """Runs on the node; returns what it does not see, or None."""
    if not Path(probe).exists():
        return f"does not see the folder of runs {Path(probe).parent}"
    try:
        found = Store(store).fingerprint
    except UserError as error:
        return f"cannot read the store ({error})"
    if found != fingerprint:
        return f"has other data in {store} ({found[:12]}, not {fingerprint[:12]})"
    return None
