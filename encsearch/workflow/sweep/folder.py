"""The folder of a sweep: its recipe and its study, and the lock of its one writer.

config.yaml        the recipe, every default written out; a resume may change its budget
study.json         where the study is, and the fingerprint of its data
study.journal      the study, unless ENCSEARCH_STORAGE names a database
trials/            the reports of each trial, and the last checkpoint of a running one
finalists/         the trainings from scratch; finalists.jsonl has a line for each that is finished
progress.jsonl     how long the sweep has run, and its forecast end
sweep.json         the data of the report
run.json           written last: a finished job
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from encsearch.config import CONFIG_FILE, Config, load_config, require_search, to_yaml
from encsearch.errors import PreflightError, UserError
from encsearch.files import hold_lock, read_object, write_whole
from encsearch.redaction import without_user
from encsearch.reports import STUDY_FILE
from encsearch.search.study.storage import open_storage, repair_journal
from encsearch.search.study.study import Study
from encsearch.workflow.job import new_folder

STORAGE_VARIABLE = "ENCSEARCH_STORAGE"
LOCK_FILE, JOURNAL_FILE = "lock", "study.journal"


@dataclass(frozen=True)
class StudyPlace:
    """`storage` is shown without secrets, None for the journal file in the folder.

    `warm_start` is the folder of the sweep whose trials this one learns from, `prior_from` of the one whose
    best are its prior.
    """

    name: str
    fingerprint: str
    storage: str | None
    warm_start: str | None = None
    prior_from: str | None = None


@dataclass(frozen=True)
class Earlier:
    """Folders of the sweeps that a new one learns from, and takes its prior from."""

    warm_start: Path | None = None
    prior_from: Path | None = None


NOTHING_EARLIER = Earlier()


def begin(config: Config, out: Path, fingerprint: str, earlier: Earlier, name: str | None = None) -> Path:
    """Make a new folder below `out`; `study.json` comes last, and without it nothing can be resumed."""
    folder = new_folder(out, config.name, name)
    write_whole(folder / CONFIG_FILE, to_yaml(config))
    database = named_database()
    place = StudyPlace(
        name=folder.name,
        fingerprint=fingerprint,
        storage=without_user(database) if database else None,
        warm_start=str(earlier.warm_start.absolute()) if earlier.warm_start else None,
        prior_from=str(earlier.prior_from.absolute()) if earlier.prior_from else None,
    )
    write_whole(folder / STUDY_FILE, json.dumps(asdict(place), indent=2) + "\n")
    return folder


def reopen(folder: Path) -> tuple[Config, StudyPlace]:
    """Read a sweep's recipe and study place. Raises UserError when `folder` is not a sweep's."""
    try:
        place = read_object(folder / STUDY_FILE, StudyPlace)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: not the folder of a sweep ({STUDY_FILE} is missing)") from None
    config = load_config(folder / CONFIG_FILE)
    if config.search is None:
        raise UserError(f"{folder / CONFIG_FILE}: its search: block is missing; restore the file")
    return config, place


def named_database() -> str | None:
    """The database in ENCSEARCH_STORAGE, if it is set. Raises PreflightError if it is not a URL."""
    url = os.environ.get(STORAGE_VARIABLE)
    if url and "://" not in url:
        raise PreflightError(f"{STORAGE_VARIABLE}={url} is not a database URL; try sqlite:///study.db")
    return url or None


def check_database() -> None:
    """Raise PreflightError when the named database cannot be used, before Ray is started."""
    database = named_database()
    if database:
        open_storage(database)


def open_study(config: Config, folder: Path, place: StudyPlace) -> Study:
    """Open the study of a sweep whose lock this process holds.

    Raises PreflightError when the storage fails, or is not the one that the sweep was started in.
    """
    database = named_database()
    shown = without_user(database) if database else None
    if shown != place.storage:
        raise PreflightError(
            f"{folder}: its study is in {place.storage or JOURNAL_FILE}, but {STORAGE_VARIABLE} is "
            f"{shown or 'not set'}; set it to the same"
        )
    if not database:
        _check_journal(folder)
        repair_journal(folder / JOURNAL_FILE)
    journal = folder / JOURNAL_FILE
    study = Study(database or str(journal), place.name, require_search(config), config.train.epochs)
    if (folder / "trials").exists() and not study.trials():
        where = place.storage or journal
        raise PreflightError(
            f"{where}: study {place.name} is missing, but its trials have started; restore it"
        )
    return study


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder, so that only this process writes there; the kernel unlocks it when the process dies.

    Raises UserError when another process holds the lock.
    """
    with hold_lock(folder / LOCK_FILE) as is_held:
        if not is_held:
            raise UserError(f"{folder}: another process is running this sweep; wait for it or end it")
        yield


def _check_journal(folder: Path) -> None:
    """Refuse a missing journal: a new study would start beside the trials of the old one."""
    journal = folder / JOURNAL_FILE
    if (folder / "trials").exists() and not (journal.exists() and journal.stat().st_size):
        raise PreflightError(
            f"{journal}: the study's journal is missing, but its trials have started; restore it"
        )
