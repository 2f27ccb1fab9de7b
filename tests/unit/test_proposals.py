"""What is tried next: around the prior, by the sampler, and nothing twice."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from encsearch.config import Config, SearchConfig, require_search, with_values
from encsearch.errors import UserError
from encsearch.search.study.proposals import (
    DOUBT,
    Prior,
    count_points,
    is_exhausted,
    list_points,
    propose,
    recipe_prior,
    share_of_prior,
)
from encsearch.search.study.samplers import MAX_BEST, MAX_LEARNT, learnt_from
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study
from encsearch.search.trials import seeded_config

LR, K, CONTEXT = "optim.lr", "model.num_codewords", "model.context"
SPACE = {
    LR: {"loguniform": [1e-4, 1.0]},
    K: {"choice": [64, 8, 16, 32]},
    "loss.se_weight": {"uniform": [0.0, 1.0]},
    CONTEXT: {"choice": ["encoding", "gate", "none"]},
}


def search(space: dict[str, Any] = SPACE, **values: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": space, **values})


def drawn(prior: Prior, count: int = 400, space: dict[str, Any] = SPACE) -> list[dict[str, Any]]:
    asked = search(space)
    drafts = [propose(asked, number, [], {}, prior, 1.0, []) for number in range(count)]
    return [dict(draft.values) for draft in drafts if draft]


def test_proposals_lie_around_the_centre_on_the_scale_of_each_path() -> None:
    points = drawn(Prior(({LR: 0.01, K: 32, "loss.se_weight": 0.9, CONTEXT: "gate"},), {LR: 0.1}))

    logs = [math.log10(point[LR]) for point in points]
    assert np.mean(logs) == pytest.approx(-2, abs=0.1)
    assert np.std(logs) == pytest.approx(0.4, abs=0.06), "a tenth of four decades"
    numbers = Counter(point[K] for point in points)
    assert numbers[32] > numbers[16] > numbers[8]
    assert numbers[64] > numbers[8] > 0
    assert 0.6 < np.mean([point["loss.se_weight"] for point in points]) < 0.9, "cut off at the end"
    words = Counter(point[CONTEXT] for point in points)
    assert 0.6 < words["gate"] / len(points) < 0.73, "half, and a third of the rest"


def test_a_path_without_a_centre_is_drawn_uniformly() -> None:
    numbers = Counter(point[K] for point in drawn(Prior(({LR: 0.01},))))

    assert min(numbers.values()) > 70


def test_whole_numbers_are_whole_and_inside() -> None:
    space = {"model.channels": {"loginteger": [4, 64]}, "train.global_batch_size": {"integer": [2, 6]}}
    points = drawn(Prior(({"model.channels": 4, "train.global_batch_size": 6},)), space=space)

    assert {3, 4, 5, 6} <= {point["train.global_batch_size"] for point in points} <= {2, 3, 4, 5, 6}
    channels = [point["model.channels"] for point in points]
    assert all(isinstance(value, int) for value in channels)
    assert (min(channels), max(channels) <= 64) == (4, True)


def test_the_recipe_is_the_prior_where_the_space_spans_its_values(toy_config: Config) -> None:
    space = {**SPACE, K: {"choice": [8, 16]}}  # the recipe's 4 is beyond
    config = with_values(toy_config, {"search": {"space": space, "prior": {LR: {"at": 0.5, "width": 0.1}}}})

    prior = recipe_prior(config, require_search(config))

    assert prior == Prior(({LR: 0.5, "loss.se_weight": 0.2, CONTEXT: "encoding"},), {LR: 0.1})


@pytest.mark.parametrize("off", [False, "off"])
def test_the_prior_can_be_off(off: object) -> None:
    assert search(prior=off).prior.share == 0


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"optim.momentum": {"at": 0.9}}, "search.prior names optim.momentum, which is not in search.space"),
        ({LR: {"at": 2.0}}, "search.prior: optim.lr at 2.0 is outside search.space"),
        ({CONTEXT: {"at": "dense"}}, "search.prior: model.context at 'dense' is outside"),
        ({"share": 1}, "search.prior.share"),
        ({"paths": None, LR: {"at": 0.01}}, "search.prior.paths"),
    ],
)
def test_a_prior_outside_the_space_is_refused(
    toy_config: Config, prior: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_values(toy_config, {"search": {"space": SPACE, "prior": prior}})


def test_the_share_falls_with_the_prior_s_success_and_never_rises() -> None:
    good, bad = [0.8] * 20, [0.2] * 20
    assert share_of_prior(0.5, [], bad) == share_of_prior(0.5, good, []) == 0.5
    assert share_of_prior(0.5, good, bad) == 0.5
    assert share_of_prior(0.5, good, good) == 0.5
    assert share_of_prior(0.5, bad, good) < 0.1
    assert share_of_prior(0.5, bad[:1], good[:1]) > 0.35, "one pair says little"


def test_no_configuration_is_proposed_twice_and_an_exhausted_space_ends() -> None:
    space = {K: {"choice": [4, 8]}, CONTEXT: {"choice": ["none", "gate"]}}
    for sampler in ("tpe", "random", "qmc", "gp", "grid"):
        study = Study(MEMORY, sampler, search(space, sampler=sampler, startup_trials=2), epochs=1)
        study.believe(Prior(({K: 4},)))
        points = []
        for number in range(4):
            assert not study.is_exhausted()
            proposal = study.ask()
            assert proposal
            points.append(tuple(proposal.values.items()))
            if number % 2:  # the others still run
                study.report(number, 1, 0.5)
                study.complete(number)
        assert len(set(points)) == 4, sampler
        assert study.is_exhausted()
        assert study.ask() is None


def test_what_a_space_holds_follows_its_conditions() -> None:
    space = {
        CONTEXT: {"choice": ["encoding", "none"]},
        K: {"choice": [4, 8], "when": {CONTEXT: ["encoding"]}},
    }
    finite = search(space)
    points = list(list_points(finite.space))

    assert points == [{CONTEXT: "encoding", K: 4}, {CONTEXT: "encoding", K: 8}, {CONTEXT: "none"}]
    assert count_points(finite.space) == 3
    assert not is_exhausted(finite, points[:2])
    assert is_exhausted(finite, points)
    endless = search({**space, LR: SPACE[LR]})
    assert not is_exhausted(endless, points)
    assert count_points(endless.space) == math.inf


def test_a_quarter_of_the_samplers_proposals_is_uniform() -> None:
    """So that it does not settle on a poor part of the space."""

    def origins(**changes: Any) -> Counter[str | None]:
        study = Study(MEMORY, "uniform", search(SPACE, prior="off", **changes), epochs=1)
        for number in range(80):
            assert study.ask()
            study.report(number, 1, 0.5)
            study.complete(number)
        return Counter(trial.origin for trial in study.trials())

    assert 10 <= origins()["uniform"] <= 30
    assert origins(sampler="random").keys() == {"sampler"}


def test_numbers_of_a_choice_are_ordered_for_the_sampler() -> None:
    """All good trials have 16 or 64 of 10 numbers up to 512: what TPE proposes lies there or in between."""
    numbers = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    study = Study(
        MEMORY, "ordered", search({K: {"choice": numbers}, LR: SPACE[LR]}, prior="off", uniform=0.0), epochs=1
    )
    points = [{K: k, LR: 0.01 + place / 1000} for place, k in enumerate([16, 64] * 6 + [1, 2, 256, 512] * 4)]
    study.queue(points)
    for k in (point[K] for point in points):
        proposal = study.ask()
        assert proposal
        assert proposal.values[K] == k
        study.report(proposal.number, 1, float(k in (16, 64)))
        study.complete(proposal.number)

    proposed = [values[K] for values in study.would_ask(40)]

    assert sum(k in (8, 16, 32, 64, 128) for k in proposed) >= 26, "half of the numbers"
    assert 32 in proposed, "which it has never seen"


def test_a_space_that_is_exhausted_can_be_repeated_with_further_seeds() -> None:
    space = {K: {"choice": [4, 8]}}
    study = Study(MEMORY, "seeds", search(space, repeats="seeds", prior="off", startup_trials=2), epochs=1)
    for number in range(6):
        assert not study.is_exhausted()
        proposal = study.ask()
        assert proposal
        study.report(number, 1, proposal.values[K] / 10 + proposal.repeat / 100)
        study.complete(number)

    repeats: dict[int, list[int]] = {}
    for trial in study.trials():
        repeats.setdefault(trial.values[K], []).append(trial.repeat)
    assert all(counts == list(range(len(counts))) for counts in repeats.values())
    assert sum(map(len, repeats.values())) == 6


def test_a_grid_is_gone_through_again_and_a_flagged_repeat_keeps_its_seed() -> None:
    space = {K: {"choice": [4, 8]}}
    study = Study(MEMORY, "grid", search(space, sampler="grid", repeats="seeds"), epochs=1)
    asked = [study.ask() for _ in range(4)]
    points = [(proposal.values[K], proposal.repeat) for proposal in asked if proposal]
    assert sorted(points) == [(4, 0), (4, 1), (8, 0), (8, 1)]

    study.repeat(3)
    again, after = study.ask(), study.ask()
    assert again
    assert after
    assert (again.values[K], again.repeat) == points[3]
    assert after.repeat == 2, "a flagged trial's repeat has no seed of its own"


def test_a_repeat_has_the_next_seed(toy_config: Config) -> None:
    assert seeded_config(toy_config, {K: 8}, 0).train.seed == toy_config.train.seed
    assert seeded_config(toy_config, {K: 8}, 2).train.seed == toy_config.train.seed + 2


def test_the_priors_share_counts_every_pair_by_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        prior, sampler = ([rng.choice([0.1, 0.2, rng.random(), math.nan]) for _ in range(9)] for _ in "ab")
        pairs = [(a > b) + 0.5 * (a == b) for a in prior for b in sampler]
        believed = (9 * (sum(pairs) / len(pairs)) + DOUBT * 0.5) / (9 + DOUBT)
        assert share_of_prior(0.5, prior, sampler) == 0.5 * min(1.0, (2 * believed) ** 2)


def test_tpe_learns_from_the_best_and_the_newest_of_many_trials() -> None:
    def trial(number: int, value: float, epoch: int) -> FrozenTrial:
        state, curve = (TrialState.PRUNED, {epoch: value}) if epoch < 9 else (TrialState.COMPLETE, {})
        made = create_trial(state=state, value=value if epoch == 9 else None, intermediate_values=curve)
        made.number = number
        return made

    rng = random.Random(0)
    trials = [trial(number, rng.random(), rng.choice([1, 3, 9])) for number in range(2 * MAX_LEARNT)]
    tpe = SearchConfig.model_validate({"space": {"optim.lr": {"loguniform": [1e-3, 1e-1]}}})

    assert learnt_from(tpe, trials[:MAX_LEARNT]) == trials[:MAX_LEARNT], "a usual search loses none"
    known = learnt_from(tpe, trials)
    complete = sorted((t for t in trials if t.value is not None), key=lambda t: -float(t.value or 0))
    assert {t.number for t in complete[:MAX_BEST]} <= {t.number for t in known}
    assert known[-1] is trials[-1]
    assert [t.number for t in known] == sorted(t.number for t in known)
    assert MAX_LEARNT - MAX_BEST <= len(known) <= MAX_LEARNT
    others = tpe.model_copy(update={"sampler": "cmaes"})
    assert learnt_from(others, trials) == trials
