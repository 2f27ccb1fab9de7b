"""The process with torch beside a sweep's driver: its errors are the driver's, its torch is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from encsearch.config import Config, with_values
from encsearch.errors import PreflightError, TrainingError
from encsearch.runner.torch_process import torch_process
from encsearch.workflow.sweep.networks import check_recipe


def test_what_a_sweep_imports_has_no_torch() -> None:
    """Neither has what it needs first later, but for Optuna's Gaussian process, which computes by torch."""
    probe = """
import sys
import encsearch.cli.progress
import encsearch.cli.sweeping
import encsearch.report.facts
import encsearch.workflow.sweep.run
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_it_answers_or_raises_what_was_raised(toy_config: Config, tmp_path: Path) -> None:
    refused = with_values(toy_config, {"metric": "speed"})
    with torch_process() as process:
        first = process.call(os.getpid)
        with pytest.raises(PreflightError, match="metric=speed is not measured on toy"):
            process.call(check_recipe, refused, tmp_path, measure=False, trials_at_once=None)
        checked = process.call(check_recipe, toy_config, tmp_path, measure=False, trials_at_once=None)
        with pytest.raises(ZeroDivisionError) as raised:
            process.call(divmod, 1, 0)
        assert process.call(os.getpid) == first != os.getpid()

    assert checked.preflight.num_train == 24
    assert "result = function(*args, **kwargs)" in raised.value.__notes__[0]
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_lost_process_is_one_line_and_the_next_call_has_another() -> None:
    with torch_process() as process:
        with pytest.raises(TrainingError, match=r"was lost in kill \(exit code -9"):
            process.call(os.kill, process.call(os.getpid), signal.SIGKILL)

        os.kill(process.call(os.getpid), signal.SIGKILL)
        assert process._process
        process._process.wait()
        assert process.call(abs, -1) == 1, "one that died between two calls is not missed"


def test_it_starts_where_the_working_directory_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with torch_process() as process:
        assert process.call(abs, -1) == 1


def test_it_ends_with_a_driver_that_is_killed() -> None:
    driver = """
import os, signal
from encsearch.runner.torch_process import TorchProcess
process = TorchProcess()
process.call(os.getpid)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # It holds the driver's stdout too, so that `run` waits for its end.
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, timeout=60, check=False)

    assert done.returncode == -signal.SIGKILL
    assert done.stderr == b""
