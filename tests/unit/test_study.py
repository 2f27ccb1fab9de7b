"""The study: asked, told and read again by another process."""

import json
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest

from encsearch.config import Sampler, SearchConfig
from encsearch.errors import PreflightError
from encsearch.search.study.storage import MEMORY, repair_journal
from encsearch.search.study.study import Study, trials_at
from encsearch.search.trials import Trial

RANGES = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "loss.se_weight": {"uniform": [0.0, 1.0]}}
CHOICES = {"model.num_codewords": {"choice": [4, 8]}, "loss.se_weight": {"choice": [0.0, 0.2, 0.4]}}
CONDITIONAL = {
    "model.context": {"choice": ["none", "encoding"]},
    "loss.se_weight": {"uniform": [0.0, 1.0], "when": {"model.context": ["encoding"]}},
}
EPOCHS = 3


def search(space: dict[str, Any] | None = None, **values: object) -> SearchConfig:
    return SearchConfig.model_validate({"space": space or RANGES, "startup_trials": 3, **values})


def run(study: Study, count: int) -> list[dict[str, Any]]:
    """Complete so many trials; their values."""
    values = []
    for _ in range(count):
        proposal = study.ask()
        assert proposal
        study.report(proposal.number, 1, proposal.values.get("loss.se_weight", 0.5))
        study.complete(proposal.number)
        values.append(dict(proposal.values))
    return values


@pytest.mark.parametrize("sampler", sorted({*get_args(Sampler)} - {"grid"}))
def test_a_sampler_goes_on_after_a_kill_as_without(tmp_path: Path, sampler: str) -> None:
    config = search(sampler=sampler)
    whole = run(Study("memory", "s", config, EPOCHS), 7)
    place = str(tmp_path / "study.journal")
    halves = run(Study(place, "s", config, EPOCHS), 4) + run(Study(place, "s", config, EPOCHS), 3)

    assert halves == whole
    assert len({json.dumps(values) for values in whole}) == 7


def test_a_trial_killed_before_it_had_all_its_values_gets_the_same_ones(tmp_path: Path) -> None:
    place, config = str(tmp_path / "study.journal"), search()
    whole = Study(place, "whole", config, EPOCHS).ask()
    killed = optuna.create_study(
        storage=Study(place, "killed", config, EPOCHS)._storage, study_name="killed", load_if_exists=True
    )
    killed.ask()  # the trial is there, its values are not

    (found,) = Study(place, "killed", config, EPOCHS).running()

    assert whole
    assert found == whole


def test_telling_twice_changes_nothing() -> None:
    study = Study("memory", "s", search(), EPOCHS)
    study.ask()
    study.report(0, 1, 0.4)
    study.report(0, 1, 0.9)
    study.prune(0)
    before = study.trials()
    study.fail(0, "too late")
    study.complete(0)

    assert study.trials() == before
    assert (before[0].state, before[0].curve, before[0].reason) == ("PRUNED", ((1, 0.4),), None)


def test_points_are_queued_once_and_tried_first(tmp_path: Path) -> None:
    place, config = str(tmp_path / "study.journal"), search()
    points = [{"optim.lr": 0.02, "loss.se_weight": 0.1}, {"optim.lr": 0.05}]
    Study(place, "s", config, EPOCHS).queue(points[:1])
    again = Study(place, "s", config, EPOCHS)
    again.queue(points)
    again.queue(points)
    tried = run(again, 3)

    assert tried[0] == points[0]
    assert tried[1]["optim.lr"] == 0.05, "what a point leaves open is drawn"
    assert tried[2]["optim.lr"] not in (0.02, 0.05)


def test_a_grid_gives_every_point_once_and_ends(tmp_path: Path) -> None:
    place, config = str(tmp_path / "study.journal"), search(CHOICES, sampler="grid")
    found = run(Study(place, "s", config, EPOCHS), 2) + run(Study(place, "s", config, EPOCHS), 4)
    study = Study(place, "s", config, EPOCHS)

    assert len({json.dumps(values) for values in found}) == 6
    assert study.is_exhausted()
    assert study.ask() is None


def test_a_path_is_searched_only_where_its_condition_holds() -> None:
    values = run(Study("memory", "s", search(CONDITIONAL), EPOCHS), 12)

    assert {v["model.context"] for v in values} == {"none", "encoding"}
    for v in values:
        assert ("loss.se_weight" in v) == (v["model.context"] == "encoding")


def test_two_studies_in_one_storage_do_not_mix(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'shared.db'}"
    first, second = Study(place, "a", search(), EPOCHS), Study(place, "b", search(), EPOCHS)
    run(first, 2)
    run(second, 1)

    assert [len(study.trials()) for study in (first, second)] == [2, 1]


def test_what_was_learnt_elsewhere_is_known_to_the_sampler_but_not_counted(tmp_path: Path) -> None:
    place = str(tmp_path / "study.journal")
    known = [
        Trial(n, {"optim.lr": 0.01, "loss.se_weight": 0.1 * n}, "COMPLETE", 0.1 * n, ((1, 0.1 * n),), 1)
        for n in range(5)
    ]
    for _ in range(2):
        study = Study(place, "s", search(), EPOCHS)
        study.learn("earlier", known)

    assert study.trials() == ()
    assert study.curve(4) == {1: 0.4}, "the rungs compare with it"
    assert run(study, 1) != run(Study("memory", "s", search(), EPOCHS), 1), "and the sampler knows it"
    assert len(study._study.get_trials()) == 6


