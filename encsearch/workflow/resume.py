"""`encsearch resume`, of a job of any kind, and a job that is started again under its name."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encsearch.config import CONFIG_FILE, Config, flatten, load_config
from encsearch.data.own import with_own_store
from encsearch.errors import UserError
from encsearch.files import check_name
from encsearch.reports import JobKind, job_kind
from encsearch.text import format_list
from encsearch.workflow.job import Progress, find_kind

if TYPE_CHECKING:
    from encsearch.workflow.ablate.run import Ablated
    from encsearch.workflow.sweep.run import Swept
    from encsearch.workflow.train import Trained

TRIALS = "search.budget.trials"


def resume(
    folder: Path, overrides: Sequence[str], progress: Progress, *, extend: int = 0
) -> "Trained | Swept | Ablated":
    """Go on with the job in a folder, or give a finished sweep `extend` more trials.

    Raises UserError for a folder without a job, for `extend` with another job than a sweep, and what the
    kind's own `resume` does.
    """
    kind = find_kind(folder)
    if extend and kind != "sweep":
        raise UserError(f"--extend: {folder} holds a {kind}; only a sweep has trials to add")
    # Each kind is imported where it goes on: the driver of a sweep has no torch.
    match kind:
        case "sweep":
            from encsearch.workflow.sweep.run import resume as resume_sweep

            return resume_sweep(folder, overrides, extend, progress)
        case "ablation":
            from encsearch.workflow.ablate.run import resume as resume_ablation

            return resume_ablation(folder, overrides, progress)
        case "training":
            from encsearch.workflow.train import resume as resume_training

            return resume_training(folder, overrides, progress)


def find_changes(
    out: Path, name: str | None, kind: JobKind, config: Config, *, only_new: Sequence[str] = ()
) -> list[str] | None:
    """The overrides by which the job that was begun under this name goes on as `config`; None without one.

    `only_new` are options of a new job. A sweep that was extended keeps its trials. Raises UserError for a
    bad name, for another kind of job, and for such an option of a job that has begun.
    """
    if name is None:
        return None
    check_name(name)
    folder = out / name
    found = job_kind(folder)
    if found is None:
        return None
    if only_new:
        raise UserError(f"{folder}: has begun; leave out {format_list(only_new)}, or give another --name")
    if found != kind:
        raise UserError(f"{folder}: holds a {found}, no {kind}; give another --name")
    # A job keeps the address of the copy of an own data set.
    config = with_own_store(config, out)
    before, now = (flatten(one) for one in (load_config(folder / CONFIG_FILE), config))
    changed = {path: value for path, value in now.items() if before.get(path, value) != value}
    if kind != "sweep":  # nothing of it is used
        changed = {path: value for path, value in changed.items() if not path.startswith("search.")}
    if changed.get(TRIALS, math.inf) < before.get(TRIALS, 0):
        del changed[TRIALS]
    # Lists and mappings are JSON already.
    return [
        f"{path}={value if str(value)[:1] in ('[', '{') else json.dumps(value)}"
        for path, value in changed.items()
    ]
