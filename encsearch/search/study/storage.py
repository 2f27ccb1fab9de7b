"""The storage of a study: a journal file beside the sweep, or a database that several sweeps share."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, SQLAlchemyError

from encsearch.errors import PreflightError, one_line
from encsearch.files import read_lines, remove_torn_line
from encsearch.redaction import without_secrets

MEMORY = "memory"
CREATION_ATTEMPTS, CREATION_WAIT_S = 5, 1
# SQLite waits this long while another sweep writes; its default of 5 s is short on a busy machine.
WRITE_TIMEOUT_S = 60


def open_storage(place: str) -> BaseStorage:
    """Open a storage; `place` is a journal file, the URL of a database, or "memory" for a simulation.

    Raises PreflightError when it cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if place == MEMORY:
        return InMemoryStorage()
    if "://" in place:
        return _open_database(place)
    path = Path(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise PreflightError(f"{path}: the study's journal cannot be used ({error.strerror})") from None
    except ValueError as error:
        raise PreflightError(f"{path}: not a journal of Optuna, or damaged ({one_line(error)})") from None


def study_of(
    trials: Iterable[FrozenTrial], directions: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE,)
) -> optuna.Study:
    """A study in memory that takes `trials` over, and does not copy them; their dicts may be shared.

    Optuna's own way, `add_trials`, checks and copies each trial (5.0). That took four fifths of an ask at
    4,000 trials, and a third of the importances.
    """
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=list(directions))
    for trial in trials:
        trial.__class__ = _OwnTrial
        storage.create_new_trial(study._study_id, template_trial=trial)
    return study


class _OwnTrial(FrozenTrial):
    """A trial that `InMemoryStorage`, which copies what it is given, takes as it is."""

    def __deepcopy__(self, memo: object) -> "_OwnTrial":
        return self


def repair_journal(path: Path) -> None:
    """Remove the torn line and the lock that a killed writer left; only for the process that may write now.

    Optuna 5.0 would append to the torn line, which makes the whole file unreadable, and wait 30 s for the
    lock, a symbolic link. Raises PreflightError for damage that no kill causes; Optuna overlooks it in the
    last line.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    read_lines(path)
    remove_torn_line(path)


def _open_database(url: str) -> BaseStorage:
    try:
        return _with_tables(url)
    except ArgumentError:
        raise PreflightError("ENCSEARCH_STORAGE is not a database URL; try sqlite:///study.db") from None
    except ImportError as error:
        cause = error.__cause__ or error
        raise PreflightError(
            f"{without_secrets(url)}: its database driver is not installed ({cause})"
        ) from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise PreflightError(
            f"the study's database {without_secrets(url)} cannot be used: "
            f"{one_line(error.__cause__ or error)}"
        ) from None


def _with_tables(url: str) -> BaseStorage:
    """Connect, and retry: of two processes that create the same tables at once, one fails (Optuna 5.0)."""
    for _ in range(CREATION_ATTEMPTS):
        try:
            return _connect(url)
        except DatabaseError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(CREATION_WAIT_S)
    return _connect(url)


def _connect(url: str) -> BaseStorage:
    """Connect with a cache of ended trials, which a bare RDBStorage lacks."""
    # Replaces a connection that the server has closed.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": WRITE_TIMEOUT_S}
    return get_storage(RDBStorage(url, engine_kwargs=options))
