"""Tracking URIs as text: which one is used, and which ones are refused."""

import os
import re
import shlex
from pathlib import Path

from encsearch.errors import PreflightError
from encsearch.redaction import without_secrets

SQLITE = "sqlite:///"
SUBMITTED = "ENCSEARCH_SUBMITTED"  # set in a job of `encsearch submit`, whose working directory is deleted
DATABASE = "mlflow.db"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def resolve_uri(uri: str | None) -> str:
    """Return `uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the working directory.

    The path of an SQLite URI becomes absolute. Raises PreflightError for a store that MLflow cannot open.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and SUBMITTED in os.environ:
        raise PreflightError(
            "MLFLOW_TRACKING_URI is set neither where the job was submitted nor on the cluster, and records "
            "in the job's own folder would be deleted with it; name a server, or as "
            "sqlite:////shared/mlflow.db a file on storage that the nodes see"
        )
    uri = uri or f"{SQLITE}{DATABASE}"
    check_kind(uri)
    return SQLITE + str(_checked_database(uri)) if uri.startswith("sqlite:") else uri


def existing_store(uri: str | None = None) -> str:
    """Like `resolve_uri`, for readers: raises PreflightError for an SQLite file that does not exist yet."""
    uri = resolve_uri(uri)
    path = sqlite_path(uri)
    if path is None or path.exists():
        return uri
    if "MLFLOW_TRACKING_URI" in os.environ or path != Path(DATABASE).absolute():
        raise PreflightError(f"{path}: no such tracking database; set MLFLOW_TRACKING_URI to the one to read")
    near = sorted(Path().glob(f"*/{DATABASE}"), key=lambda file: file.stat().st_mtime)
    other = near and (
        f"; to read {near[-1].parent}'s: export MLFLOW_TRACKING_URI={shlex.quote(f'{SQLITE}{near[-1]}')}"
    )
    raise PreflightError(
        f"nothing is recorded in this folder yet, there is no {DATABASE}; `encsearch train` and `sweep` "
        f"make one{other or '; MLFLOW_TRACKING_URI names one that is elsewhere'}"
    )


def check_kind(uri: str) -> None:
    """Raises PreflightError for a URI of neither a database nor a tracking server."""
    scheme = uri.partition(":")[0]
    known = {"sqlite", "http", "https", "postgresql", "mysql", "mssql"}
    if scheme not in known and "+" not in scheme:
        raise PreflightError(
            f"tracking URI {without_secrets(uri)} is not one that MLflow can use;"
            f" try {SQLITE}mlflow.db or http://HOST:5000"
        )


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite URI, None for any other URI."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _checked_database(uri: str) -> Path:
    """Return the absolute path of an SQLite URI.

    Refuses here what is no database, because MLflow 3.17 tries for 100 s to open it.
    """
    relative = sqlite_path(uri)
    if relative is None or relative == Path():
        raise PreflightError(f"tracking URI {uri} names no file; try {SQLITE}mlflow.db")
    path = relative.absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PreflightError(f"{path}: the tracking database is not writable; name another file in the URI")
    if path.exists() and not path.is_file():
        raise PreflightError(f"{path}: the tracking database is not a file; name another path in the URI")
    if path.exists() and path.stat().st_size and not _is_sqlite(path):
        raise PreflightError(f"{path}: not an SQLite database; name another file in the URI")
    return path


def _is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"