def test_what_would_be_asked_next_is_told_without_being_asked() -> None:
    study = Study("memory", "s", search(), EPOCHS)
    run(study, 4)
    told = study.would_ask(1)

    assert len(study.trials()) == 4
    assert told == tuple(run(study, 1))


def test_two_objectives_are_both_kept() -> None:
    study = Study("memory", "s", search(minimize="parameters", scheduler="none"), EPOCHS)
    study.ask()
    study.note(0, parameters=1000)
    study.report(0, 1, 0.5)
    study.complete(0)

    assert (study.trials()[0].value, study.trials()[0].minimized) == (0.5, 1000)
    assert study._study.best_trials[0].values == [0.5, 1000]


def test_a_refused_trial_tells_the_sampler_that_it_is_not_feasible() -> None:
    study = Study("memory", "s", search(), EPOCHS)
    study.ask()
    study.refuse(0, "too large", 0.5)
    study.refuse(0, "too large", 0.5)

    (record,) = study.trials()
    assert (record.refused, record.reason) == (True, "too large")
    assert study._study.get_trials()[0].system_attrs["constraints:limit"] == 0.5


def test_a_torn_journal_is_repaired(tmp_path: Path) -> None:
    """As a kill leaves it: half a line, and a lock that nobody holds."""
    path = tmp_path / "study.journal"
    run(Study(str(path), "s", search(), EPOCHS), 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    path.with_name("study.journal.lock").symlink_to(path)

    repair_journal(path)

    assert path.read_bytes() == whole
    study = Study(str(path), "s", search(), EPOCHS)
    run(study, 1)
    assert len(Study(str(path), "s", search(), EPOCHS).trials()) == 3


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere://host/db", "not a database"),
        ("sqlite:////nowhere/at/all/study.db", "cannot be used: .*unable to open database file"),
        ("mysql+pymysql://u:geheim@host/db", "host/db: its database driver is not installed"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_secrets(place: str, message: str) -> None:
    with pytest.raises(PreflightError, match=message) as raised:
        Study(place, "s", search(), EPOCHS)

    assert "geheim" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_text("hello\nyou\n")
    with pytest.raises(PreflightError, match="not a journal of Optuna"):
        Study(str(path), "s", search(), EPOCHS)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_search_of_two_objectives_that_a_budget_ended_can_go_on(sampler: str) -> None:
    """TPE of Optuna 5.0 raises for a pruned trial with a curve there."""
    study = Study("memory", "s", search(sampler=sampler, minimize="parameters", scheduler="none"), EPOCHS)
    for number in range(5):
        study.ask()
        study.note(number, parameters=10 * number)
        study.report(number, 1, 0.1 * number)
        if number % 2:
            study.prune(number, "the budget was spent")
        else:
            study.complete(number)

    assert len(study.would_ask(2)) == 2
    states = [(record.state, record.value) for record in study.trials()]
    assert states[:2] == [("COMPLETE", 0.0), ("PRUNED", 0.1)]
    assert study.trials()[1].reason == "the budget was spent"


def test_a_sampler_that_counts_tells_its_next_points_too() -> None:
    study = Study("memory", "s", search(sampler="qmc"), EPOCHS)
    run(study, 3)

    assert study.would_ask(2) == tuple(run(study, 2))


def test_a_grid_is_tried_whole_whatever_was_learnt() -> None:
    """Only the trials of its own can be confirmed."""
    study = Study("memory", "s", search(CHOICES, sampler="grid"), EPOCHS)
    point = {"model.num_codewords": 4, "loss.se_weight": 0.0}
    study.learn("earlier", [Trial(0, point, "COMPLETE", 0.1, ((1, 0.1),), 1)])

    assert point in run(study, 6)
    assert study.is_exhausted()


def test_another_process_reads_a_study_without_writing(tmp_path: Path) -> None:
    """As that of a sweep that runs, or whose kill left half a line."""
    path = tmp_path / "study.journal"
    run(Study(str(path), "s", search(), EPOCHS), 2)
    torn = path.read_bytes() + b'{"op_code": 4, "wor'
    path.write_bytes(torn)

    assert len(trials_at(str(path), "s", search())) == 2
    assert path.read_bytes() == torn
    with pytest.raises(PreflightError, match=r"study.journal has no study other"):
        trials_at(str(path), "other", search())


def test_a_trial_that_does_not_change_is_read_once() -> None:
    study = Study(MEMORY, "toy", search(scheduler="asha"), 9)
    numbers = [proposal.number for proposal in (study.ask(), study.ask(), study.ask()) if proposal]
    for number in numbers:
        study.report(number, 1, number / 10)
    study.pause(0)
    study.prune(1)
    before = study.trials()
    again = study.trials()
    assert [a is b for a, b in zip(before, again, strict=True)] == [True, True, False], "the third runs"
    study.note(0, paused=False)
    study.report(0, 2, 0.9)
    assert (study.trials()[0].state, study.trials()[0].value) == ("RUNNING", 0.9)
    study.pause(0)
    study.trials()
    study.prune(0)
    assert study.trials()[0].state == "PRUNED"
