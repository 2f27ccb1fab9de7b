"""What a sweep takes from an earlier one: its trials to learn from, or its best ones as the prior."""

import math
import os
from pathlib import Path

from encsearch.config import Config, SearchConfig, find_active, flatten, require_search
from encsearch.errors import UserError
from encsearch.redaction import without_user
from encsearch.search.study.proposals import Prior, recipe_prior
from encsearch.search.study.study import Study, trials_at
from encsearch.search.trials import Trial
from encsearch.text import format_count, format_list, format_share
from encsearch.workflow.sweep.folder import JOURNAL_FILE, STORAGE_VARIABLE, StudyPlace, reopen

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
    trials = _read_trials(source, place, search_before, "--warm-start-from")
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


def set_prior(study: Study, config: Config, prior_from: Path | None) -> str | None:
    """Set the study's prior, unless it has one: the best of another sweep, or the recipe's own values.

    Returns a line that says where it lies and what it leaves out; None where no proposal comes from it.
    """
    search = study.search
    if study.prior is None:
        study.believe(earlier_prior(prior_from, search) if prior_from else recipe_prior(config, search))
    assert study.prior is not None
    if search.prior.share == 0 or search.sampler == "grid":
        return None
    if prior_from:
        best = format_count(len(study.prior.centers), "best trial")
        where = f"around the {best} of {prior_from.name}"
    else:
        where = "around the recipe's values"
    known = {path for center in study.prior.centers for path in center}
    missing = [path for path in search.space if path not in known]
    share = format_share(search.prior.share)
    left_out = f"; not for {format_list(missing)}, whose value the space does not span" if missing else ""
    return f"prior: up to {share} of the proposals lie {where}{left_out}"


def earlier_prior(source: Path, search: SearchConfig) -> Prior:
    """The values of the best quarter of the trials of the sweep in `source`, which may be of other data.

    Raises UserError when no trial has a value that the space of `search` spans.
    """
    before, place = reopen(source)
    trials = _read_trials(source, place, require_search(before), "--prior-from")
    ended = [t for t in trials if t.state in ("COMPLETE", "PRUNED") and not t.refused and t.value is not None]
    ended.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))
    centers = []
    for trial in ended[: math.ceil(len(ended) / 4)]:
        center = {
            path: value
            for path, value in trial.values.items()
            if path in search.space and search.space[path].spans(value)
        }
        if center:
            centers.append(center)
    if not centers:
        raise UserError(f"--prior-from {source}: none of its {len(trials)} trials says where to search here")
    return Prior(tuple(centers), {path: belief.width for path, belief in search.prior.paths.items()})


def _read_trials(source: Path, place: StudyPlace, search: SearchConfig, option: str) -> tuple[Trial, ...]:
    database = os.environ.get(STORAGE_VARIABLE, "")
    if place.storage and place.storage != without_user(database):
        raise UserError(f"{option} {source}: its study is in {place.storage}; set {STORAGE_VARIABLE} to that")
    journal = source / JOURNAL_FILE
    if not place.storage and not journal.exists():
        raise UserError(f"{option} {source}: {journal.name} is missing")
    return trials_at(database if place.storage else str(journal), place.name, search)
