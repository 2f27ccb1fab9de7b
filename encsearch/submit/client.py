"""Run a command on a Ray cluster through its job server: submit, follow, list, logs, stop.

A command's exit status reaches the caller unchanged, and a stopped job is not a success (`ray job submit`
exits 0 for it). Every failure to reach or to enter the cluster is a `PreflightError` of one line.
"""

import asyncio
import contextlib
import http.client
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encsearch.errors import PreflightError, TrainingError, UserError, first_line, for_terminal, one_line
from encsearch.submit.package import check_package, check_script, pack, package_files
from encsearch.text import format_duration
from encsearch.tracking.uris import SQLITE, check_kind

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_TIMEOUT_S = 5
RECONNECTS = 5
RECONNECT_WAIT_S = 2
STATUS_POLL_S = 0.5

# The variables from which a job learns about MLflow and whom to tell. The cluster has its own Ray token.
FORWARDED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_EXPERIMENT_NAME",
    "ENCSEARCH_NOTIFY_URL",
)


@dataclass(frozen=True)
class ClusterJob:
    """One job of a cluster; `id` is the submission id, times are Unix seconds."""

    id: str
    status: str
    entrypoint: str
    started: float | None
    ended: float | None
    message: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.status in {"SUCCEEDED", "FAILED", "STOPPED"}


class ConnectionLostError(TrainingError):
    """The connection to the cluster was lost; its jobs may go on."""


def submit(
    entrypoint: Sequence[str],
    *,
    address: str | None = None,
    working_dir: Path = Path(),
    env: Mapping[str, str] | None = None,
    submission_id: str | None = None,
) -> str:
    """Start `entrypoint` (as argv) on the cluster in a copy of `working_dir` and return the job's id.

    `address` is http(s)://HOST:PORT of the dashboard, HOST:PORT of the cluster or ray://; None takes
    RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then a Ray of this machine. The job gets `env` on top of the
    MLflow variables of this process (`FORWARDED`).

    Raises UserError for a package that is too large, a script that is not in it, a tracking URI that
    loses its records, or an id that is taken; PreflightError if the cluster cannot be reached or entered.
    """
    files = package_files(working_dir)
    check_package(files, working_dir)
    check_script(entrypoint, files)
    env_vars = job_environment(os.environ, env or {})
    client = _connect(address)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(files, working_dir, Path(folder) / "working_dir.zip")
        with _one_line_errors(submission_id):
            job_id: str = client.submit_job(
                entrypoint=shlex.join(entrypoint),
                submission_id=submission_id,
                runtime_env={"working_dir": str(package), "env_vars": env_vars},
            )
    return job_id


def follow(job_id: str, *, address: str | None = None) -> int:
    """Write the job's output to stdout until it is over; return its exit status (see `exit_status`).

    A stream that breaks is continued where it ended. Raises ConnectionLostError if the cluster stays away.
    """
    client = _connect(address)
    written = 0
    tail = ""
    for attempt in range(RECONNECTS + 1):
        try:
            for text in _in_lines(_stream(client, job_id, skip=written)):
                sys.stdout.write(_show_output(text))
                sys.stdout.flush()
                written += len(text)
                tail = (tail + text)[-4000:]
            job = _wait_until_over(client, job_id)
            break
        except ConnectionLostError:
            if attempt == RECONNECTS:
                raise
            time.sleep(RECONNECT_WAIT_S)
    if job.status == "FAILED":
        print(for_terminal(version_hint(tail) or f"{job_id} failed: {job.message}"), file=sys.stderr)
    return exit_status(job)


def list_jobs(*, address: str | None = None) -> list[ClusterJob]:
    """List the submitted jobs of the cluster, the newest first."""
    client = _connect(address)
    with _one_line_errors():
        details = client.list_jobs()
    jobs = [_job(item) for item in details if item.submission_id]
    return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)


def status(job_id: str, *, address: str | None = None) -> ClusterJob:
    """Return the job as it is now; raises UserError if the cluster does not know it."""
    return _info(_connect(address), job_id)


