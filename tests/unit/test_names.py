"""A job that is begun under a name, and started again under it."""

from pathlib import Path

import pytest

from encsearch.config import CONFIG_FILE, Config, to_yaml, with_values
from encsearch.errors import UserError
from encsearch.reports import BEGUN_FILE, STUDY_FILE
from encsearch.workflow.job import new_folder
from encsearch.workflow.resume import find_changes

SEARCH = {"space": {"optim.lr": {"loguniform": [0.001, 0.1]}}, "budget": {"trials": 8}}


def begun(folder: Path, config: Config, mark: str) -> Path:
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(to_yaml(config))
    (folder / mark).write_text("{}")
    return folder


def test_a_sweep_goes_on_with_what_has_changed_and_keeps_its_extension(
    toy_config: Config, tmp_path: Path
) -> None:
    config = with_values(toy_config, {"search": SEARCH})
    begun(tmp_path / "a", with_values(config, {"search.budget.trials": 20}), STUDY_FILE)
    changed = with_values(config, {"search.confirm.seeds": [5, 6], "scaling.num_workers": 2})

    changes = find_changes(tmp_path, "a", "sweep", changed)

    assert changes == ["scaling.num_workers=2", "search.confirm.seeds=[5, 6]"]


def test_a_training_goes_on_without_a_word_of_the_search(toy_config: Config, tmp_path: Path) -> None:
    begun(tmp_path / "a", toy_config, BEGUN_FILE)
    assert find_changes(tmp_path, "a", "training", with_values(toy_config, {"search": SEARCH})) == []


def test_a_name_without_a_job_has_nothing_to_go_on_with(toy_config: Config, tmp_path: Path) -> None:
    assert find_changes(tmp_path, "a", "training", toy_config) is None


def test_a_job_of_another_kind_is_refused(toy_config: Config, tmp_path: Path) -> None:
    begun(tmp_path / "a", toy_config, BEGUN_FILE)
    with pytest.raises(UserError, match="holds a training, no sweep; give another --name"):
        find_changes(tmp_path, "a", "sweep", toy_config)


def test_a_job_that_has_begun_takes_no_option_of_a_new_one(toy_config: Config, tmp_path: Path) -> None:
    begun(tmp_path / "a", toy_config, STUDY_FILE)
    with pytest.raises(UserError, match="a: has begun; leave out --dry-run, or give another --name"):
        find_changes(tmp_path, "a", "sweep", toy_config, only_new=["--dry-run"])


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "-a"])
def test_a_name_is_a_plain_one(toy_config: Config, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--name: .* is not of letters, digits"):
        find_changes(tmp_path, name, "training", toy_config)


def test_a_folder_of_a_name_may_be_left_of_a_job_that_did_not_begin(tmp_path: Path) -> None:
    left = tmp_path / "a"
    left.mkdir()
    (left / CONFIG_FILE).touch()
    assert new_folder(tmp_path, "recipe", "a") == left
    (left / "other").touch()
    with pytest.raises(UserError, match="a: holds something else than a job"):
        new_folder(tmp_path, "recipe", "a")
