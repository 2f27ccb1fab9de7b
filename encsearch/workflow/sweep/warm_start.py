"""`--warm-start-from`: a sweep learns from the trials of another."""

import os
from pathlib import Path

from encsearch.config import Config, find_active, flatten, require_search
from encsearch.errors import UserError
from encsearch.redaction import without_secrets
from encsearch.search.study.study import Study, trials_at
from encsearch.search.trials import Trial
from encsearch.text import format_count
from encsearch.workflow.sweep.folder import JOURNAL_FILE, STORAGE_VARIABLE, reopen

# Sections that affect a trial's metric.
COMPARED = ("augment.", "model.", "loss.", "optim.", "train.")


def learn_from(source: Path, study: Study, config: Config, fingerprint: str) -> str:
    """Import the trials of the sweep in `source` that lie in this one's space; return a line with the number.

    A resume imports nothing: the source may have continued since, or be deleted.
    """
    if study.num_learnt is None:
        study.learn(source.name, previous_trials(source, config, fingerprint))
    return f"the sampler knows {format_count(study.num_learnt, 'trial')} of {source.name}"


def previous_trials(source: Path, config: Config, fingerprint: str) -> tuple[Trial, ...]:
    """The ended trials of the sweep in `source` that lie in the space of `config`.

    Raises UserError when there are none, or when anything except the searched values differs.
    """
    before, place = reopen(source)
    search_before, space = require_search(before), require_search(config).space
    if place.fingerprint != fingerprint:
        raise UserError(
            f"--warm-start-from {source}: its trials are not comparable, its data is different "
            f"({place.fingerprint[:12]}, not {fingerprint[:12]})"
        )
    searched = search_before.space.keys() | space.keys()
    theirs, ours = flatten(before), flatten(config)
    for path in sorted(theirs.keys() | ours.keys()):
        is_compared = path in ("metric", "search.minimize") or path.startswith(COMPARED)
        if is_compared and path not in searched and theirs.get(path) != ours.get(path):
            raise UserError(
                f"--warm-start-from {source}: its trials are not comparable, {path} is {theirs.get(path)} "
                f"there and {ours.get(path)} here"
            )
    database = os.environ.get(STORAGE_VARIABLE, "")
    if place.storage and place.storage != without_secrets(database):
        raise UserError(
            f"--warm-start-from {source}: its study is in {place.storage}; set {STORAGE_VARIABLE} to that"
        )
    journal = source / JOURNAL_FILE
    if not place.storage and not journal.exists():
        raise UserError(f"--warm-start-from {source}: {journal.name} is missing")
    trials = trials_at(database if place.storage else str(journal), place.name, search_before)
    fitting = [
        trial
        for trial in trials
        if trial.state in ("COMPLETE", "PRUNED")
        and not trial.refused
        and trial.curve
        and trial.values.keys() == set(find_active(space, trial.values))
        and all(space[path].holds(value) for path, value in trial.values.items())
    ]
    if not fitting:
        raise UserError(
            f"--warm-start-from {source}: none of its {len(trials)} trials lies in this sweep's space"
        )
    return tuple(fitting)
