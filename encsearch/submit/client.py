"""Run a command on a Ray cluster through its job server: submit, follow, list, logs, stop.

A command's exit status reaches the caller unchanged, and a stopped job is not a success (`ray job submit`
exits 0 for it). Failures are those of `server`, each of one line.
"""

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from encsearch.errors import UserError, for_terminal
from encsearch.redaction import without_user
from encsearch.submit.package import check_package, pack
from encsearch.submit.server import ConnectionLostError, JobServer
from encsearch.tracking.uris import SQLITE, SUBMITTED, check_kind

OVER = {"SUCCEEDED", "FAILED", "STOPPED"}
TRACKING, NAME = "encsearch.tracking_uri", "encsearch.name"  # of a job's metadata
RECONNECTS = 5
RECONNECT_WAIT_S = 2
STATUS_POLL_S = 0.5

FORWARDED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_EXPERIMENT_NAME",
    "ENCSEARCH_NOTIFY_URL",
)
"""The variables from which a job learns about MLflow and whom to tell. The cluster has its own Ray token."""


@dataclass(frozen=True)
class ClusterJob:
    """One job of a cluster; `id` is the submission id, times are Unix seconds.

    `links` are the pages on which it can be seen, by name.
    """

    id: str
    status: str
    entrypoint: str
    started: float | None
    ended: float | None
    message: str
    exit_code: int | None
    links: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        return self.status in OVER


def submit(
    entrypoint: Sequence[str],
    *,
    address: str | None = None,
    working_dir: Path,
    files: Mapping[str, int],
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
) -> tuple[str, bool]:
    """Start `entrypoint` (as argv) on the cluster in a copy of `files` of `working_dir`: its id, and True.

    `files` are what `package_files` returns, `environment` what `job_environment` does. The id is `name`, or
    where a job has it `name-2` and so on. If a job of that name is not over, nothing starts: its id, and
    False. Raises UserError for a package that cannot be sent, and where the job of that name runs another
    command.
    """
    check_package(files, working_dir)
    # Without `exec` a stop in the moment before the shell starts its child ends the shell alone (Ray 2.60).
    command = f"exec {shlex.join(entrypoint)}"
    server, job_id = JobServer(address), None
    if name:
        jobs = server.jobs()
        own = [job for job in jobs if name in (job["submission_id"], (job.get("metadata") or {}).get(NAME))]
        for job in own:
            if job["status"] in OVER:
                continue
            if job["entrypoint"] != command:
                raise UserError(
                    f"{name} runs already, another command: {job['entrypoint']}; give another --name"
                )
            return job["submission_id"], False
        taken = {job["submission_id"] for job in jobs}
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        job_id = next(free for free in names if free not in taken)
    runtime_env: dict[str, Any] = {"env_vars": {**(environment or {}), SUBMITTED: "1"}}
    if files:
        with tempfile.TemporaryDirectory() as folder:
            runtime_env["working_dir"] = server.upload(
                pack(files, working_dir, Path(folder) / "working_dir.zip")
            )
    tracking = (environment or {}).get("MLFLOW_TRACKING_URI", "")
    metadata = {TRACKING: without_user(tracking)} if tracking.startswith("http") else {}
    metadata |= {NAME: name} if name else {}
    return server.submit(command, job_id, runtime_env, metadata), True


def follow(job_id: str, *, address: str | None = None) -> int:
    """Write the job's output to stdout until it is over; return its exit status (see `exit_status`).

    A stream that breaks is continued where it ended. Raises ConnectionLostError if the cluster stays away.
    """
    server = JobServer(address)
    written = 0
    tail = ""

    def write(texts: Iterator[str]) -> None:
        nonlocal written, tail
        for text in _in_lines(_from(texts, written)):
            sys.stdout.write(_show_output(text))
            sys.stdout.flush()
            written += len(text)
            tail = (tail + text)[-4000:]

    for attempt in range(RECONNECTS + 1):
        try:
            # The stream ends a moment before the job is over, or earlier if its node is lost.
            while not (job := _job(server.job(job_id), server.url)).is_over:
                write(server.tail(job_id))
                time.sleep(STATUS_POLL_S)
            write(iter([server.logs(job_id)]))
            break
        except ConnectionLostError:
            if attempt == RECONNECTS:
                raise
            time.sleep(RECONNECT_WAIT_S)
    if job.status == "FAILED":
        print(for_terminal(version_hint(tail) or f"{job_id} failed: {job.message}"), file=sys.stderr)
    return exit_status(job)


def wait(job_id: str, *, address: str | None = None) -> int:
    """Wait until the job is over; return its exit status (see `exit_status`)."""
    server = JobServer(address)
    while not (job := _job(server.job(job_id), server.url)).is_over:
        time.sleep(STATUS_POLL_S)
    return exit_status(job)


def list_jobs(*, address: str | None = None) -> list[ClusterJob]:
    """List the submitted jobs of the cluster, the newest first."""
    server = JobServer(address)
    jobs = [_job(details, server.url) for details in server.jobs()]
    return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)


def status(job_id: str, *, address: str | None = None) -> ClusterJob:
    """Return the job as it is now; raises UserError if the cluster does not know it."""
    server = JobServer(address)
    return _job(server.job(job_id), server.url)


def logs(job_id: str, *, address: str | None = None) -> str:
    """Return all that the job has written so far, as a terminal may have it.

    Raises UserError if the cluster does not know the job.
    """
    return _show_output(JobServer(address).logs(job_id))


def stop(job_id: str, *, address: str | None = None) -> bool:
    """Ask the job to end; return False if it was over. Raises UserError if the cluster does not know it."""
    return JobServer(address).stop(job_id)


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


def job_environment(extra: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the job's variables: the FORWARDED ones that `environ` (os.environ) sets, then `extra`.

    Raises PreflightError for a tracking URI that encsearch does not take, and UserError for one that is a
    relative path: a job runs in a folder that is deleted.
    """
    environ = os.environ if environ is None else environ
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


def _from(texts: Iterator[str], skip: int) -> Iterator[str]:
    """The same text without its first `skip` characters."""
    for text in texts:
        yield text[skip:]
        skip = max(0, skip - len(text))


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


def _job(details: Mapping[str, Any], url: str) -> ClusterJob:
    """Convert the server's answer, without the runtime_env, which holds the job's secrets."""
    job_id = details["submission_id"]
    links = {"job": f"{url}/#/jobs/{job_id}"}
    if tracking := (details.get("metadata") or {}).get(TRACKING):
        links["records"] = tracking
    return ClusterJob(
        id=job_id,
        status=details["status"],
        entrypoint=details["entrypoint"],
        started=details["start_time"] / 1000 if details.get("start_time") else None,
        ended=details["end_time"] / 1000 if details.get("end_time") else None,
        # Ray appends the last 20,000 characters of the output.
        message=" ".join((details.get("message") or "").partition(", last available logs")[0].split()),
        exit_code=details.get("driver_exit_code"),
        links=links,
    )
