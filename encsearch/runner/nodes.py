"""Whether the other nodes of a cluster see the files that a training needs."""

import secrets
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from encsearch.data.store import read_manifest
from encsearch.errors import PreflightError, UserError

ANSWER_TIMEOUT_S = 60


def check_nodes(store: str, out: Path) -> None:
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
        fingerprint = read_manifest(store).fingerprint
        answers = {
            node["NodeManagerHostname"]: _look.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(Path(store).absolute()), fingerprint, str(probe))
            for node in others
        }
        for host, answer in answers.items():
            problem = ray.get(answer, timeout=ANSWER_TIMEOUT_S)
            if problem:
                raise PreflightError(f"node {host}: {problem}; put both on storage that every node sees")
    except ray.exceptions.RayError as error:
        raise PreflightError(f"a node of the cluster does not answer: {str(error).splitlines()[0]}") from None
    finally:
        probe.unlink()


@ray.remote
def _look(store: str, fingerprint: str, probe: str) -> str | None:
    if not Path(probe).exists():
        return f"does not see the folder of runs {Path(probe).parent}"
    try:
        found = read_manifest(store).fingerprint
    except UserError as error:
        return f"cannot read the store ({error})"
    return None if found == fingerprint else f"{store} holds other data ({found[:12]}, not {fingerprint[:12]})"
