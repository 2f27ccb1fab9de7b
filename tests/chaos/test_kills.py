"""A sweep whose processes are killed at the worst moments ends as if nothing had happened."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from encsearch.files import read_lines
from encsearch.reports import REPORTS_FILE
from encsearch.search.ledger import trial_folder
from tests.chaos.evidence import Evidence, faults, read_evidence
from tests.chaos.sweeps import (
    POLL_S,
    Running,
    User,
    bring_to_end,
    in_turn,
    kill_driver_when,
    kill_trial_when,
    sweep_folder,
)
from tests.e2e.shell import clean_environment

pytestmark = pytest.mark.own_ray


def _has_said(text: str) -> Callable[[Running], bool]:
    return lambda running: text in running.said


def _is_past_its_first_checkpoint(number: int) -> Callable[[Running], bool]:
    """The trial has reported two epochs, so that the first is kept."""

    def is_past(running: Running) -> bool:
        folder = sweep_folder(running.log.parent)
        return bool(folder) and len(read_lines(trial_folder(folder, number) / REPORTS_FILE)) > 1

    return is_past


def test_a_sweep_whose_driver_and_trial_are_killed_ends_as_without_the_kills(
    user: User, user_of_a_cluster: User, undisturbed: Evidence
) -> None:
    """The driver in a trial, with it its own Ray; on a cluster then a trial, and the driver in a finalist."""
    strikes = [
        kill_driver_when(_is_past_its_first_checkpoint(1)),
        in_turn(
            kill_trial_when(_is_past_its_first_checkpoint(3)),
            kill_driver_when(_has_said("-seed1 epoch 2")),
        ),
    ]

    attempts, folder = bring_to_end(user, "killed", strikes, later=user_of_a_cluster)

    assert [attempt.code for attempt in attempts] == [-9, -9, 0]
    assert None not in [attempt.freed_s for attempt in attempts], "a process outlived its driver"
    assert "lost its process and starts again" in (folder.parent / "attempt1.log").read_text()
    assert faults(read_evidence(folder, user.tracking_uri), undisturbed) == []


def test_a_tracking_database_whose_set_up_was_killed_is_made_anew(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    connect = "import sys; from encsearch.tracking.mlflow import connect; connect(sys.argv[1])"
    command = [sys.executable, "-c", connect, f"sqlite:///{database}"]
    first = subprocess.Popen(command, env=clean_environment())
    while not any(file.stat().st_size for file in tmp_path.rglob(database.name)):
        assert first.poll() is None
        time.sleep(POLL_S)
    first.kill()
    first.wait()
    assert not database.exists()

    subprocess.run(command, env=clean_environment(), check=True)
    assert database.exists()
