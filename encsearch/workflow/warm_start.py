"""`--warm-start-from`: a sweep's trials as knowledge of another."""

import os
from pathlib import Path

from encsearch.config import Config, flatten
from encsearch.errors import UserError
from encsearch.search.study.study import Study
from encsearch.search.trials import TrialRecord
from encsearch.workflow.sweep_folder import JOURNAL_FILE, STORAGE_VARIABLE, reopen

# Sections that decide a trial's figure.
COMPARED = ("augment.", "model.", "loss.", "optim.", "train.")


def learn_from(source: Path, study: Study, config: Config, fingerprint: str) -> str:
    """Take over the trials of the sweep in `source` that lie in this one's space; says how many."""
    trials = previous_trials(source, config, fingerprint)
    study.learn(source.name, trials)
    return f"the sampler knows {len(trials)} trials of {source.name}"


def previous_trials(source: Path, config: Config, fingerprint: str) -> tuple[TrialRecord, ...]:
    """The ended trials of the sweep in `source` that lie in the space of `config`.

    Raises UserError when there are none, or when anything else than the searched values was different.
    """
    assert config.search
    before, place = reopen(source)
    assert before.search
    if place.fingerprint != fingerprint:
        raise UserError(
            f"--warm-start-from {source}: its trials do not compare, the data there was another "
            f"({place.fingerprint[:12]}, not {fingerprint[:12]})"
        )
    searched = before.search.space.keys() | config.search.space.keys()
    theirs, ours = flatten(before), flatten(config)
    for path in sorted(theirs.keys() | ours.keys()):
        is_compared = path == "metric" or path.startswith(COMPARED)
        if is_compared and path not in searched and theirs.get(path) != ours.get(path):
            raise UserError(
                f"--warm-start-from {source}: its trials do not compare, {path} is {theirs.get(path)} there "
                f"and {ours.get(path)} here"
            )
    if place.storage and STORAGE_VARIABLE not in os.environ:
        raise UserError(
            f"--warm-start-from {source}: its study is in {place.storage}; set {STORAGE_VARIABLE} to that"
        )
    storage = os.environ[STORAGE_VARIABLE] if place.storage else str(source / JOURNAL_FILE)
    records = Study(storage, place.name, before.search, before.train.epochs).records()
    space = config.search.space
    fitting = [
        record
        for record in records
        if record.state in ("COMPLETE", "PRUNED")
        and not record.refused
        and record.curve
        and record.values.keys() == space.keys()
        and all(space[path].holds(value) for path, value in record.values.items())
    ]
    if not fitting:
        raise UserError(
            f"--warm-start-from {source}: none of its {len(records)} trials lies in the space here"
        )
    return tuple(fitting)
