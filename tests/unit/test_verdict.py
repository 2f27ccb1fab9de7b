"""What a ranking says in words."""

from encsearch.report.facts import comparable
from encsearch.report.verdict import describe_winner
from encsearch.search.confirm.ranking import Configuration, rank
from encsearch.search.trials import Trial

TRIALS = (
    Trial(0, {}, "COMPLETE", 0.81, ((1, 0.81),), 1.0),
    Trial(1, {}, "COMPLETE", 0.75, ((1, 0.75),), 1.0),
    Trial(2, {}, "FAIL", 0.95, ((1, 0.95),), 1.0),
)


def config(trial: int | None, *values: float, parameters: int = 100) -> Configuration:
    name = "FCN" if trial is None else f"trial {trial}"
    return Configuration(name, trial, dict(enumerate(values, start=1)), parameters)


def told(*finalists: Configuration, baseline: Configuration | None = None, minimize: str = "") -> str:
    ranking = rank(finalists, [baseline] if baseline else [], minimize or None)
    return " ".join(describe_winner(ranking, "mIoU", comparable(TRIALS)))


def test_the_winner_has_its_mean_and_interval() -> None:
    text = told(config(0, 0.70, 0.72, 0.74), config(1, 0.60, 0.62, 0.64))

    assert "with 3 seeds, trial 0 reaches mIoU 72.00 % on average (95 % interval [6" in text
    assert "best lower 95 % bound of 2 finalists" in text
    assert "It is 10.00 points above trial 1 (95 % interval [+10.00, +10.00])." in text
    assert "cannot be told apart" not in text
    assert "Being the best of 2 means, its own may be too high, by at most 0.65 points on average." in text


def test_what_is_as_good_is_named() -> None:
    text = told(config(0, 0.70, 0.74), config(1, 0.73, 0.70), config(2, 0.72, 0.69))

    assert "With 95 % confidence it cannot be told apart from trial 1 and trial 2." in text


def test_a_smaller_winner_says_which_had_the_better_bound() -> None:
    text = told(config(0, 0.70, 0.74, parameters=2000), config(1, 0.73, 0.70, parameters=1000))

    assert "Trial 0 has the best lower 95 % bound" in text
    assert "wins by fewer parameters: 1,000 instead of 2,000" in text


def test_one_seed_tells_nothing_and_says_so() -> None:
    text = told(config(0, 0.7), config(1, 0.6), baseline=config(None, 0.5))

    assert "with 1 seed, trial 0 reaches mIoU 70.00 %." in text
    assert "whether it is really the best is not known" in text
    assert "It is 20.00 points above FCN; one seed each gives no interval." in text
    assert "95 %" not in text


def test_a_baseline_that_is_as_good_or_better_is_told_so() -> None:
    winner = config(0, 0.70, 0.72, 0.74)

    assert "above FCN (95 % interval" in told(winner, baseline=config(None, 0.60, 0.62, 0.65))
    assert "so the two cannot be told apart" in told(winner, baseline=config(None, 0.74, 0.72, 0.69))
    assert "It is 10.00 points below FCN" in told(winner, baseline=config(None, 0.80, 0.82, 0.84))


def test_the_maximum_of_the_search_is_never_what_to_expect() -> None:
    """A failed trial cannot be the best, however high it came."""
    text = told(config(0, 0.70, 0.72, 0.74))

    assert "81.00 % of trial 0, is the largest of 2 noisy values and so too high on average" in text
    assert "Here it is 9.00 points above the confirmed mean of trial 0, 72.00 %." in text


def test_the_bias_is_told_of_the_trial_that_had_the_maximum_also_when_another_won() -> None:
    text = told(config(0, 0.60, 0.62, 0.64), config(1, 0.70, 0.72, 0.74))

    assert "Here it is 19.00 points above the confirmed mean of trial 0, 62.00 %." in text


def test_the_bias_is_told_of_the_winner_where_the_best_trial_was_not_confirmed() -> None:
    assert "Here, though, it is 1.00 points below the confirmed mean of trial 1, 82.00 %." in told(
        config(1, 0.82)
    )


def test_with_two_objectives_the_front_is_left_to_people() -> None:
    text = told(config(0, 0.7, 0.8), config(1, 0.6, 0.7), minimize="latency_ms")

    assert "Pareto front of mIoU and latency_ms" in text
    assert "proposal" in text


def test_without_a_value_or_a_confirmation_nothing_is_promised() -> None:
    assert describe_winner(None, "mIoU", []) == ("No trial has a value: there is no winner.",)
    assert "Nothing was trained again from scratch" in describe_winner(None, "mIoU", comparable(TRIALS))[1]
