"""Ask the nodes of a cluster, and check that the other ones see the files that a training needs."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encsearch.data.store import Store
from encsearch.errors import PreflightError, UserError, last_line

if TYPE_CHECKING:
    import ray

ANSWER_TIMEOUT_S = 60


def check_nodes(store: Store, out: Path) -> None:
    """Raises PreflightError, naming the node, unless every node reads the store and sees `out`.

    On the driver's own node there is nothing to check.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in living_nodes() if node["NodeID"] != here]
    if not others:
        return
    out.mkdir(parents=True, exist_ok=True)
    probe = out.absolute() / f".probe-{secrets.token_hex(4)}"
    probe.touch()
    try:
        _ask_all(others, store.address, store.fingerprint, str(probe))
    finally:
        probe.unlink()


def living_nodes() -> list[Mapping[str, Any]]:
    """The nodes of the cluster that take tasks, as `ray.nodes` describes them, by their addresses."""
    import ray

    return sorted((node for node in ray.nodes() if node["Alive"]), key=node_name)


def node_name(node: Mapping[str, Any]) -> str:
    """Only the address distinguishes several nodes on one host."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}:{node['NodeManagerPort']})"


def ask(node: Mapping[str, Any], function: Callable[..., Any], *question: Any) -> "ray.ObjectRef":
    """Start `function` in a process of the node, which books nothing there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=place).remote(*question)


def read_answer(node: Mapping[str, Any], answer: "ray.ObjectRef") -> Any:
    """Wait for what `ask` has started. Raises PreflightError, naming the node, if nothing comes."""
    import ray

    try:
        return ray.get(answer, timeout=ANSWER_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise PreflightError(
            f"node {node_name(node)} cannot be asked ({last_line(error)}); "
            "install the driver's encsearch on it, or remove it"
        ) from None


def _ask_all(nodes: list[Mapping[str, Any]], *question: str) -> None:
    answers = [ask(node, _check_this_node, *question) for node in nodes]
    for node, answer in zip(nodes, answers, strict=True):
        if problem := read_answer(node, answer):
            raise PreflightError(f"node {node_name(node)} {problem}; put it on storage that every node sees")


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
