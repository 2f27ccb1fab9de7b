"""Where a job's records can be looked at."""

import os
from pathlib import Path

from encsearch.tracking.links import children_link, run_link, ui_base, ui_command
from encsearch.tracking.uris import resolve_uri
from encsearch.workflow.folder import read_summary


def links_of(folder: Path | None) -> dict[str, str]:
    """By name: the command that opens a local store, and the pages of the job in `folder`, if given."""
    summary = read_summary(folder) if folder else None
    uri = resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or (summary.tracking_uri if summary else None))
    command, base = ui_command(uri), ui_base(uri)
    links = {"open MLflow": command or base}
    if summary:
        if summary.parent_run_id:
            links["trials"] = children_link(
                base, summary.experiment_id, summary.parent_run_id, summary.metric
            )
        links["best run"] = run_link(base, summary.experiment_id, summary.run_id)
    return links
