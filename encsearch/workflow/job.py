"""A job's folder, the summary that later commands read, and the protocol for a job's progress."""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Protocol

from encsearch.config import CONFIG_FILE, Config, load_config, named_parts, with_overrides
from encsearch.errors import NoticeError, PreflightError, StorageError, UserError
from encsearch.files import write_whole
from encsearch.parts import CODE_FOLDER, NoModuleError, code_from, find_code
from encsearch.reports import MARKS, SUMMARY_FILE, JobKind, Report, RunSummary, job_kind, no_job_error
from encsearch.search.budget.keeper import SweepProgress
from encsearch.search.trials import TrialEvent
from encsearch.text import format_list

BUNDLE = Path("artifacts") / "bundle"
CONTEXT_FOLDER = "context"


def new_folder(out: Path, recipe: str, name: str | None = None) -> Path:
    """Make a folder that no other job has, so that no old training is continued by accident.

    It is called `name`, or after the recipe and the time.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = out / (name or f"{recipe}-{stamp}-{secrets.token_hex(2)}")
    # One of a given name may be left of a job that was killed before it began.
    if name and {path.name for path in folder.glob("[!.]*")} - {CONFIG_FILE}:
        raise UserError(f"{folder}: holds something else than a job; give another --name")
    try:
        folder.mkdir(parents=True, exist_ok=bool(name))
    except OSError as error:
        raise UserError(f"{out}: cannot make a run folder ({error.strerror}); choose another --out") from None
    return folder


def keep_code(config: Config, folder: Path) -> Config:
    """Copy the modules of own parts into a new job's folder; returns the recipe that finds them there."""
    names = named_parts(config)
    if not names:
        return config
    with code_from(config.code):
        find_code(names).write(folder / CODE_FOLDER)
    return config.model_copy(update={"code": str((folder / CODE_FOLDER).absolute())})


def kept_code(config: Config, folder: Path) -> Config:
    """The recipe of a job that goes on, which finds the modules of own parts in the job's folder.

    Raises UserError when those where the command runs have changed since: the trainings would differ.
    """
    names = named_parts(config)
    if not names:
        return config
    kept = folder.absolute() / CODE_FOLDER
    try:
        with code_from(kept):
            before = find_code(names)
    except NoModuleError:
        raise PreflightError(
            f"{kept}: lacks modules of the job's own parts, {format_list(list(names))}; restore it, or start "
            "a new job"
        ) from None
    here: Mapping[str, bytes] = {}
    with code_from(config.code), suppress(UserError):  # they need not be here
        here = find_code(names).files
    for path, data in here.items():
        if before.files.get(path) != data:
            raise PreflightError(
                f"{path} is not what it was when the job began, and own parts of the job are made of it; "
                f"restore it from {kept}, or start a new job"
            )
    return config.model_copy(update={"code": str(kept)})


def changed_config(folder: Path, overrides: Sequence[str]) -> Config:
    """The recipe of a training or an ablation with `overrides`.

    Raises UserError for one that would make it another job.
    """
    before = load_config(folder / CONFIG_FILE)
    config = with_overrides(before, overrides)
    train = config.train.model_copy(update={"checkpoint_every": before.train.checkpoint_every})
    if config.model_copy(update={"scaling": before.scaling, "train": train}) != before:
        raise UserError(
            f"{format_list(list(overrides))}: the job has begun; only scaling. and "
            "train.checkpoint_every. can be changed now"
        )
    return config


def find_kind(folder: Path) -> JobKind:
    """The kind of the job in a folder, finished or not. Raises UserError if there is none."""
    kind = job_kind(folder)
    if kind is None:
        raise no_job_error(
            folder, f"the folder of a training, sweep or ablation; it has none of {', '.join(MARKS)}"
        )
    return kind


def write_summary(folder: Path, summary: RunSummary) -> None:
    """Write the summary as the last step of a job: a folder with a summary is a finished job."""
    write_whole(folder / SUMMARY_FILE, json.dumps(asdict(summary), indent=2) + "\n")


class Progress(Protocol):
    """Called from the driver, in the order of events."""

    def say(self, line: str) -> None: ...

    def phase(self, line: str) -> None:
        """What goes on until the next event, as in "starting Ray"."""

    def step(self, step: int, total: int, config: Config) -> None:
        """A training has done `step` optimizer steps; also called again with the same number."""

    def epoch(self, name: str, report: Report, config: Config) -> None: ...

    def trial(self, event: TrialEvent, config: Config) -> None: ...

    def sweep(self, now: SweepProgress, config: Config) -> None: ...


@contextmanager
def report_resume(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Say how the job continues when Ctrl-C, a notice or a full disk ends it, also as a note of the error."""
    try:
        yield
    except (KeyboardInterrupt, NoticeError, StorageError) as error:
        hint = f"continue with `encsearch resume {folder}`"
        say(hint)
        error.add_note(hint)
        raise
