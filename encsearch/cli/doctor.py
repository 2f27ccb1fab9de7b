"""`encsearch doctor`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from encsearch.cli.console import absolute, emit, json_option, say, table
from encsearch.errors import PreflightError


@click.command()
@click.option(
    "--address",
    help="Of Ray: http://HOST:8265, or on its head HOST:6379.  [default: RAY_ADDRESS, else a Ray of its own]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=absolute,
    help="Folder that jobs will write to, tried from every node.  [default: runs, on a Ray of its own]",
)
@json_option
def doctor(address: str | None, out: Path | None, as_json: bool) -> None:
    """Look whether a cluster, or this machine, is fit for encsearch's jobs; exit code 3 where it is not.

    Versions, devices, memory, limits, clocks, storage and the network between nodes, Ray's authentication and
    MLflow. What is not right ends with the way out.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        sys.exit(_send(address, out, as_json))
    from encsearch.cli.progress import progress

    os.environ.pop("RAY_ADDRESS", None)  # an empty one would be taken for a cluster's
    if address:
        os.environ["RAY_ADDRESS"] = address
    with progress("asking the nodes") as shown:
        from encsearch.workflow.doctor import examine  # torch and Ray, which take seconds

        findings = examine(out, shown)
    rows = [(finding.check, finding.where, finding.state, finding.found) for finding in findings]
    emit(
        [asdict(finding) for finding in findings], as_json, table(["check", "where", "state", "found"], rows)
    )
    if failed := sum(finding.state == "failed" for finding in findings):
        say(f"{failed} of {len(findings)} checks failed")
        sys.exit(PreflightError.exit_code)


def _send(address: str, out: Path | None, as_json: bool) -> int:
    """Run this command as a job of the cluster, with its encsearch; return its exit code."""
    from encsearch.submit.client import follow, job_environment, logs, submit, wait

    arguments = [*(["--out", str(out)] if out else []), *(["--json"] if as_json else [])]
    command = ["python", "-m", "encsearch", "doctor", *arguments]
    job_id, _ = submit(
        command, address=address, working_dir=Path(), files={}, environment=job_environment({})
    )
    if not as_json:
        return follow(job_id, address=address)
    code, said = wait(job_id, address=address), logs(job_id, address=address)
    begin = said.find("[\n  {")  # before it are Ray's lines and the phases, after it how many failed
    if begin < 0:
        say(said.strip().rpartition("\n")[2])
    else:
        emit(json.JSONDecoder().raw_decode(said, begin)[0], True, "")
    return code
