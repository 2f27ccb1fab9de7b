"""A sweep whose processes are killed at the worst moments ends as if nothing had happened."""

from collections.abc import Callable

import pytest

from encsearch.spool import read_lines
from tests.chaos.evidence import Evidence, faults, read_evidence
from tests.chaos.sweeps import (
    Running,
    Strike,
    User,
    bring_to_end,
    kill_driver_when,
    kill_trial_when,
    sweep_folder,
)


def _has_said(text: str) -> Callable[[Running], bool]:
    return lambda running: text in running.said


def _is_past_its_first_checkpoint(number: int) -> Callable[[Running], bool]:
    """The trial has reported two epochs, so that the first is kept."""

    def is_past(running: Running) -> bool:
        folder = sweep_folder(running.log.parent)
        return folder is not None and len(read_lines(folder / "trials" / f"{number:04d}" / "reports.jsonl")) > 1

    return is_past


@pytest.mark.parametrize(
    ("name", "strikes", "kills"),
    [
        (
            "driver-in-a-trial-then-in-a-finalist",
            [
                kill_driver_when(_is_past_its_first_checkpoint(1)),
                kill_driver_when(_has_said("trial0-seed1 epoch 2")),
            ],
            2,
        ),
        ("trial", [kill_trial_when(_is_past_its_first_checkpoint(1))], 0),
    ],
)
def test_a_sweep_ends_as_without_the_kill(
    user: User, undisturbed: Evidence, name: str, strikes: list[Strike], kills: int
) -> None:
    attempts, folder = bring_to_end(user, name, strikes)

    assert [attempt.code for attempt in attempts] == [-9] * kills + [0]
    assert None not in [attempt.freed_s for attempt in attempts], "a process outlived its driver"
    assert faults(read_evidence(folder, user.tracking_uri), undisturbed) == []