def logs(job_id: str, *, address: str | None = None) -> str:
    """Return all that the job has written so far, as a terminal may have it.

    Raises UserError if the cluster does not know the job.
    """
    client = _connect(address)
    with _one_line_errors(job_id):
        text: str = client.get_job_logs(job_id)
    return _show_output(text)


def stop(job_id: str, *, address: str | None = None) -> bool:
    """Ask the job to end; return False if it was over. Raises UserError if the cluster does not know it."""
    client = _connect(address)
    with _one_line_errors(job_id):
        stopped: bool = client.stop_job(job_id)
    return stopped


def exit_status(job: ClusterJob) -> int:
    """Return 0 for SUCCEEDED, 130 for STOPPED, for FAILED the command's exit status as a shell gives it."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 130
    code = job.exit_code or 1
    return code if code > 0 else 128 - code


def version_hint(output: str) -> str | None:
    """Return one line if a job's output shows another Python or Ray than the cluster's, else None."""
    found = re.search(
        r"Version mismatch: .*?Ray: (\S+).*?Python: (\S+).*?Ray: (\S+).*?Python: (\S+)", output, re.DOTALL
    )
    if not found:
        return None
    cluster_ray, cluster_python, job_ray, job_python = found.groups()
    return (
        f"the cluster runs Ray {cluster_ray} on Python {cluster_python}, but the job's `python` has "
        f"Ray {job_ray} on {job_python}; use the image of cluster/Dockerfile on every node"
    )


def job_environment(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the job's variables: the FORWARDED ones that `environ` sets, then `extra`.

    Raises PreflightError for a tracking URI that encsearch does not take, and UserError for one that is a
    relative path: a job runs in a folder that is deleted.
    """
    env_vars = {name: environ[name] for name in FORWARDED if environ.get(name)} | dict(extra)
    uri = env_vars.get("MLFLOW_TRACKING_URI", "")
    if uri:
        check_kind(uri)
    if uri.startswith("sqlite:") and not uri.startswith(f"{SQLITE}/"):
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri} is a relative path, and a job runs in a folder that is deleted after "
            "it; give a server (http://...) or an absolute path that every node sees"
        )
    return env_vars


def check_token(environ: Mapping[str, str], home: Path) -> None:
    """Refuse RAY_AUTH_MODE=token without a token where Ray looks for it; no message shows the token."""
    if environ.get("RAY_AUTH_MODE", "").lower() != "token" or environ.get("RAY_AUTH_TOKEN"):
        return
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        has_token = bool(path.read_text().strip())
    except OSError:
        has_token = False
    if not has_token:
        raise PreflightError(
            f"RAY_AUTH_MODE=token, but {path} holds no token; "
            "set RAY_AUTH_TOKEN_PATH to the cluster's token file"
        )


def job_error(message: str, job_id: str | None) -> Exception:
    """Explain a refusal of the job server: an unknown id, a taken id, or the server's own words."""
    if "status code 404" in message:
        return UserError(f"no job {job_id} on this cluster; `encsearch jobs list` names them")
    if "already exists" in message:
        return UserError(f"job id {job_id} is taken on this cluster; give another one, or none")
    if "WebSocket" in message:
        return _lost()
    return TrainingError(f"the job server refused: {one_line(message)}")


