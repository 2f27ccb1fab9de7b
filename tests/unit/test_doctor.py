"""What `encsearch doctor` finds of what nodes have said."""

from dataclasses import replace

import pytest

from encsearch.runner.doctor import MAX_LINKS, Link, Node, NodeFacts, choose_pairs
from encsearch.workflow.doctor import Finding, ask_mlflow, judge_links, judge_nodes

FACTS = NodeFacts(
    versions={"Python": "3.11.7", "encsearch": "0.1.0", "ray": "2.60.0", "torch": "2.15.0"},
    devices=("NVIDIA H100",) * 2,
    has_nccl=True,
    shm_bytes=8 * 2**30,
    open_files=65_536,
    processes=None,
    has_token=True,
)
NODE = Node("a (10.0.0.1:1)", {}, 8, 2, 4 * 2**30, FACTS, 0.001, 0.002, 0.1, 0.05)
OTHER = replace(NODE, name="b (10.0.0.2:1)")


def findings(node: Node, check: str) -> list[Finding]:
    """What is found of the node beside another that is as it should be, and one that is the same."""
    found = judge_nodes([OTHER, replace(OTHER, name="c (10.0.0.3:1)"), node], is_shared=True)
    return [finding for finding in found if finding.check == check and finding.where in (node.name, "Ray")]


def test_nodes_that_are_as_they_should_be_have_a_line_for_each_check() -> None:
    found = judge_nodes([NODE, OTHER], is_shared=True)
    assert {finding.state for finding in found} == {"ok"}
    checks = [finding.check for finding in found]
    assert [checks.count(check) for check in ("versions", "devices", "storage", "authentication")] == [
        1,
        2,
        2,
        1,
    ]
    assert found[0].found == "Python 3.11.7, encsearch 0.1.0, ray 2.60.0, torch 2.15.0"
    assert "8 CPUs, 2 x NVIDIA H100" in {finding.found for finding in found}
    assert "writes 160 MiB/s, reads 320 MiB/s, once 16 MiB" in {finding.found for finding in found}


@pytest.mark.parametrize(
    ("check", "facts", "state", "found"),
    [
        (
            "versions",
            {"versions": {**FACTS.versions, "torch": "2.11.0"}},
            "failed",
            "torch 2.11.0, not 2.15.0",
        ),
        (
            "versions",
            {"versions": {**FACTS.versions, "encsearch": None}},
            "failed",
            "encsearch is not installed",
        ),
        ("devices", {"devices": ()}, "failed", "Ray offers 2 GPUs, torch can use 0"),
        ("devices", {"devices": ("NVIDIA H100",) * 4}, "warning", "Ray offers 2 GPUs, torch can use 4"),
        (
            "memory",
            {"shm_bytes": 64 * 2**20},
            "warning",
            "object store 4 GiB, /dev/shm 64 MiB; Ray keeps objects",
        ),
        ("limits", {"open_files": 1024}, "warning", "raise open files to 4,096 or more (ulimit -n)"),
        ("limits", {"processes": 100}, "warning", "raise processes to 4,096 or more (ulimit -u)"),
        ("authentication", {"has_token": False}, "warning", "start it with RAY_AUTH_MODE=token"),
    ],
)
def test_what_a_node_lacks_is_found_with_the_way_out(check: str, facts: dict, state: str, found: str) -> None:
    (finding,) = findings(replace(NODE, facts=replace(FACTS, **facts)), check)
    assert finding.state == state
    assert found in finding.found


@pytest.mark.parametrize(
    ("ahead_s", "state", "found"),
    [
        (0.001, "ok", "as the driver's, to within 0.002 s"),
        (0.5, "ok", "0.5 s ahead of the driver's"),
        (-90, "warning", "90 s behind the driver's, to within 0.002 s; times in MLflow"),
    ],
)
def test_a_clock_is_compared_as_well_as_it_was_read(ahead_s: float, state: str, found: str) -> None:
    (finding,) = findings(replace(NODE, clock_s=ahead_s), "clock")
    assert (finding.state, found in finding.found) == (state, True)


def test_storage_that_a_node_does_not_see_or_that_was_not_tried_is_said() -> None:
    problem = "does not see in /a/runs what another node has written (No such file or directory)"
    (blind,) = findings(replace(NODE, written_s=0.1, read_s=None, storage_problem=problem), "storage")
    assert (blind.state, blind.found) == (
        "failed",
        f"{problem}; name storage that every node sees with --out",
    )
    (untried,) = findings(replace(NODE, written_s=None, read_s=None), "storage")
    assert (untried.state, "with --out" in untried.found) == ("warning", True)


def test_links_have_their_speed_or_their_problem() -> None:
    names = (NODE.name, OTHER.name)
    fast = Link(names, "nccl", bytes_per_s=20 * 2**30, latency_s=5e-5)
    (found,) = judge_links([NODE, OTHER], [fast])
    assert found.found == "nccl all-reduce 20 GiB/s, 0.05 ms for one number"
    assert found.where == "a (10.0.0.1:1) - b (10.0.0.2:1)"
    (broken,) = judge_links([NODE, OTHER], [Link(names, "gloo", problem="timed out")])
    assert broken.state == "failed"
    assert broken.found.startswith("gloo: timed out; open the ports")


def test_of_many_nodes_the_pairs_that_were_not_measured_are_counted() -> None:
    assert len(choose_pairs(8)) == MAX_LINKS
    assert choose_pairs(1) == []
    ring = choose_pairs(9)
    assert [first for first, _ in ring] == [second for _, second in [ring[-1], *ring[:-1]]] == list(range(9))
    nodes = [replace(NODE, name=str(number)) for number in range(9)]
    *_, last = judge_links(nodes, [Link(("0", "1"), "gloo", 1.0, 1.0)])
    assert last.found.startswith("27 other pairs not measured")


def test_mlflow_that_is_not_named_is_a_warning_on_a_cluster_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert ask_mlflow(is_shared=False).state == "ok"
    assert ask_mlflow(is_shared=True).state == "warning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    found = ask_mlflow(is_shared=True)
    assert (found.state, "/nowhere/mlflow.db: no such tracking database" in found.found) == ("failed", True)
