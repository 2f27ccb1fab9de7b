"""One of the tries that `make chaos` makes many of: a killed training ends like an undisturbed one."""

import signal
from pathlib import Path

from tests.chaos.trainings import Ground, Kind, signalled


def test_a_training_whose_driver_is_killed_ends_as_without_the_kill(
    tmp_path: Path, empty_database: Path
) -> None:
    done = Ground(tmp_path, empty_database).run(
        Kind("driver, SIGKILL", signalled(signal.SIGKILL), "in process"), 0.5
    )

    assert done.is_struck
    assert done.faults == []
    assert done.codes == [-signal.SIGKILL, 0]
