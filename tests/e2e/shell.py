"""The command line as people use it: the console script in a folder of theirs, and real processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 240


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
        """Run a command to its end, which must be the exit code `code`."""
        process = self.start("encsearch", *arguments)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert process.returncode == code, (
            f"encsearch {' '.join(arguments)}: {process.returncode}\n{out}{err}"
        )
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def refusal(self, *arguments: str, code: int) -> str:
        """The one line that is all a command prints when it refuses with the exit code `code`."""
        done = self.encsearch(*arguments, code=code)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line


def clean_environment() -> dict[str, str]:
    """This process's, but with no cluster, no tracking server and no token in it."""
    dropped = ("RAY_", "MLFLOW_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    # A job's `python` is the first on the PATH.
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}


def read_until(process: subprocess.Popen[str], stream: str, found: Callable[[str], bool]) -> str:
    """Read lines of a running process's "stdout" or "stderr" up to the one that is waited for."""
    lines = []
    for line in getattr(process, stream):
        lines.append(line)
        if found(line):
            return "".join(lines)
    raise AssertionError(f"ended with {process.wait()} before the line came:\n{''.join(lines)}")
