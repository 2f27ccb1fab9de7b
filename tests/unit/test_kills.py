"""A study whose journal ends after any of its lines goes on as the one that was not cut off there."""

from pathlib import Path

import pytest

from encsearch.config import SearchConfig
from encsearch.errors import PreflightError
from encsearch.search.study.proposals import Prior
from encsearch.search.study.storage import repair_journal
from encsearch.search.study.study import Proposal, Study

EPOCHS = 4
RANGES = {"loss.se_weight": {"uniform": [0.0, 1.0]}, "optim.lr": {"loguniform": [1e-4, 1e-1]}}
CHOICE = {"model.num_codewords": {"choice": [4, 8, 16]}}
CONDITIONAL = {"optim.momentum": {"uniform": [0.5, 0.9], "when": {"model.num_codewords": [4, 16]}}}
# All that the sampler takes.
SPACES = {
    "random": RANGES | CHOICE | CONDITIONAL,
    "tpe": RANGES | CHOICE | CONDITIONAL,
    "cmaes": RANGES,
    "qmc": RANGES | CHOICE,
}
TRIALS = 5


def searched(sampler: str) -> SearchConfig:
    rungs = {"grace_epochs": 1, "reduction_factor": 2}
    return SearchConfig.model_validate(
        {"space": SPACES[sampler], "sampler": sampler, "startup_trials": 2, "asha": rungs}
    )


def run_to_end(journal: Path, search: SearchConfig) -> list[tuple[Proposal, str]]:
    """As a driver does: go on with what is open, then promote or ask; all trials and their states."""
    repair_journal(journal)
    study = Study(str(journal), "toy", search, EPOCHS)
    study.believe(Prior(({"loss.se_weight": 0.2},)))
    study.queue([{"loss.se_weight": 0.2, "optim.lr": 0.01}])
    open_trials = {proposal.number: proposal for proposal in (*study.running(), *study.paused())}
    for proposal in study.running():
        train(study, proposal)
    while True:
        is_ending = len(study.trials()) == TRIALS
        number = study.promote(keep_one=is_ending)
        if number is not None:
            train(study, open_trials[number])
        elif is_ending:
            break
        else:
            asked = study.ask()
            assert asked
            open_trials[asked.number] = asked
            train(study, asked)
    for number in open_trials:
        study.prune(number)
    return [(Proposal(record.number, record.values), record.state) for record in study.trials()]


def train(study: Study, proposal: Proposal) -> None:
    """From where it stands to where it pauses; the trial's curve depends on its values alone."""
    number = proposal.number
    for epoch in range(max(study.curve(number), default=0) + 1, EPOCHS + 1):
        study.report(number, epoch, epoch * (1 - abs(proposal.values["loss.se_weight"] - 0.3)))
        if study.judge(number) == "pause":
            study.pause(number)
            return
    study.complete(number)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_a_study_that_was_cut_off_after_any_line_goes_on_as_it_would_have(
    sampler: str, tmp_path: Path
) -> None:
    search = searched(sampler)
    whole = tmp_path / "whole.journal"
    expected = run_to_end(whole, search)
    assert {state for _, state in expected} == {"COMPLETE", "PRUNED"}
    lines = whole.read_bytes().splitlines(keepends=True)

    for count in range(len(lines)):
        cut = tmp_path / f"cut{count}.journal"
        cut.write_bytes(b"".join(lines[:count]) + lines[count][: len(lines[count]) // 2])
        assert run_to_end(cut, search) == expected, f"cut off in line {count + 1}"


def test_a_sequence_is_not_counted_on_by_a_trial_that_only_goes_on(tmp_path: Path) -> None:
    search = searched("qmc")
    whole, killed = str(tmp_path / "whole.journal"), str(tmp_path / "killed.journal")
    expected = [Study(whole, "toy", search, EPOCHS).ask() for _ in range(4)]

    given = []
    for _ in range(4):
        study = Study(killed, "toy", search, EPOCHS)
        study.running()
        given.append(study.ask())

    assert given == expected


def test_a_damaged_line_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    run_to_end(journal, searched("random"))
    lines = journal.read_bytes().splitlines(keepends=True)

    for place in (3, len(lines)):
        damaged = b"".join([*lines[:place], b"#\n", *lines[place:]])
        journal.write_bytes(damaged)
        with pytest.raises(
            PreflightError, match=rf"study\.journal: line {place + 1} is damaged; .* cut it off before"
        ):
            repair_journal(journal)
        assert journal.read_bytes() == damaged