def _connect(address: str | None) -> "JobSubmissionClient":
    """Return a client of the job server; fails within seconds, where Ray's own waits for 40 or for ever."""
    check_token(os.environ, Path.home())
    url = _job_server(address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"))
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    # Ray lets RAY_ADDRESS win over the argument (2.60); here the argument wins.
    with _environment("RAY_API_SERVER_ADDRESS", url), _one_line_errors():
        return JobSubmissionClient(url)


def _job_server(address: str | None) -> str:
    """Find the http(s) address of the job server that `address` stands for."""
    if address and address.startswith(("http://", "https://")):
        if problem := _find_problem(address):
            raise _unreachable(address, problem)
        return address
    if address and address not in {"auto", "local"}:
        if _find_problem(f"http://{address}") is None:
            return f"http://{address}"
        _check_port(address)
    return _ask_cluster(address)


def _ask_cluster(address: str | None) -> str:
    from ray.dashboard.utils import get_address_for_submission_client
    from ray.exceptions import RayError

    with _environment("RAY_API_SERVER_ADDRESS", address):
        try:
            url: str = get_address_for_submission_client(address)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            if "InvalidAuthToken" in str(error):
                raise _refused(missing=os.environ.get("RAY_AUTH_MODE", "").lower() != "token") from None
            raise _unreachable(address, first_line(error)) from None
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


def _check_port(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"address {address} is none of http://HOST:PORT, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, ValueError) as error:  # an impossible host name is a ValueError
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _unreachable(address: str | None, reason: str) -> PreflightError:
    where = address or "this machine"
    return PreflightError(
        f"no Ray cluster at {where}: {reason}; give --address http://HOST:8265 or RAY_ADDRESS"
    )


def _stream(client: "JobSubmissionClient", job_id: str, skip: int) -> Iterator[str]:
    """Yield the job's output as it comes, without its first `skip` characters."""
    chunks = client.tail_job_logs(job_id)

    async def next_chunk() -> str | None:
        return await anext(chunks, None)

    with asyncio.Runner() as runner, _one_line_errors(job_id):
        while (text := runner.run(next_chunk())) is not None:
            kept = text[skip:]
            skip = max(0, skip - len(text))
            yield kept


def _in_lines(texts: Iterator[str]) -> Iterator[str]:
    """Yield the same text in whole lines, so that no secret is cut in two; the last one may be torn."""
    rest = ""
    for text in texts:
        lines, end, rest = (rest + text).rpartition("\n")
        if end:
            yield lines + end
    yield rest


def _show_output(text: str) -> str:
    """A job's output as a terminal may have it: without secrets; of what commands it, only colours stay."""
    parts = re.split(r"(\x1b\[[\d;]{0,16}m)", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(part if number % 2 else for_terminal(part) for number, part in enumerate(parts))


def _wait_until_over(client: "JobSubmissionClient", job_id: str) -> ClusterJob:
    """Wait for the job's final state, which comes a moment after the end of the stream."""
    while not (job := _info(client, job_id)).is_over:
        time.sleep(STATUS_POLL_S)
    return job


def _info(client: "JobSubmissionClient", job_id: str) -> ClusterJob:
    with _one_line_errors(job_id):
        return _job(client.get_job_info(job_id))


def _job(details: Any) -> ClusterJob:
    """Convert Ray's JobDetails, without its runtime_env, which holds the job's secrets."""
    return ClusterJob(
        id=details.submission_id,
        status=details.status.value,
        entrypoint=details.entrypoint,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        # Ray appends the last 20,000 characters of the output.
        message=" ".join((details.message or "").partition(", last available logs")[0].split()),
        exit_code=details.driver_exit_code,
    )


@contextlib.contextmanager
def _one_line_errors(job_id: str | None = None) -> Iterator[None]:
    """Turn the errors of Ray's client into errors of one line."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise _refused(missing="required" in first_line(error)) from None
    except aiohttp.WSServerHandshakeError as error:
        raise job_error(f"status code {error.status}", job_id) from None
    except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError):
        raise _lost() from None
    except RuntimeError as error:
        raise job_error(str(error), job_id) from None


def _lost() -> ConnectionLostError:
    return ConnectionLostError(
        "lost the connection to the cluster; if it still runs, so does the job: `encsearch jobs list`"
    )


def _refused(missing: bool) -> PreflightError:
    if missing:
        return PreflightError(
            "the cluster asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token file"
        )
    return PreflightError(
        "the cluster refused the token; RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is another cluster's"
    )


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable inside the block: Ray's client reads its address from the environment only."""
    before = os.environ.get(name)
    _set(name, value)
    try:
        yield
    finally:
        _set(name, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
