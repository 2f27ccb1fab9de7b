"""A job's folder: its name, and the summary that later commands read; and how a job reports its progress."""

import json
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from encsearch.config import Config
from encsearch.errors import UserError
from encsearch.files import write_whole
from encsearch.reports import Report
from encsearch.search.trials import TrialEvent

SUMMARY_FILE = "run.json"
BUNDLE = Path("artifacts") / "bundle"


@dataclass(frozen=True)
class RunSummary:
    """What a finished job says of itself; `run_id` is the MLflow run that holds the model `bundle`.

    `parent_run_id` is a sweep's own run. Both are None while the store has not answered: `record/sent.json`
    has them by the names `run` and `parent_run` once `encsearch sync` has sent the record. `bundle` is
    relative to the job's folder.
    """

    kind: str
    name: str
    metric: str
    value: float
    fingerprint: str
    store: str
    split: str
    tracking_uri: str
    experiment_id: str
    run: str
    run_id: str | None
    bundle: str
    parent_run: str | None = None
    parent_run_id: str | None = None


def new_folder(out: Path, name: str) -> Path:
    """A folder that no other job has, so that no old training is continued by accident."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = out / f"{name}-{stamp}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make a run folder ({error.strerror}); choose another --out") from None
    return folder


def bundle_source(model: str) -> str:
    """What `load` takes for `model`: of a finished job's folder its best model, anything else as it is."""
    if (Path(model) / SUMMARY_FILE).is_file():
        return str(Path(model) / read_summary(Path(model)).bundle)
    return model


def write_summary(folder: Path, summary: RunSummary) -> None:
    """The last thing that a job writes: a folder with a summary is a finished job."""
    write_whole(folder / SUMMARY_FILE, json.dumps(asdict(summary), indent=2) + "\n")


def read_summary(folder: Path) -> RunSummary:
    """Raises UserError when `folder` is not that of a finished job."""
    path = folder / SUMMARY_FILE
    try:
        return RunSummary(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not the folder of a finished training, sweep or ablation ({SUMMARY_FILE} is missing)"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


class Progress(Protocol):
    """Called from the driver, in the order of events."""

    def say(self, line: str) -> None: ...

    def epoch(self, name: str, report: Report, config: Config) -> None: ...

    def trial(self, event: TrialEvent, config: Config) -> None: ...
