"""Ray's job server, by its HTTP interface: no Ray is needed here, and none is started.

Every failure to reach or to enter it is a `PreflightError` of one line; a job that it does not know is a
`UserError`. https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import hashlib
import http.client
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from websockets.exceptions import ConnectionClosedOK, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from encsearch.errors import PreflightError, TrainingError, UserError, first_line, one_line
from encsearch.text import format_duration

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 60
DEFAULT_URL = "http://127.0.0.1:8265"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A job that is posted must not become a question elsewhere, nor its token go there."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


class ConnectionLostError(TrainingError):
    """The connection to the cluster was lost; its jobs may go on."""


class JobServer:
    """A job server that has answered; `url` is http(s)://HOST:PORT."""

    def __init__(self, address: str | None) -> None:
        """Connect to `address`; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then a Ray of this machine.

        It is http(s)://HOST:PORT, HOST:PORT of the job server, or with Ray installed what a driver takes.
        Fails within seconds.
        """
        token = read_token(os.environ, Path.home())
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        self.url = _find_server(given).rstrip("/")

    def upload(self, package: Path) -> str:
        """Send a zip unless the cluster has one of its content; return the URI by which jobs name it."""
        content = package.read_bytes()
        name = f"_ray_pkg_{hashlib.sha1(content).hexdigest()}.zip"
        try:
            self._ask("GET", f"/api/packages/gcs/{name}")
        except UserError:  # it is not there
            self._ask("PUT", f"/api/packages/gcs/{name}", content)
        return f"gcs://{name}"

    def submit(
        self,
        entrypoint: str,
        submission_id: str | None,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> str:
        """Start a job; return its id."""
        job = {"entrypoint": entrypoint, "runtime_env": dict(runtime_env), "metadata": dict(metadata)}
        if submission_id:
            job["submission_id"] = submission_id
        answer = self._read("POST", "/api/jobs/", job, job_id=submission_id)
        return str(answer["submission_id"])

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that were submitted, as the server describes them."""
        return [job for job in self._read("GET", "/api/jobs/") if job.get("submission_id")]

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._read("GET", f"/api/jobs/{_quote(job_id)}", job_id=job_id)
        return found

    def logs(self, job_id: str) -> str:
        return str(self._read("GET", f"/api/jobs/{_quote(job_id)}/logs", job_id=job_id)["logs"])

    def stop(self, job_id: str) -> bool:
        return bool(self._read("POST", f"/api/jobs/{_quote(job_id)}/stop", job_id=job_id)["stopped"])

    def tail(self, job_id: str) -> Iterator[str]:
        """Yield the job's output from its beginning, as it comes, until the job is over."""
        address = f"ws{self.url.removeprefix('http')}/api/jobs/{_quote(job_id)}/logs/tail"
        try:
            # Ray 2.60 passes a wish for compression on to a process behind it, whose answer it cannot read.
            with connect(
                address,
                additional_headers=self._headers,
                compression=None,
                proxy=_find_proxy(self.url),
                open_timeout=ANSWER_TIMEOUT_S,
                ping_interval=None,
                max_size=None,
            ) as stream:
                while True:
                    try:
                        yield str(stream.recv(timeout=ANSWER_TIMEOUT_S))
                    except TimeoutError:
                        self.job(job_id)  # where nothing is written, whether there is still somebody to ask
        except ConnectionClosedOK:
            return
        except InvalidStatus as error:
            raise _refusal(error.response.status_code, "", job_id) from None
        except (WebSocketException, OSError):
            raise _lost() from None

    def _read(self, method: str, path: str, value: Any = None, job_id: str | None = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        answer = self._ask(method, path, body, job_id, {"Content-Type": "application/json"} if body else {})
        try:
            return json.loads(answer)
        except ValueError:
            raise PreflightError(f"what answers at {self.url} is not Ray's job server") from None

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        job_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        request = urllib.request.Request(
            self.url + path, body, {**self._headers, **(headers or {})}, method=method
        )
        try:
            with OPENER.open(request, timeout=ANSWER_TIMEOUT_S) as reply:
                answer: bytes = reply.read()
        except urllib.error.HTTPError as error:
            if elsewhere := error.headers.get("Location"):
                raise PreflightError(
                    f"what answers at {self.url} is at {elsewhere}; give that server as --address"
                ) from None
            raise _refusal(error.code, error.read().decode(errors="replace"), job_id) from None
        except (OSError, http.client.HTTPException):
            raise _lost() from None
        return answer


def _quote(job_id: str) -> str:
    return quote(job_id, safe="")


def _find_proxy(url: str) -> str | None:
    """The proxy that urllib uses for the other requests."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def read_token(environ: Mapping[str, str], home: Path) -> str | None:
    """Where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    None without RAY_AUTH_MODE=token. Raises PreflightError where there is none; no message shows the token.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked_token(token, "RAY_AUTH_TOKEN")
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token:
        raise PreflightError(
            f"RAY_AUTH_MODE=token, but {path} holds no token; "
            "set RAY_AUTH_TOKEN_PATH to the cluster's token file"
        )
    return _checked_token(token, str(path))


def _checked_token(token: str, place: str) -> str:
    if re.fullmatch(r"[!-~]+", token):
        return token
    raise PreflightError(f"{place}: a token is one line of printable ASCII without spaces, which this is not")


def _find_server(address: str | None) -> str:
    """The http(s) address of the job server that `address` stands for."""
    if address and address.startswith(("http://", "https://")):
        if problem := _find_problem(address):
            raise _unreachable(address, problem)
        return address
    if address and address not in {"auto", "local"}:
        if _find_problem(f"http://{address}") is None:
            return f"http://{address}"
        _check_port(address)
    return _ask_ray(address)


def _check_port(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"address {address} is none of http://HOST:PORT, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, ValueError) as error:  # an impossible host name is a ValueError
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _ask_ray(address: str | None) -> str:
    """Ask a cluster for its job server by Ray's own protocol, which takes Ray."""
    try:
        from ray.dashboard.utils import get_address_for_submission_client
        from ray.exceptions import RayError
    except ModuleNotFoundError:
        if address is None:
            return _find_server(DEFAULT_URL)
        raise _unreachable(address, "only Ray's own client finds a job server by such an address") from None

    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    try:
        # Ray reads it before its argument (2.60).
        if address:
            os.environ["RAY_API_SERVER_ADDRESS"] = address
        url: str = get_address_for_submission_client(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if "InvalidAuthToken" in str(error):
            missing = os.environ.get("RAY_AUTH_MODE", "").lower() != "token"
            raise _refusal(401 if missing else 403, "", None) from None
        raise _unreachable(address, first_line(error)) from None
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
    return url


def _find_problem(url: str) -> str | None:
    """Say why there is no job server at `url`, or None; a server that asks for a token is one."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/version", timeout=CONNECT_TIMEOUT_S) as reply:
            return None if b"ray_version" in reply.read() else "what answers is not Ray"
    except urllib.error.HTTPError as error:
        return None if error.code in {401, 403} else f"what answers is not Ray (HTTP {error.code})"
    except TimeoutError:
        return f"no answer within {format_duration(CONNECT_TIMEOUT_S)}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return first_line(error)


def _refusal(status: int, message: str, job_id: str | None) -> Exception:
    """What the server's answer means: a token, an unknown id, a taken id, or its own words."""
    if status == 401:
        return PreflightError(
            "the cluster asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token file"
        )
    if status == 403:
        return PreflightError(
            "the cluster refused the token; RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is another cluster's"
        )
    if status == 404:
        return UserError(f"no job {job_id} on this cluster; `encsearch jobs list` names them")
    if "already exists" in message:
        return UserError(f"job id {job_id} is taken on this cluster; give another one, or none")
    return TrainingError(f"the job server refused: {one_line(message) if message else f'HTTP {status}'}")


def _unreachable(address: str | None, reason: str) -> PreflightError:
    where = address or "this machine"
    return PreflightError(
        f"no Ray cluster at {where}: {reason}; give --address http://HOST:8265 or RAY_ADDRESS"
    )


def _lost() -> ConnectionLostError:
    return ConnectionLostError(
        "lost the connection to the cluster; if it still runs, so does the job: `encsearch jobs list`"
    )
