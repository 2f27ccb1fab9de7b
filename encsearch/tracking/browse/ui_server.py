"""The MLflow server that `encsearch ui` runs over a local store, and that ends with its process."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from encsearch.errors import PreflightError
from encsearch.text import format_duration
from encsearch.tracking.browse.links import LOOPBACK, server_command, ui_base

START_S = 180.0  # on a loaded machine MLflow takes half a minute to import
STOP_S = 10.0
POLL_S = 0.2
WILDCARDS = ("0.0.0.0", "::")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class UiServer:
    """A server at `base`; `log` is what it prints."""

    base: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_up(self) -> None:
        """Raises PreflightError when the server ends, or does not answer in time."""
        deadline_s = time.monotonic() + START_S
        while not _is_up(self.base):
            if self.process.poll() is not None:
                raise PreflightError(f"the MLflow server ended at its start: {self._last_line()}")
            if time.monotonic() > deadline_s:
                raise PreflightError(
                    f"MLflow at {self.base} does not answer after {format_duration(START_S)}"
                )
            time.sleep(POLL_S)

    def wait_until_over(self) -> None:
        """Wait for a signal to this process. Raises PreflightError if the server ends before."""
        code = self.process.wait()
        raise PreflightError(f"the MLflow server ended with code {code}: {self._last_line()}")

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


@contextmanager
def run_server(uri: str, host: str, port: int) -> Iterator[UiServer]:
    """Run a server of the store inside the block; on Linux it also ends when this process is killed.

    Raises PreflightError if the port cannot be listened on.
    """
    require_port(host, port)
    names = [socket.gethostname(), socket.getfqdn()] if host in WILDCARDS else []
    command = server_command(uri, port, host, names)
    with tempfile.NamedTemporaryFile(prefix="encsearch-ui-", suffix=".log") as log:
        process = subprocess.Popen(
            command.arguments,
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The server must not get the terminal's Ctrl-C: this process ends it.
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        try:
            yield UiServer(ui_base(uri, port, names[0] if names else host), process, Path(log.name))
        finally:
            _stop(process)


def require_port(host: str, port: int) -> None:
    """Raises PreflightError if the port is taken, or the host is no address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Otherwise a connection that was closed a minute ago would make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PreflightError(
                f"MLflow cannot listen at {host}, port {port}: {error.strerror}; try another --port, or "
                f"--host {LOOPBACK}"
            ) from None


def _end_with_parent() -> Callable[[], None] | None:
    """Make the kernel end the server when we are killed (Linux only). MLflow then ends its worker."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: nothing may be imported after it
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's whole group: MLflow's command and the worker that it started."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return


def _is_up(base: str) -> bool:
    # No proxy: the machine's proxy does not reach its loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base}/health", timeout=STOP_S) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
