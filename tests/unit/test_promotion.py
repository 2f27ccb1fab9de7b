"""The promotion gate: when a candidate takes the champion's place, and which figures the reasons give."""

import math

import pytest

from encsearch.tracking.promotion import Candidate, decide


def model(run_id: str, mean_iou: float, version: str | None = None) -> Candidate:
    return Candidate(run_id=run_id, mean_iou=mean_iou, version=version)


CHAMPION = model("old", 0.55, version="3")


def test_the_first_model_is_promoted() -> None:
    decision = decide(model("new", 0.1), None, margin=0.5)
    assert decision.promote
    assert decision.reasons == ("there is no champion yet; the candidate has mIoU 0.1000",)


@pytest.mark.parametrize(
    ("mean_iou", "margin", "promote"),
    [
        (0.56, 0.0, True),
        (0.55, 0.0, False),  # equal is not better
        (0.54, 0.0, False),
        (0.57, 0.02, True),  # a gain of exactly the margin, 0.0199999... in binary
        (0.5699, 0.02, False),
        (0.50, 0.02, False),
    ],
)
def test_a_gain_of_the_margin_is_needed_and_equal_is_not_better(
    mean_iou: float, margin: float, promote: bool
) -> None:
    assert decide(model("new", mean_iou), CHAMPION, margin).promote is promote


def test_the_reasons_give_both_scores_the_gain_and_the_margin() -> None:
    decision = decide(model("new", 0.56), CHAMPION, margin=0.02)
    assert decision.reasons == (
        "mIoU 0.5600 against the champion's 0.5500 (version 3) on the same data: +0.0100",
        "the gain is below the margin of 0.0200",
    )


def test_the_champion_is_not_promoted_over_itself() -> None:
    decision = decide(model("old", 0.55), CHAMPION, margin=0.0)
    assert not decision.promote
    assert decision.reasons == ("run old is already the champion (version 3)",)


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_diverged_model_is_never_promoted(champion: Candidate | None) -> None:
    assert not decide(model("new", math.nan), champion, margin=0.0).promote
