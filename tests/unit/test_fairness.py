"""Which trials are not comparable with the others."""

from encsearch.search.trials import Trial, flag_trials

H200, A100 = "1 x NVIDIA H200, torch 2.15.0", "1 x NVIDIA A100, torch 2.15.0"


def trial(number: int, *hardware: str) -> Trial:
    return Trial(number, {}, "COMPLETE", 0.5, ((1, 0.5),), 1.0, hardware=hardware)


def test_trials_that_ran_alike_have_no_flag() -> None:
    assert flag_trials([]) == {}
    assert flag_trials([trial(0, H200), trial(1, H200)]) == {}


def test_the_hardware_of_the_fewer_is_flagged_whichever_came_first() -> None:
    found = flag_trials([trial(0, A100), trial(1, H200), trial(2, H200)])
    assert found == {0: f"ran on {A100}, most trials on {H200}"}


def test_of_as_many_on_either_the_first_is_the_usual_one() -> None:
    assert list(flag_trials([trial(0, A100), trial(1, H200), trial(2, A100), trial(3, H200)])) == [1, 3]


def test_another_number_of_workers_is_another_hardware() -> None:
    two = H200.replace("1 x", "2 x")
    assert list(flag_trials([trial(0, H200), trial(1, H200), trial(2, two)])) == [2]


def test_a_change_midway_is_flagged_and_has_no_vote() -> None:
    found = flag_trials(
        [trial(0, H200), trial(1, A100, H200), trial(2, A100, H200), trial(3, A100, H200, A100)]
    )
    assert list(found) == [1, 2, 3]
    assert found[1] == f"changed midway: {A100}, then {H200}"


def test_when_every_trial_changed_every_one_is_flagged() -> None:
    assert list(flag_trials([trial(0, A100, H200), trial(1, A100, H200)])) == [0, 1]


def test_a_trial_that_never_reported_is_not_flagged() -> None:
    assert flag_trials([trial(0), trial(1, H200)]) == {}
