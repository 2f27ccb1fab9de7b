"""A new member of a closed list is an error wherever it must be acted on or put into words."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from encsearch.config import ModelConfig
from encsearch.config.sections import PRESETS
from encsearch.report.charts.chart import MARKS
from encsearch.report.facts import KIND_LABELS, Kind
from encsearch.search.trials import STATUS_OF, TrialState

ROOT = Path(__file__).parents[2]

# Of each Literal where it stands, and the files that mypy leads to.
LISTS = {
    "Sampler =": ("config/search.py", {"config/search.py", "search/study/samplers.py", "report/words.py"}),
    "Scheduler =": ("config/search.py", {"search/stopping.py", "report/words.py", "report/charts/rungs.py"}),
    "Minimized =": ("config/search.py", {"search/ledger.py", "report/words.py", "report/charts/search.py"}),
    "Head =": ("config/sections.py", {"model/heads.py", "config/tree.py", "search/ablation/plan.py"}),
    "Context =": (
        "config/sections.py",
        {"model/context.py", "search/confirm/finalists.py", "inference/card.py"},
    ),
    "Optimizer =": ("config/sections.py", {"train/state.py", "inference/card.py"}),
    "Schedule =": ("config/sections.py", {"train/state.py", "inference/card.py"}),
    "codeword_init:": ("config/sections.py", {"model/context.py", "inference/card.py"}),
    "aggregate:": ("config/sections.py", {"model/context.py", "inference/card.py"}),
    "scaling:": ("config/sections.py", {"model/encnet.py", "inference/card.py"}),
    "attention:": ("config/sections.py", {"model/encnet.py", "inference/card.py"}),
    "auxiliary:": ("config/sections.py", {"model/encnet.py", "inference/card.py"}),
    "class_weights:": ("config/sections.py", {"train/preflight.py", "inference/card.py"}),
    "    precision:": ("config/sections.py", {"train/kernels.py", "inference/card.py"}),
    "BuiltInTerm =": ("train/loss.py", {"train/loss.py", "inference/card.py"}),
    "TrialState =": ("search/trials.py", {"report/facts.py"}),
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy, set up as for the package, says of a copy in which every list has one member more."""
    copy = tmp_path_factory.mktemp("package") / "encsearch"
    shutil.copytree(ROOT / "encsearch", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (file, _) in LISTS.items():
        path = copy / file
        before = f"{name} Literal["
        text = path.read_text()
        assert text.count(before) == 1, name
        path.write_text(text.replace(before, f'{before}"{new_member(name)}", '))
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(copy.parent / "cache")]
    # Of the package alone: it takes four seconds instead of twenty, and other complaints do not count.
    options += ["--follow-imports", "skip"]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "encsearch"], cwd=copy.parent, capture_output=True, text=True
    )
    assert "errors in" in found.stdout, found.stdout + found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize("name", LISTS)
def test_mypy_leads_to_every_place_that_a_new_member_concerns(complaints: list[str], name: str) -> None:
    files = {re.sub(r"^encsearch/|:.*", "", line) for line in complaints if f"'{new_member(name)}'" in line}

    assert LISTS[name][1] <= files


@pytest.mark.parametrize(
    ("table", "members"),
    [
        *((table, Kind) for table in (KIND_LABELS, MARKS)),
        (PRESETS, ModelConfig.model_fields["preset"].annotation),
        ({**STATUS_OF, "RUNNING": None, "PAUSED": None}, TrialState),
    ],
)
def test_a_table_has_a_line_for_every_member(table: Mapping[str, Any], members: Any) -> None:
    assert set(table) == set(get_args(members))


def new_member(name: str) -> str:
    return f"new {name.rstrip(' =:')}"
