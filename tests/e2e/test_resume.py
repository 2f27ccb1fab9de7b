"""`encsearch resume` and `--warm-start-from` as people use them; kills are in tests/chaos."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from encsearch.cli.console import say
from encsearch.config import Config, load_config, to_yaml, with_values
from encsearch.errors import PreflightError, UserError
from encsearch.search.study.study import Study
from encsearch.workflow.progress import LineProgress
from encsearch.workflow.sweep.earlier import previous_trials
from encsearch.workflow.sweep.folder import StudyPlace, check_database, locked, open_study, reopen
from encsearch.workflow.sweep.run import resume
from tests.e2e.shell import Shell

pytestmark = pytest.mark.ray

# One trial, one finalist of one worker, no baseline.
BRIEF = ("search.budget.trials=1", "search.confirm.num_workers=1", "search.confirm.baselines=[]")


def test_a_sweep_learns_from_another_is_extended_and_confirmed_longer(
    shell: Shell, swept: dict[str, Any], ray_here: None
) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(shell.encsearch(*arguments, "--json").stdout)
        return done

    learnt = run("sweep", "toy.yaml", *BRIEF, "--warm-start-from", swept["folder"])
    assert [t["number"] for t in learnt["trials"]] == [3], "those that it learnt from come before"
    assert f"the trials of {Path(swept['folder']).name}" in (shell.folder / learnt["report"]).read_text()
    lines = (shell.folder / learnt["folder"] / "finalists" / "finalists.jsonl").read_text()

    longer = run("resume", learnt["folder"], "--extend", "1")
    assert [t["number"] for t in longer["trials"]] == [3, 4]
    assert longer["trials"][0] == learnt["trials"][0]
    assert longer["parent_run_id"] == learnt["parent_run_id"]
    if longer["finalists"][0]["trial"] == 3:
        assert longer["finalists"] == learnt["finalists"], "what was confirmed is not trained again"
    lengthened = run("resume", learnt["folder"], "search.confirm.epochs=3")
    (finalist,) = lengthened["finalists"]
    assert finalist["name"].endswith("-seed1-3epochs")
    assert finalist["best"]["epoch"] <= 3
    assert lengthened["trials"] == longer["trials"]
    kept = (shell.folder / learnt["folder"] / "finalists" / "finalists.jsonl").read_text()
    assert kept.startswith(lines), "the shorter trainings stay"


@pytest.fixture
def place(toy_config: Config, tmp_path: Path) -> Path:
    """The folder of a sweep that has just begun, on other data than the recipe's store has now."""
    search = {"space": {"optim.lr": {"loguniform": [1e-3, 1e-1]}}, "budget": {"trials": 2}}
    config = with_values(toy_config, {"search": search})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert config.search
    Study(str(tmp_path / "study.journal"), "toy-1", config.search, config.train.epochs)
    began = asdict(StudyPlace("toy-1", "0123456789abcdef", None))
    (tmp_path / "study.json").write_text(json.dumps(began))
    return tmp_path


def test_what_would_make_trials_incomparable_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"model\.channels=8: the sweep has started"):
        resume(place, ["model.channels=8"], 0, LineProgress(say))
    with pytest.raises(PreflightError, match="holds other data than at the start of the job"):
        resume(place, ["search.budget.trials=3"], 0, LineProgress(say))


def test_only_a_sweeps_folder_is_resumed(tmp_path: Path, place: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a sweep"):
        resume(tmp_path / "none", [], 0, LineProgress(say))
    (place / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study.json: damaged"):
        resume(place, [], 0, LineProgress(say))


def test_a_storage_that_is_no_url_or_not_the_sweeps_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, began = reopen(place)
    monkeypatch.setenv("ENCSEARCH_STORAGE", "nonsense")
    with pytest.raises(PreflightError, match="ENCSEARCH_STORAGE=nonsense is not a database URL"):
        check_database()
    monkeypatch.setenv("ENCSEARCH_STORAGE", "sqlite:///other.db")
    with pytest.raises(
        PreflightError, match=r"its study is in study.journal, but ENCSEARCH_STORAGE is sqlite"
    ):
        open_study(config, place, began)


def test_a_sweep_has_one_process(place: Path) -> None:
    with (
        locked(place),
        pytest.raises(UserError, match="another process is running this sweep"),
        locked(place),
    ):
        raise AssertionError("not reached")
    with locked(place):
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "its data is different"),
        ({"train.epochs": 3}, "train.epochs is 2 there and 3 here"),
        (
            {"search.space": {"model.num_codewords": {"choice": [4, 8]}}},
            "none of its 0 trials lies in this sweep's space",
        ),
    ],
)
def test_trials_that_do_not_compare_are_not_learnt_from(
    place: Path, values: dict[str, Any], message: str
) -> None:
    config = with_values(load_config(place / "config.yaml"), values)
    fingerprint = "0123456789abcdef" if values else "other"
    with pytest.raises(UserError, match=message):
        previous_trials(place, config, fingerprint)
