"""The command line as people use it, in a folder of theirs: called here, and as real processes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from encsearch.cli.main import main

BIN = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 600
# What says where to record, and as whom; MLflow's others are what the package sets when it is imported.
OF_A_USER = ("MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_EXPERIMENT_", "ENCSEARCH_")
# Of MLflow's and Ray's variables these alone are set; the last so that Ray's workers do not starve.
ALWAYS = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@dataclass(frozen=True)
class Shell:
    """A folder to work in, and variables on top of an environment without Ray's and MLflow's."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program of the virtual environment as the leader of a process group, as a shell does."""
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env={**clean_environment(), **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def encsearch(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must be the exit code `code`, by a call in this process.

        The imports of a process of its own cost more than most commands. On the Ray that this process is
        connected to; what the command and its own processes print is caught as from the console script.
        """
        with self._in_place(), _caught(1) as out, _caught(2) as err:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main(arguments)
            return _done(arguments, ended.value.code, _read(out), _read(err), code)

    def run(
        self, *arguments: str, code: int = 0, program: Sequence[str] = ("encsearch",)
    ) -> subprocess.CompletedProcess[str]:
        """As `encsearch`, by the console script, or another program, in a process of its own."""
        process = self.start(*program, *arguments)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return _done(arguments, process.returncode, out, err, code)

    def refusal(self, *arguments: str, code: int) -> str:
        """The one line that is all a command prints when it refuses with the exit code `code`."""
        return one_line(self.encsearch(*arguments, code=code))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """This process in the folder and with the variables; of Ray's it keeps those of its connection."""
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(OF_A_USER)]:
                patch.delenv(name)
            for name, value in {**ALWAYS, **self.variables}.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, on_sigterm)


def one_line(refused: subprocess.CompletedProcess[str]) -> str:
    """All that a command printed that refused: a line on stderr."""
    assert refused.stdout == ""
    return refusal_in(refused.stderr)


def refusal_in(err: str) -> str:
    """The one line of a refusal; before it, a slow machine says its phases ("[0:10] ...")."""
    (line,) = (line for line in err.splitlines() if not line.startswith("["))
    return line


def clean_environment() -> dict[str, str]:
    """This process's, but with no cluster, no tracking server and no token in it."""
    dropped = ("RAY_", "MLFLOW_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # A job's `python` is the first on the PATH.
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, **ALWAYS}


def read_until(process: subprocess.Popen[str], stream: str, found: Callable[[str], bool]) -> str:
    """Read lines of a running process's "stdout" or "stderr" up to the one that is waited for."""
    lines = []
    for line in getattr(process, stream):
        lines.append(line)
        if found(line):
            return "".join(lines)
    raise AssertionError(f"ended with {process.wait()} before the line came:\n{''.join(lines)}")


def _done(
    arguments: Sequence[str], code: object, out: str, err: str, expected: int
) -> subprocess.CompletedProcess[str]:
    assert code == expected, f"encsearch {' '.join(arguments)}: {code}\n{out}{err}"
    return subprocess.CompletedProcess(arguments, expected, out, err)


@contextmanager
def _caught(descriptor: int) -> Iterator[IO[str]]:
    """A file that gets what this process, and those that it starts, write to the descriptor."""
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile("w+", buffering=1) as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
