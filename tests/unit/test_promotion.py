"""The promotion gate: when a candidate takes the champion's place, and which figures the reasons give."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from encsearch.config import PromoteConfig
from encsearch.errors import UserError
from encsearch.tracking.registry.gate import (
    MEAN_IOU,
    Candidate,
    Figure,
    GateDecision,
    Pixels,
    check_floors,
    class_ious,
    decide,
    mean_iou,
    paired_gain,
    resampled_gains,
)

CLASSES = ("sky", "road", "car")
NUM_IMAGES = 40
GATE = PromoteConfig()


def pixels(quality: Sequence[float], *, seed: int = 0, number: int = NUM_IMAGES) -> Pixels:
    """(number, 3, 3): of each class about `quality` of the truth is found; the truth is the same always."""
    truth = np.random.default_rng(99).integers(200, 1000, (number, len(quality)))
    shares = np.array(quality) + np.random.default_rng(seed).normal(0, 0.05, truth.shape)
    found = np.rint(truth * shares.clip(0, 1)).astype(np.int64)
    return np.stack([found, truth, truth], axis=2)


def model(run_id: str, quality: Sequence[float], **others: str | float) -> Candidate:
    counts = pixels(quality, seed=len(run_id) + sum(map(ord, run_id)))
    return replace(Candidate(run_id, f"weights of {run_id}", counts), **others)


CHAMPION = model("old", (0.7, 0.7, 0.7), version="3")
BETTER = model("new", (0.8, 0.8, 0.8))


def failed(decision: GateDecision) -> list[str]:
    return [check.text for check in decision.checks if not check.passed]


def test_a_better_model_is_promoted_and_the_reasons_tell_the_figures() -> None:
    decision = decide(BETTER, CHAMPION, CLASSES, GATE)
    ours, theirs = mean_iou(BETTER.pixels.sum(axis=0)), mean_iou(CHAMPION.pixels.sum(axis=0))
    assert decision.gain
    assert decision.promote
    assert decision.reasons == (
        "40 labelled images",
        "3 of 3 classes trained and scored",
        "compared with the current model, version 3",
        f"mIoU {100 * ours:.2f} % against {100 * theirs:.2f} %: {100 * (ours - theirs):+.2f} points, with "
        f"0.95 confidence at least {100 * decision.gain.lower:+.2f} points, which reaches the margin of 0.00 "
        "points",
    )


def test_the_first_model_needs_no_rival_but_the_floors_and_the_images() -> None:
    decision = decide(BETTER, None, CLASSES, GATE)
    assert decision.promote
    assert decision.reasons[-1].startswith("no model to compare with; the candidate has mIoU 6")
    gate = PromoteConfig(min_images=41, class_floor={"car": 0.99})
    assert len(failed(decide(BETTER, None, CLASSES, gate))) == 2


def test_a_first_model_below_the_floor_is_refused_and_the_floor_can_be_set() -> None:
    weak = model("weak", (0.1, 0.1, 0.1))
    (reason,) = failed(decide(weak, None, CLASSES, GATE))
    assert reason.startswith("no model to compare with; the candidate has mIoU ")
    assert reason.endswith(" %, below promote.floor, 20.00 %")
    assert decide(weak, None, CLASSES, PromoteConfig(floor=0.01)).promote
    assert decide(weak, model("x", (0, 0, 0)), CLASSES, GATE).promote  # the floor is for the first one


def test_a_model_that_is_scored_on_too_few_classes_is_refused_with_their_names() -> None:
    counts = BETTER.pixels.copy()
    counts[:, 2] = 0
    unseen = replace(BETTER, pixels=counts)
    assert failed(decide(unseen, None, CLASSES, GATE)) == [
        "2 of 3 classes trained and scored (car not shown by the set), fewer than min_class_share=0.9"
    ]
    assert failed(decide(unseen, None, CLASSES, GATE, untrained=["sky"])) == [
        "1 of 3 classes trained and scored (sky without a training pixel; car not shown by the set), fewer "
        "than min_class_share=0.9"
    ]
    assert decide(unseen, None, CLASSES, PromoteConfig(min_class_share=0.6)).promote


def test_the_margin_is_for_the_lower_bound_and_not_for_the_gain() -> None:
    gain = paired_gain(BETTER.pixels, CHAMPION.pixels, 0.95, MEAN_IOU)
    assert gain.lower < gain.value
    between = PromoteConfig(margin=(gain.lower + gain.value) / 2)
    assert failed(decide(BETTER, CHAMPION, CLASSES, between))[0].endswith(
        f"which is not above 0 and at least the margin of {100 * between.margin:.2f} points"
    )
    assert decide(BETTER, CHAMPION, CLASSES, PromoteConfig(margin=gain.lower)).promote


def test_a_model_of_the_champions_predictions_gains_exactly_nothing_and_is_refused() -> None:
    twin = replace(CHAMPION, run_id="twin", weights="other")
    assert not np.any(resampled_gains(twin.pixels, CHAMPION.pixels, MEAN_IOU))
    decision = decide(twin, CHAMPION, CLASSES, GATE)
    assert decision.gain is not None
    assert (decision.gain.value, decision.gain.lower) == (0.0, 0.0)
    (reason,) = failed(decision)
    assert reason.endswith(
        "+0.00 points, with 0.95 confidence at least +0.00 points: the candidate is not better"
    )


def test_the_champion_itself_is_refused_by_its_run_and_by_its_weights() -> None:
    again = replace(CHAMPION, version=None)
    assert failed(decide(again, CHAMPION, CLASSES, GATE))[0] == (
        "run old is already the current model, version 3"
    )
    later = failed(decide(replace(again, weights="later"), CHAMPION, CLASSES, GATE))
    assert [reason for reason in later if "already" in reason] == [], "its run has gone on since"
    copy = replace(again, run_id="copy")
    assert failed(decide(copy, CHAMPION, CLASSES, GATE))[0] == (
        "its weights are those of the current model, version 3"
    )


def test_a_gain_that_one_image_makes_is_not_enough() -> None:
    lucky = CHAMPION.pixels.copy()
    lucky[0, :, 0] = lucky[0, :, 1]
    decision = decide(Candidate("lucky", "w", lucky), CHAMPION, CLASSES, GATE)
    assert decision.gain is not None
    assert decision.gain.value > 0
    assert not decision.promote


def test_a_class_that_falls_far_is_named_if_enough_images_show_it() -> None:
    uneven = model("uneven", (0.95, 0.95, 0.55))
    assert decide(uneven, CHAMPION, CLASSES, GATE).promote, "not checked unless asked"
    gate = PromoteConfig(max_class_drop=0.1)
    (reason,) = failed(decide(uneven, CHAMPION, CLASSES, gate))
    assert reason.startswith("car falls from IoU 5")
    assert reason.endswith("over max_class_drop=0.1")
    assert decide(uneven, CHAMPION, CLASSES, PromoteConfig(max_class_drop=0.1, min_class_images=41)).promote
    fine = decide(BETTER, CHAMPION, CLASSES, gate)
    assert any(text.startswith("no class falls beyond max_class_drop=0.1 (worst: ") for text in fine.reasons)


def test_floors_hold_by_name_and_for_all() -> None:
    uneven = model("uneven", (0.95, 0.95, 0.55))
    named = decide(uneven, None, CLASSES, PromoteConfig(class_floor={"car": 0.9, "sky": 0.5}))
    (reason,) = failed(named)
    assert reason.startswith("car has IoU 3")
    assert reason.endswith("below its floor of 90.00 %")
    assert len(failed(decide(uneven, None, CLASSES, PromoteConfig(class_floor=0.999)))) == 3
    assert decide(uneven, None, CLASSES, PromoteConfig(class_floor=0.2)).reasons[-1] == (
        "3 of 3 classes have a floor and reach it"
    )


def test_a_floor_of_a_class_that_no_image_shows_is_not_reached() -> None:
    without = BETTER.pixels.copy()
    without[:, 2] = 0
    gate = PromoteConfig(min_class_share=0, class_floor={"car": 0.1})
    assert failed(decide(replace(BETTER, pixels=without), None, CLASSES, gate)) == [
        "no image shows car, whose floor is 10.00 %"
    ]
    with pytest.raises(UserError, match="names cat, which is none of the model's 3 classes; try one of sky"):
        check_floors(PromoteConfig(class_floor={"cat": 0.1}), CLASSES)


def test_the_latency_is_told_with_the_place_where_it_was_measured() -> None:
    slow, fast = replace(BETTER, latency_ms=31.25), replace(CHAMPION, latency_ms=10.0)
    gate = PromoteConfig(latency_limit_ms=30)
    assert failed(decide(slow, fast, CLASSES, gate, "host (cpu)")) == [
        "31.25 ms an image, the current model, version 3 10 ms, measured on host (cpu): over the limit of"
        " 30 ms"
    ]
    assert decide(replace(slow, latency_ms=30.0), fast, CLASSES, gate, "host").promote


def test_all_that_speaks_against_a_candidate_is_told_at_once_and_first() -> None:
    worse = model("worse", (0.6, 0.6, 0.3), latency_ms=50.0)
    gate = PromoteConfig(
        margin=0.01,
        min_images=100,
        max_class_drop=0.2,
        class_floor={"road": 0.9, "sky": 0.1},
        latency_limit_ms=9,
    )
    decision = decide(worse, replace(CHAMPION, latency_ms=50.0), CLASSES, gate, "host")
    assert len(failed(decision)) == 5
    assert list(decision.reasons[:5]) == failed(decision)
    assert decision.reasons[0] == "the set has 40 labelled images, fewer than min_images=100"


def test_a_set_without_labels_is_no_set() -> None:
    empty = replace(BETTER, pixels=np.zeros((5, 3, 3), dtype=np.int64))
    with pytest.raises(UserError, match="0 of 5 images have a labelled pixel"):
        decide(empty, None, CLASSES, GATE)


def test_resampling_is_a_loop_over_drawn_images() -> None:
    ours, theirs = pixels((0.8, 0.5, 0.2), seed=1, number=7), pixels((0.7, 0.6, 0.2), seed=2, number=7)
    for counts in (ours, theirs):
        counts[1:, 2] = 0  # a class that most resamples lack
    rng = np.random.default_rng(5)
    expected = []
    for weights in rng.multinomial(7, np.full(7, 1 / 7), size=50):
        drawn = [image for image, times in enumerate(weights) for _ in range(times)]
        means = []
        for counts in (ours, theirs):
            ious = []
            for index in range(3):
                found, truth, predicted = (sum(int(counts[i, index, k]) for i in drawn) for k in range(3))
                if truth + predicted - found:
                    ious.append(found / (truth + predicted - found))
            means.append(sum(ious) / len(ious))
        expected.append(means[0] - means[1])
    assert resampled_gains(ours, theirs, MEAN_IOU, resamples=50, seed=5) == pytest.approx(expected, abs=1e-12)


def test_the_resamples_do_not_depend_on_how_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = resampled_gains(BETTER.pixels, CHAMPION.pixels, MEAN_IOU)
    monkeypatch.setattr("encsearch.tracking.registry.gate.WEIGHTS_AT_ONCE", 7 * NUM_IMAGES)
    assert resampled_gains(BETTER.pixels, CHAMPION.pixels, MEAN_IOU).tolist() == at_once.tolist()


def test_images_without_a_label_are_none() -> None:
    blank = np.zeros_like(BETTER.pixels)
    padded = [replace(m, pixels=np.concatenate([m.pixels, blank])) for m in (BETTER, CHAMPION)]
    assert decide(padded[0], padded[1], CLASSES, GATE) == decide(BETTER, CHAMPION, CLASSES, GATE)
    few = decide(padded[0], padded[1], CLASSES, PromoteConfig(min_images=41))
    assert failed(few) == ["the set has 40 labelled images, fewer than min_images=41"]


def test_so_few_images_that_luck_alone_favours_one_model_in_all_are_not_enough() -> None:
    for number, confidence, passes in ((4, 0.95, False), (5, 0.95, True), (2, 0.75, True), (9, 0.999, False)):
        gate = PromoteConfig(min_images=2, confidence=confidence)
        ours = replace(BETTER, pixels=BETTER.pixels[:number])
        decision = decide(ours, replace(CHAMPION, pixels=CHAMPION.pixels[:number]), CLASSES, gate)
        assert decision.promote == passes
        if not passes:
            assert failed(decision)[0].startswith(f"{number} labelled images, too few for {confidence}")
    alone = replace(BETTER, pixels=BETTER.pixels[:2])
    assert decide(alone, None, CLASSES, PromoteConfig(min_images=2)).promote


def test_a_class_that_truth_and_prediction_lack_does_not_count() -> None:
    sums = np.array([[5, 10, 5], [0, 0, 0], [0, 0, 3]])
    assert class_ious(sums) == {0: 0.5, 2: 0.0}
    assert mean_iou(sums) == 0.25


@pytest.mark.parametrize("number", [12, 30])
def test_without_a_true_gain_the_gate_lets_at_most_one_in_twenty_pass(number: int) -> None:
    """Both models are drawn alike; of 150 pairs 5 % are 7.5, and 99 % of such counts are below 15."""
    passed = 0
    for seed in range(150):
        ours, theirs = (pixels((0.7, 0.6, 0.5), seed=2 * seed + k, number=number) for k in (0, 1))
        passed += paired_gain(ours, theirs, 0.95, MEAN_IOU).lower > 0
    assert passed < 15


def test_a_true_gain_is_found() -> None:
    found = 0
    for seed in range(20):
        ours, theirs = pixels((0.75, 0.65, 0.55), seed=2 * seed), pixels((0.7, 0.6, 0.5), seed=2 * seed + 1)
        found += paired_gain(ours, theirs, 0.95, MEAN_IOU).lower > 0
    assert found >= 19


ACCURACY = Figure("accuracy", lambda sums: float(sums[0] / sums[1]))
BY_ACCURACY = PromoteConfig(figure="metric", floor=0.7, margin=0.02, max_class_drop=0.5)


def counted(model: Candidate, share: float) -> Candidate:
    """The model with own counts whose accuracy is about `share`."""
    found = np.random.default_rng(int(1000 * share)).normal(share, 0.05, NUM_IMAGES)
    return replace(model, own=np.stack([found, np.ones(NUM_IMAGES)], axis=1))


def test_an_own_figure_decides_in_place_of_mean_iou_which_is_kept_beside_it() -> None:
    worse, better = counted(BETTER, 0.5), counted(CHAMPION, 0.6)
    assert worse.own is not None
    decision = decide(worse, better, CLASSES, BY_ACCURACY, own=ACCURACY)
    assert not decision.promote
    assert decision.own == pytest.approx(worse.own[:, 0].mean())
    assert decision.own is not None
    assert decision.mean_iou == decide(BETTER, CHAMPION, CLASSES, GATE).mean_iou
    assert decision.reasons[0].startswith(f"accuracy {100 * decision.own:.2f} % against ")
    assert decision.reasons[0].endswith("the candidate is not better")
    assert not any("mIoU" in reason for reason in decision.reasons)
    assert decision.reasons[-1].startswith("no class falls beyond max_class_drop=0.5"), "classes are by IoU"
    turned = replace(better, version=None), replace(worse, version="4")
    assert decide(*turned, CLASSES, PromoteConfig(figure="metric"), own=ACCURACY).promote


def test_the_first_model_needs_the_floor_of_an_own_figure() -> None:
    (reason,) = failed(decide(counted(BETTER, 0.5), None, CLASSES, BY_ACCURACY, own=ACCURACY))
    assert reason.startswith("no model to compare with; the candidate has accuracy ")
    assert reason.endswith("below promote.floor, 70.00 %")
    assert decide(
        counted(model("weak", (0.1, 0.1, 0.1)), 0.8), None, CLASSES, BY_ACCURACY, own=ACCURACY
    ).promote


def test_of_pixel_counts_an_own_figure_gives_the_gains_of_mean_iou() -> None:
    gains, expected = (
        resampled_gains(BETTER.pixels, CHAMPION.pixels, figure, resamples=100)
        for figure in (Figure("same", mean_iou), MEAN_IOU)
    )
    assert gains == pytest.approx(expected, abs=1e-12)


def test_own_counts_may_have_any_shape() -> None:
    counts = np.random.default_rng(0).uniform(size=(NUM_IMAGES, 2, 3, 1))
    of_shapes = Figure("shapes", lambda sums: float(sums[0, 1, 0] / sums.sum()))
    of_numbers = Figure("numbers", lambda total: float(total) / NUM_IMAGES)
    for figure, ours in ((of_shapes, counts), (of_numbers, counts[:, 0, 0, 0])):
        assert resampled_gains(ours, ours[::-1], figure, resamples=20).shape == (20,)
        assert paired_gain(ours, ours, 0.95, figure).lower == 0


def test_images_without_a_label_are_left_out_of_an_own_figure() -> None:
    candidate = counted(BETTER, 0.5)
    assert candidate.own is not None
    padded = replace(
        candidate,
        pixels=np.concatenate([candidate.pixels, np.zeros((1, 3, 3), np.int64)]),
        own=np.concatenate([candidate.own, [[7.0, 7.0]]]),
    )
    found, expected = (decide(m, None, CLASSES, BY_ACCURACY, own=ACCURACY) for m in (padded, candidate))
    assert found == expected
