"""Addresses of the MLflow UI's pages, and the command that opens the UI over a store.

The UI of MLflow 3 opens in its GenAI mode, which hides models, unless the link says `workflowType`.
"""

import glob
import ipaddress
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from encsearch.redaction import without_user

WORKFLOW = "workflowType=machine_learning"
CHARTS = "&compareRunsMode=CHART"  # appended to the link of a table, it opens the charts instead
LOOPBACK, PORT = "127.0.0.1", 5000


@dataclass(frozen=True)
class ServerCommand:
    """The process that serves a store: its arguments, and the variables that it needs beside them."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def is_server(uri: str) -> bool:
    """Whether the tracking URI names a server, which has a UI already."""
    return uri.startswith(("http://", "https://"))


def ui_base(uri: str, port: int = PORT, host: str = LOOPBACK) -> str:
    """Return the UI's address: the tracking server's own, or the one that `ui_command` opens."""
    if is_server(uri):
        return without_user(uri).rstrip("/")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ui_command(uri: str, port: int = PORT, host: str = LOOPBACK) -> str | None:
    """Return the command line that serves a store; None if `uri` is a server already.

    A URI with a password is read from the shell's MLFLOW_TRACKING_URI, since the command is printed and kept.
    """
    if is_server(uri):
        return None
    command = server_command(uri, port, host)
    secret = {"MLFLOW_BACKEND_STORE_URI": '"$MLFLOW_TRACKING_URI"'}
    variables = {name: secret.get(name, value) for name, value in command.environment.items()}
    settings = " ".join(f"{name}={value}" for name, value in variables.items())
    return f"{settings} {shlex.join(command.arguments)}"


def server_command(uri: str, port: int, host: str, names: Sequence[str] = ()) -> ServerCommand:
    """Return the command that serves a store to browsers which ask for `host` or another of its `names`.

    Everybody on the machine sees a process's arguments, so a URI with a password goes into its environment.
    """
    # Job execution would start ten more processes (1.8 GiB, MLflow 3.17).
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # Nothing is imported from the working directory, where a random.py may lie: neither by Python, nor by the
    # uvicorn that MLflow starts, which puts a folder of its own first.
    environment |= {"PYTHONSAFEPATH": "1", "UVICORN_APP_DIR": os.devnull}
    store: tuple[str, ...] = ("--backend-store-uri", uri)
    if without_user(uri) != uri:
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
        store = ()
    listen = ("--host", host, "--port", str(port), "--workers", "1")
    allowed = ("--allowed-hosts", ",".join(allowed_hosts(host, names)))
    return ServerCommand((sys.executable, "-m", "mlflow", "server", *store, *listen, *allowed), environment)


def allowed_hosts(host: str, names: Sequence[str] = ()) -> list[str]:
    """List the Host headers that the server answers; others may come from a page that rebinds its own name.

    Any port is allowed, so that a forwarded port works: a foreign page has a foreign name, whatever its port.
    """
    # A browser puts brackets around an IPv6 address.
    own = [f"[{host}]" if ":" in host else host, *(() if is_loopback(host) else names)]
    known = dict.fromkeys(["localhost", LOOPBACK, *own])
    # MLflow compares a name literally and a pattern by fnmatch, which reads a bracket as a set of letters.
    return [pattern for name in known for pattern in (name, f"{glob.escape(name)}:*")]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def children_link(base: str, experiment_id: str, parent_run_id: str, metric: str) -> str:
    """Link to the flat table of a sweep's trials and finalists, the best value of `metric` first."""
    return table_link(base, experiment_id, children_of(parent_run_id), metric)


def children_of(parent_run_id: str) -> str:
    """Return the filter for the children of a run, in MLflow's filter language."""
    return f"tags.`mlflow.parentRunId` = '{parent_run_id}'"


def table_link(base: str, experiment_id: str, condition: str, metric: str) -> str:
    """Link to the table of the runs that meet `condition`, in MLflow's filter language, the best first."""
    search = quote(condition, safe="")
    order = quote(f"metrics.`best/{metric}`", safe="")
    return (
        f"{base}/#/experiments/{experiment_id}/runs?{WORKFLOW}"
        f"&searchFilter={search}&orderByKey={order}&orderByAsc=false"
    )


def view_link(base: str, experiment_id: str, key: str) -> str:
    """Link to a stored view (see views.py).

    A filter or an order in the link would make the page ignore the view, so it holds neither.
    """
    return f"{base}/#/experiments/{experiment_id}/runs?{WORKFLOW}&viewStateShareKey={quote(key, safe='')}"


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Link to the comparison of runs with its parallel coordinates."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")), safe="")
    experiments = quote(json.dumps([experiment_id]), safe="")
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&{WORKFLOW}"


def registry_link(base: str) -> str:
    """Link to all registered models."""
    return f"{base}/#/models?{WORKFLOW}"


def versions_link(base: str, name: str) -> str:
    """Link to the versions of one registered model."""
    return f"{base}/#/models/{quote(name, safe='')}?{WORKFLOW}"


def model_link(base: str, name: str, version: str) -> str:
    return f"{base}/#/models/{quote(name, safe='')}/versions/{version}?{WORKFLOW}"
