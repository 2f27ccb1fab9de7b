"""The report's first page says what is known, and that the rest is not."""

import dataclasses
from typing import Any

import pytest
import yaml

from encsearch.report.facts import (
    best_of,
    classify_trial,
    common_epoch,
    comparable,
    finalists_cost,
    find_stragglers,
    search_cost,
)
from encsearch.report.summary import SweepSummary
from encsearch.report.verdict import describe_rivals, headline, tiles
from encsearch.report.words import (
    describe_cost,
    describe_ending,
    describe_fates,
    describe_left_out,
    describe_search,
    describe_stragglers,
    paragraphs,
)
from encsearch.search.trials import Trial
from tests.unit.summaries import TRIALS, finalist, seeds, summary, values

BASELINE = {"trial": None, "label": "FCN"}


def changed(number: int, **fields: Any) -> tuple[Any, ...]:
    """TRIALS with one of them changed."""
    return tuple(dataclasses.replace(t, **fields) if t.number == number else t for t in TRIALS)


def won(given: SweepSummary) -> tuple[str, ...]:
    return dict(paragraphs(given))["What won, and how sure"]


def best_of_search(given: SweepSummary) -> Trial | None:
    best = best_of(comparable(given.trials, given.excluded))
    return best and best[1]


def test_what_was_searched_names_ranges_goals_and_fates() -> None:
    first, method, last = describe_search(summary())
    assert first == (
        "4 trials searched model.num_codewords (8, 16, 32 or 64), loss.se_weight (0 to 1) and optim.lr "
        "(0.001 to 0.1, on a log scale) for the highest mIoU."
    )
    assert method == "The values came from TPE; ASHA paused every trial at a rung, and the best went on."
    assert last == "Outcomes: 2 ran to the end, 1 stopped early and 1 failed."


def test_fates_tell_a_budget_from_a_limit_from_the_scheduler() -> None:
    ended = changed(1, reason="the wall budget is spent")
    assert "1 ended by the budget" in describe_fates(summary(trials=ended))
    refused = changed(1, reason="too large", refused=True)
    assert "1 refused by a limit" in describe_fates(summary(trials=refused))


def test_two_objectives_say_that_early_stopping_does_not_apply() -> None:
    sentences = describe_search(summary({"minimize": "parameters", "scheduler": "none"}))
    assert sentences[0].endswith("for the highest mIoU and the fewest parameters.")
    assert any("does not apply to two objectives" in sentence for sentence in sentences)


def test_a_condition_of_a_path_is_told() -> None:
    space = {
        "model.context": {"choice": ["encoding", "gate"]},
        "model.num_codewords": {"choice": [8, 16], "when": {"model.context": ["encoding"]}},
    }
    assert "(8 or 16, where model.context is encoding)" in describe_search(summary({"space": space}))[0]


def test_warm_start_is_told() -> None:
    assert any(
        "the trials of older" in sentence for sentence in describe_search(summary(warm_started="older"))
    )


def test_headline_of_one_finalist_does_not_call_it_the_best() -> None:
    assert (
        headline(summary())
        == "Trial 2 wins with mIoU 45.00 %; no other configuration was confirmed beside it."
    )


def test_one_seed_each_cannot_tell_the_best() -> None:
    rows = (finalist(0.45), finalist(0.40, trial=0))
    assert "it is not known whether it is the best" in headline(summary(finalists=rows))


def test_configurations_as_good_as_the_winner_are_named() -> None:
    rows = (*seeds(0.44, 0.46, 0.45), *seeds(0.46, 0.43, 0.44, trial=0))
    both = summary(finalists=rows)
    assert headline(both).endswith("but is indistinguishable from trial 0.")
    (sentence,) = describe_rivals(both)
    assert sentence.startswith("Trial 0 (mIoU 44.33 %; model.num_codewords=8")
    assert tiles(both)[1][1:] == ("not certain", "not told apart from 1 of 1 other finalist")


def test_a_clear_winner_is_told_apart() -> None:
    rows = (*seeds(0.45, 0.46, 0.47), *seeds(0.30, 0.31, 0.32, trial=0))
    assert headline(summary(finalists=rows)).endswith("and is told apart from 1 other finalist.")
    assert describe_rivals(summary(finalists=rows)) == ("No other finalist.",)


def test_what_to_expect_is_the_finalists_not_the_searchs_maximum() -> None:
    label, figure, _ = tiles(summary())[0]
    assert (label, figure) == ("mIoU to expect", "45.00 %")
    assert any("50.00 %" in sentence and "too high" in sentence for sentence in won(summary()))


def test_nothing_confirmed_promises_nothing() -> None:
    bare = summary(finalists=(), winner=None)
    assert headline(bare) == "Nothing was confirmed; trial 2 was the best of the search, which proves little."
    assert "expect less" in won(bare)[-1]
    assert tiles(bare)[0][1] == "-"


def test_a_sweep_without_a_value_has_no_winner() -> None:
    assert headline(summary(trials=TRIALS[3:], finalists=(), winner=None)).endswith("there is no winner.")


