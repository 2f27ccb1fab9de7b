"""The MLflow server that `encsearch ui` runs over a local store, and that ends with its process."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from encsearch.errors import PreflightError
from encsearch.text import format_duration
from encsearch.tracking.browse.links import LOOPBACK, allowed_hosts, server_command, ui_base

START_S = 180.0  # on a loaded machine MLflow takes half a minute to import
STOP_S = 10.0
POLL_S = 0.2
WILDCARDS = ("0.0.0.0", "::")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 17px/1.7 system-ui, sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1rem; }}
  a {{ color: #0072b2; }} .note {{ color: #5b6577; font-size: 14px; }}
</style>
<h1>{title}</h1>
<ul>
{items}
</ul>
<p class="note">Pages of MLflow, while <code>encsearch ui</code> runs. Its assistant opens at the first visit;
once closed it stays so.</p>
</html>
"""


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
    names = _own_names(host)
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


@contextmanager
def run_index(title: str, pages: Mapping[str, str], host: str, port: int) -> Iterator[str]:
    """Serve one page of named links inside the block, at `port` or else at a free one; yields its address.

    Like MLflow's server it refuses Host headers of others.
    """
    names = _own_names(host)
    hosts = allowed_hosts(host, names)
    items = "\n".join(f'<li><a href="{escape(link)}">{escape(name)}</a>' for name, link in pages.items())
    document = INDEX.format(title=escape(title), items=items).encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that the base class asks for
            if not any(fnmatch(self.headers.get("Host", ""), pattern) for pattern in hosts):
                self.send_error(403)
                return
            if self.path != "/":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            """Say nothing of requests."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    try:
        server = Server((host, port), Page)
    except (OSError, OverflowError):  # taken, or beyond the last port
        server = Server((host, 0), Page)
    thread = threading.Thread(target=server.serve_forever, name="index", daemon=True)
    thread.start()
    try:
        yield ui_base("", server.server_port, names[0] if names else host) + "/"
    finally:
        server.shutdown()
        server.server_close()


def _own_names(host: str) -> list[str]:
    """The names by which others reach this machine, where it listens to all."""
    return [socket.gethostname(), socket.getfqdn()] if host in WILDCARDS else []


def require_port(host: str, port: int) -> None:
    """Raises PreflightError if the port is taken, or the host is no address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Otherwise a connection that was closed a minute ago would make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PreflightError(
                f"MLflow cannot listen at {host}, port {port}: {error.strerror}; try another --port"
                + ("" if host == LOOPBACK else f", or --host {LOOPBACK}")
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
