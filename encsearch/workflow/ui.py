"""`encsearch ui`: MLflow's server over a local store, and the pages to look at."""

from collections.abc import Callable
from pathlib import Path

from encsearch.tracking.links import is_loopback, is_server, ui_base
from encsearch.tracking.runs import open_experiment
from encsearch.tracking.ui_server import UiServer, serving
from encsearch.tracking.uris import existing_store
from encsearch.workflow.links import job_of, store_of
from encsearch.workflow.pages import Pages, pages_of


def show(
    folder: Path | None, host: str, port: int, say: Callable[[str], None], tell: Callable[[Pages], None]
) -> None:
    """Serve the store until a signal ends it, and `tell` the pages once it answers; of a server tell them.

    Raises UserError for a folder without a job, PreflightError for a store or a port that cannot be used.
    """
    job = job_of(folder) if folder else None
    uri, experiment = existing_store(store_of(job)), job.experiment_id if job else None
    if is_server(uri):
        tell(pages_of(open_experiment(uri, experiment), ui_base(uri), job))
        return
    if not is_loopback(host):
        say(
            f"warning: --host {host}: who reaches this machine can read and change the records: this server "
            "has no authentication, the one that cluster/mlflow defines has"
        )
    with serving(uri, host, port) as server:
        say(_announced(server, port))
        tracking = open_experiment(uri, experiment)  # beside the server's start, which takes as long
        server.wait_until_up()
        tell(pages_of(tracking, server.base, job))
        if server.process:
            say("serving until Ctrl-C")
            server.wait_until_over()


def _announced(server: UiServer, port: int) -> str:
    if server.process is None:
        return f"this store is served already at {server.base}"
    moved = "" if server.base.endswith(f":{port}") else f" (port {port} is taken)"
    return f"starting MLflow at {server.base}{moved}"