def test_failed_and_flagged_trials_are_never_the_best() -> None:
    assert best_of_search(summary()) == TRIALS[2]
    assert best_of_search(summary(flags={2: "changed midway"})) == TRIALS[0]
    assert best_of_search(summary({"flagged": "keep"}, flags={2: "changed midway"})) == TRIALS[2]


def test_cost_is_that_of_all_devices_the_finalists_included() -> None:
    # Finalists: 60 s with 2 workers, 1 CPU each.
    assert (search_cost(summary()), finalists_cost(summary())) == (160, 120)
    first, booked, wall, epochs = describe_cost(summary())
    assert booked == "These are booked CPUs times the seconds of their epochs, idle or not."
    assert first.startswith("280 CPU-seconds: 160 CPU-seconds for the search, 120 CPU-seconds for 1 training")
    assert wall == "From start to end it took 7 min."
    assert epochs == "The trials ran 8 of the 12 epochs that they would have taken to the end."


def test_a_price_makes_a_cost_in_money_and_of_a_point_over_the_first_trial() -> None:
    priced = summary()
    scaled = yaml.safe_load(priced.config_yaml) | {"scaling": {"price_per_hour": 36.0}}
    first, _, point, *_ = describe_cost(dataclasses.replace(priced, config_yaml=yaml.safe_dump(scaled)))
    assert first.startswith("280 CPU-seconds, 2.80 in money: ")
    gain = max(t.value for t in TRIALS if t.value and t.state != "FAIL") - TRIALS[0].value
    assert point.startswith("Over the first trial the search gained ")
    assert point.endswith(f": {2.8 / (100 * gain):.2f} in money a point.")


def test_what_was_left_out_is_counted_by_cause() -> None:
    trials = (
        *changed(1, refused=True, reason="too large"),
        dataclasses.replace(TRIALS[0], number=4, rerun_of=0),
    )
    assert describe_left_out(summary(trials=trials, flags={0: "changed midway"})) == (
        "Trial 0 ran under other conditions and is left out of the choice (search.flagged=exclude).",
        "Run again for this reason: 4 (repeats 0).",
        "Trial 1 exceeded search.limits.",
        "Trial 3 failed.",
        "The reasons are below.",
    )
    assert describe_left_out(summary(trials=TRIALS[:3])) == ("Nothing: every trial counts.",)


def test_the_end_is_told_with_what_would_have_come_next() -> None:
    assert describe_ending(summary()) == ("All 4 trials of the budget were run.",)
    assert describe_ending(summary(trials=TRIALS[:3])) == (
        "After 3 trials of 4 there was nothing left to try.",
    )
    spent = summary(trials=TRIALS[:3], ended_by="the wall budget of 2 h is spent", next_values=(values(64),))
    assert describe_ending(spent) == (
        "After 3 trials of 4: the wall budget of 2 h is spent.",
        "It would have tried next: (model.num_codewords=64, loss.se_weight=0.2, optim.lr=0.01).",
    )


def test_refused_and_repeated_trials_are_none_of_the_budget() -> None:
    trials = (
        *changed(1, refused=True, reason="too large", curve=()),
        dataclasses.replace(TRIALS[0], rerun_of=0),
    )

    assert describe_ending(summary(trials=trials)) == ("After 3 trials of 4 there was nothing left to try.",)
    assert describe_cost(summary(trials=trials))[-1] == (
        "The trials ran 10 of the 12 epochs that they would have taken to the end."
    )


def test_a_sweep_that_took_longer_than_its_budget_says_so() -> None:
    overrun = describe_ending(summary({"budget": {"trials": 4, "wall": 399}}))

    assert overrun[1:] == (
        "It took 7 min, over its wall budget of 7 min: "
        "the finalists took longer than the time reserved for them.",
    )
    assert len(describe_ending(summary({"budget": {"trials": 4, "wall": 400}}))) == 1


def test_a_second_objective_is_told_as_low_and_not_as_few() -> None:
    text = " ".join(describe_search(summary({"minimize": "latency_ms", "scheduler": "none"})))

    assert "for the highest mIoU and the lowest latency_ms." in text


def test_stragglers_are_those_over_twice_the_median_pace() -> None:
    slow = changed(1, seconds=21.0)
    (found,) = find_stragglers(slow)
    assert (found.number, found.ratio) == (1, pytest.approx(2.1))
    assert "trial 1 (21 s, 2.1 times)" in describe_stragglers((found,))
    assert find_stragglers(changed(1, seconds=20.0)) == ()


def test_common_epoch_is_the_last_that_most_trials_reached() -> None:
    assert common_epoch(TRIALS) == 1, "half of the trials went on, and those were the better ones"
    assert common_epoch(TRIALS[:1]) == 3
    assert common_epoch(()) is None


def test_a_refused_trial_is_not_taken_for_a_stopped_one() -> None:
    refused = dataclasses.replace(TRIALS[1], refused=True, reason="too slow")
    assert classify_trial(refused, summary()) == "refused"
    assert classify_trial(TRIALS[1], summary()) == "pruned"
