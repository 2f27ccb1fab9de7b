"""A sweep's folder as knowledge of another, and as what is left when its study is gone."""

from pathlib import Path

import pytest

from encsearch.config import Config, require_search, with_values
from encsearch.errors import PreflightError, UserError
from encsearch.search.study.proposals import Prior
from encsearch.workflow.sweep.earlier import earlier_prior, learn_from, previous_trials, set_prior
from encsearch.workflow.sweep.folder import STORAGE_VARIABLE, Earlier, begin, open_study, reopen

SPACE = {
    "model.context": {"choice": ["none", "encoding"]},
    "loss.se_weight": {"uniform": [0.0, 1.0], "when": {"model.context": ["encoding"]}},
}


@pytest.fixture
def config(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    return with_values(toy_config, {"search": {"space": SPACE, "sampler": "random"}})


def searched(config: Config, out: Path, trials: int) -> Path:
    """The folder of a sweep that has trained so many trials."""
    folder = begin(config, out, "f", Earlier())
    study = open_study(config, folder, reopen(folder)[1])
    for number in range(trials):
        study.ask()
        study.report(number, 1, 0.1)
        study.complete(number)
    return folder


def test_trials_without_a_path_whose_condition_fails_are_known_too(config: Config, tmp_path: Path) -> None:
    found = previous_trials(searched(config, tmp_path, 8), config, "f")

    assert len(found) == 8
    assert {len(record.values) for record in found} == {1, 2}


def test_a_sweep_that_is_resumed_needs_the_one_that_it_learnt_from_no_more(
    config: Config, tmp_path: Path
) -> None:
    source = searched(config, tmp_path, 3)
    folder = begin(config, tmp_path, "f", Earlier(warm_start=source))
    place = reopen(folder)[1]
    learn_from(source, open_study(config, folder, place), config, "f")

    told = learn_from(tmp_path / "gone", open_study(config, folder, place), config, "f")

    assert told == "the sampler knows 3 trials of gone"


def test_a_sweep_of_another_second_objective_is_refused(config: Config, tmp_path: Path) -> None:
    source = searched(config, tmp_path, 1)
    other = with_values(config, {"search.minimize": "parameters", "search.scheduler": "none"})

    with pytest.raises(UserError, match=r"search.minimize is None there and parameters here"):
        previous_trials(source, other, "f")


def test_a_study_that_is_gone_from_its_database_is_not_begun_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{tmp_path / 'study.db'}")
    folder = searched(config, tmp_path, 1)
    (folder / "trials").mkdir()
    open_study(config, folder, reopen(folder)[1])
    (tmp_path / "study.db").unlink()

    with pytest.raises(PreflightError, match="is missing, but its trials have started"):
        open_study(config, folder, reopen(folder)[1])


def test_a_folder_whose_recipe_lost_its_search_is_refused(config: Config, tmp_path: Path) -> None:
    folder = begin(config.model_copy(update={"search": None}), tmp_path, "f", Earlier())

    with pytest.raises(UserError, match="its search: block is missing"):
        reopen(folder)


def test_the_best_quarter_of_a_sweep_of_other_data_is_a_prior(config: Config, tmp_path: Path) -> None:
    folder = begin(config, tmp_path, "other data", Earlier())
    study = open_study(config, folder, reopen(folder)[1])
    for number in range(8):
        proposal = study.ask()
        assert proposal
        study.report(number, 1, {2: 0.9, 5: 0.8}.get(number, 0.1))
        study.complete(number)
    best = tuple(dict(study.trials()[number].values) for number in (2, 5))

    assert earlier_prior(folder, require_search(config)) == Prior(best)
    fewer = with_values(config, {"search.space": {"loss.se_weight": {"uniform": [0.0, 1.0]}}})
    centers = earlier_prior(folder, require_search(fewer)).centers
    assert centers == tuple({"loss.se_weight": c["loss.se_weight"]} for c in best if "loss.se_weight" in c)
    none = with_values(config, {"search.space": {"optim.lr": {"uniform": [0.1, 0.2]}}})
    with pytest.raises(UserError, match="none of its 8 trials says where to search here"):
        earlier_prior(folder, require_search(none))


def test_where_the_prior_lies_is_said_and_a_resume_keeps_it(config: Config, tmp_path: Path) -> None:
    space = {**SPACE, "model.num_codewords": {"choice": [8, 16]}}  # the recipe's 4 is not spanned
    config = with_values(config, {"search.space": space})
    folder = begin(config, tmp_path, "f", Earlier())
    study = open_study(config, folder, reopen(folder)[1])

    told = set_prior(study, config, None)

    assert told == (
        "prior: up to 50 % of the proposals lie around the recipe's values; not for model.num_codewords, "
        "whose value the space does not span"
    )
    changed = with_values(config, {"loss.se_weight": 0.9})
    again = open_study(config, folder, reopen(folder)[1])
    set_prior(again, changed, None)
    assert again.prior == study.prior
    off = with_values(config, {"search.prior": {"share": 0}})
    assert set_prior(open_study(off, folder, reopen(folder)[1]), off, None) is None
