"""The MLflow server that `encsearch ui` runs over a store: one a store, and gone with its process."""

import ctypes
import hashlib
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
from typing import IO

from encsearch.errors import PreflightError
from encsearch.files import hold_lock, user_cache
from encsearch.tracking.browse.links import LOOPBACK, is_loopback, server_command, ui_base

START_S = 180.0  # on a loaded machine MLflow takes half a minute to import
STOP_S = 10.0
POLL_S = 0.2
PORTS_TRIED = 50
WILDCARDS = ("0.0.0.0", "::")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class UiServer:
    """A server at `base`; `process` is None if another `encsearch ui` runs it, `log` is what ours prints."""

    base: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def wait_until_up(self) -> None:
        """Raises PreflightError when the server ends, or does not answer in time."""
        deadline_s = time.monotonic() + START_S
        while not _answers(self.base):
            if self.process and self.process.poll() is not None:
                raise PreflightError(f"the MLflow server ended at its start: {_last_line(self.log)}")
            if time.monotonic() > deadline_s:
                raise PreflightError(f"MLflow at {self.base} does not answer after {START_S:.0f} s")
            time.sleep(POLL_S)

    def wait_until_over(self) -> None:
        """As long as the server runs, which nobody asks to end but a signal to us. Raises PreflightError."""
        if self.process:
            code = self.process.wait()
            raise PreflightError(f"the MLflow server ended with code {code}: {_last_line(self.log)}")


@contextmanager
def serving(uri: str, host: str, port: int) -> Iterator[UiServer]:
    """A server of the store: the one that runs, or a new one at `port` or the next free one.

    A new one ends with the block, and with this process also if that is killed.
    """
    claim = _claim_file(uri)
    with hold_lock(claim) as is_held:
        if not is_held:
            yield UiServer(_read_claim(claim))
            return
        claim.write_text("", encoding="utf-8")  # no longer the address of one that was killed
        port = free_port(host, port)
        base = ui_base(uri, port, _name_of(host))
        claim.write_text(base, encoding="utf-8")
        with tempfile.NamedTemporaryFile(prefix="encsearch-ui-", suffix=".log") as log:
            process = _start(uri, host, port, log)
            try:
                yield UiServer(base, process, Path(log.name))
            finally:
                _stop(process)


def free_port(host: str, first: int) -> int:
    """`first`, or the next port of `host` that nobody listens on. Raises PreflightError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        with socket.socket(family) as probe:
            # Otherwise a connection that was closed a minute ago would count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except PermissionError:
                raise PreflightError(f"--port {port}: not allowed to listen there; try 5000") from None
            except socket.gaierror:
                raise PreflightError(f"--host {host}: no address of this machine; try {LOOPBACK}") from None
            except OSError:
                continue
        return port
    raise PreflightError(
        f"no free port at {host} from {first} on ({PORTS_TRIED} tried); is {host} an address of this machine?"
    )


def _start(uri: str, host: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    names = [socket.gethostname(), socket.getfqdn()] if host in WILDCARDS else []
    command = server_command(uri, port, host, names)
    return subprocess.Popen(
        command.arguments,
        env={**os.environ, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # A Ctrl-C in the terminal is ours to pass on.
        start_new_session=True,
        preexec_fn=_end_with_parent(),
    )


def _end_with_parent() -> Callable[[], None] | None:
    """Has the kernel end the server when we are killed; only Linux does that. MLflow then ends its worker."""
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


def _claim_file(uri: str) -> Path:
    """One file a store, in the user's cache; its name tells nothing of the URI, which may hold a password."""
    cache = user_cache() / "ui"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(
            f"{cache}: {error.strerror}; set XDG_CACHE_HOME to a folder you can write"
        ) from None
    return cache / hashlib.sha256(uri.encode()).hexdigest()[:16]


def _read_claim(claim: Path) -> str:
    """The address that the claim's owner writes right after it has taken it."""
    deadline_s = time.monotonic() + STOP_S
    while time.monotonic() < deadline_s:
        if base := claim.read_text(encoding="utf-8"):
            return base
        time.sleep(POLL_S)
    raise PreflightError("another `encsearch ui` of this store is starting but names no address; try again")


def _name_of(host: str) -> str:
    return socket.gethostname() if host in WILDCARDS and not is_loopback(host) else host


def _answers(base: str) -> bool:
    # The machine's proxy does not reach its loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base}/health", timeout=STOP_S) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _last_line(log: Path | None) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
