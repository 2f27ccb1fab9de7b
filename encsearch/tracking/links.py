"""Addresses of the MLflow UI's pages, and the command that opens the UI over a local store.

The UI of MLflow 3 opens in its GenAI mode, which hides models, unless the link says `workflowType`.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from urllib.parse import quote

from encsearch.redaction import without_secrets

WORKFLOW = "workflowType=machine_learning"


def ui_base(uri: str, port: int = 5000) -> str:
    """The UI's address: the tracking server's own, or the one that `ui_command` opens."""
    return without_secrets(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"


def ui_command(uri: str, port: int = 5000) -> str | None:
    """The command line that serves a store on loopback; None if `uri` is a server already.

    A URI with a password is left to the shell's MLFLOW_TRACKING_URI, since the command is printed and kept.
    """
    if uri.startswith("http"):
        return None
    store = shlex.quote(uri) if without_secrets(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    command = f"{shlex.quote(sys.executable)} -m mlflow server --backend-store-uri {store}"
    command += f" --host 127.0.0.1 --port {port} --workers 1"
    # Job execution would start ten more processes (1.8 GiB, MLflow 3.17).
    settings = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true"
    return f"{settings} {command}"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def children_link(base: str, experiment_id: str, parent_run_id: str, metric: str) -> str:
    """The flat table of a sweep's trials, the best value of `metric` first."""
    search = quote(f"tags.`mlflow.parentRunId`='{parent_run_id}'", safe="")
    order = quote(f"metrics.`best/{metric}`", safe="")
    return (
        f"{base}/#/experiments/{experiment_id}/runs?{WORKFLOW}"
        f"&searchFilter={search}&orderByKey={order}&orderByAsc=false"
    )


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The comparison of runs with its parallel coordinates."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")), safe="")
    experiments = quote(json.dumps([experiment_id]), safe="")
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&{WORKFLOW}"


def model_link(base: str, name: str, version: str) -> str:
    return f"{base}/#/models/{quote(name, safe='')}/versions/{version}?{WORKFLOW}"
