"""Scores come from counts that add up, and absent classes are treated by a stated rule."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from encsearch.errors import UserError
from encsearch.metrics import Scores, confusion_matrix, scores
from encsearch.metrics.boundary import band_width, boundary_counts
from encsearch.metrics.confusion import class_accuracy, frequency_weighted_iou
from encsearch.metrics.presence import average_precision, presence_scores
from encsearch.metrics.sizes import size_counts

IGNORE = 255


def patches(shape: tuple[int, int, int], num_classes: int, seed: int, ignored: float = 0.0) -> Tensor:
    """Label maps (B, H, W) of squares of 4 px, a share of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = shape
    coarse = torch.randint(num_classes, (batch, -(-height // 4), -(-width // 4)), generator=generator)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].clone()
    labels[torch.rand(shape, generator=generator) < ignored] = IGNORE
    return labels


def test_matrix_is_a_count_of_pixels_by_truth_and_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 7, 5), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    predictions = torch.randint(0, 4, (3, 7, 5), generator=generator)
    expected = [[0] * 4 for _ in range(4)]
    for truth, prediction in zip(labels.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        if truth != 255:
            expected[truth][prediction] += 1
    found = confusion_matrix(labels, predictions, 4)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_matrices_of_parts_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 3, (2, 6, 8, 8), generator=generator)
    parts = [confusion_matrix(labels[i : i + 2], predictions[i : i + 2], 3) for i in (0, 2, 4)]
    assert torch.equal(sum(parts), confusion_matrix(labels, predictions, 3))


def test_nothing_labelled_gives_a_matrix_of_zeros() -> None:
    labels = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    assert confusion_matrix(labels, torch.zeros(1, 4, 4, dtype=torch.int64), 2).tolist() == [[0, 0], [0, 0]]


def test_scores_are_hits_over_union() -> None:
    confusion = torch.tensor([[6, 2], [1, 3]])
    result = scores(confusion, ["road", "car"], {"things": ["car"]})
    assert result.pix_acc == pytest.approx(9 / 12)
    assert result.class_iou == pytest.approx({"road": 6 / 9, "car": 3 / 6})
    assert result.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.group_iou == pytest.approx({"things": 3 / 6})


def test_absent_class_is_left_out_and_a_wrongly_predicted_one_counts_as_zero() -> None:
    confusion = torch.tensor([[8, 0, 2], [0, 0, 0], [0, 0, 0]])
    groups = {"known": ["a", "b"], "absent": ["b"], "predicted": ["b", "c"]}
    result = scores(confusion, ["a", "b", "c"], groups)
    assert result.class_iou == {"a": 0.8, "c": 0.0}
    assert result.mean_iou == pytest.approx(0.4)
    assert result.group_iou == {"known": 0.8, "predicted": 0.0}


def test_counts_beyond_float32_stay_exact() -> None:
    confusion = torch.tensor([[2**40 + 1, 0], [0, 2**40]])
    assert scores(confusion, ["a", "b"], {}).pix_acc == 1


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(UserError, match="0 labelled pixels"):
        scores(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"], {})


def test_metrics_are_named_as_recipes_name_them() -> None:
    metrics = Scores(pix_acc=0.9, mean_iou=0.5, class_iou={"a": 0.5}, group_iou={"things": 0.4}).to_metrics()
    assert metrics == {"mIoU": 0.5, "pixAcc": 0.9, "mIoU/things": 0.4}


def test_scores_agree_with_torchmetrics() -> None:
    labels, predictions = patches((3, 21, 30), 5, seed=1, ignored=0.2), patches((3, 21, 30), 5, seed=2)
    names = list("abcde")
    confusion = confusion_matrix(labels, predictions, 5)
    found = scores(confusion, names, {})
    jaccard = multiclass_jaccard_index(predictions, labels, 5, average="none", ignore_index=IGNORE)
    accuracy = multiclass_accuracy(predictions, labels, 5, average="none", ignore_index=IGNORE)
    weighted = multiclass_jaccard_index(predictions, labels, 5, average="weighted", ignore_index=IGNORE)
    micro = multiclass_accuracy(predictions, labels, 5, average="micro", ignore_index=IGNORE)

    assert list(found.class_iou.values()) == pytest.approx(jaccard.tolist())
    assert list(class_accuracy(confusion, names).values()) == pytest.approx(accuracy.tolist())
    assert frequency_weighted_iou(confusion, found.class_iou, names) == pytest.approx(weighted.item())
    assert found.pix_acc == pytest.approx(micro.item())


def test_what_the_truth_lacks_has_no_accuracy_and_no_weight() -> None:
    confusion = torch.tensor([[8, 0, 2], [0, 0, 0], [0, 0, 0]])
    assert class_accuracy(confusion, ["a", "b", "c"]) == {"a": 0.8}
    assert frequency_weighted_iou(confusion, {"a": 0.8, "c": 0.0}, ["a", "b", "c"]) == 0.8


def naive_band(classes: Tensor, labelled: Tensor) -> set[tuple[int, int]]:
    """One image, by the definition: every pixel looks at all others within reach."""
    height, width = classes.shape
    reach = max(1, round(0.02 * math.hypot(height, width)))
    band = set()
    for y, x in product(range(height), range(width)):
        for near_y, near_x in product(range(y - reach, y + reach + 1), range(x - reach, x + reach + 1)):
            inside = 0 <= near_y < height and 0 <= near_x < width
            if not inside or (labelled[near_y, near_x] and classes[near_y, near_x] != classes[y, x]):
                band.add((y, x))
    return {(y, x) for y, x in band if labelled[y, x]}


@pytest.mark.parametrize(("height", "width"), [(40, 60), (17, 5), (1, 1)])
def test_boundary_counts_are_those_of_the_definition(height: int, width: int) -> None:
    labels = patches((2, height, width), 3, seed=1, ignored=0.1)
    predictions = patches((2, height, width), 3, seed=2)
    expected = np.zeros((3, 2), dtype=int)
    for truth, found in zip(labels, predictions, strict=True):
        labelled = truth != IGNORE
        bands = [naive_band(classes, labelled) for classes in (truth, found)]
        for index in range(3):
            of_truth = {(y, x) for y, x in bands[0] if truth[y, x] == index}
            of_found = {(y, x) for y, x in bands[1] if found[y, x] == index}
            expected[index] += len(of_truth & of_found), len(of_truth | of_found)

    assert boundary_counts(labels, predictions, 3).tolist() == expected.tolist()


def test_the_band_is_two_percent_of_the_diagonal_wide() -> None:
    assert band_width(360, 480) == 12
    assert band_width(8, 8) == 1
    labels = torch.zeros(1, 360, 480, dtype=torch.int64)
    assert boundary_counts(labels, labels, 1).tolist() == [[360 * 480 - 336 * 456] * 2]


def test_ignored_pixels_make_no_boundary() -> None:
    labels = torch.zeros(1, 9, 9, dtype=torch.int64)
    labels[0, 3:6, 3:6] = IGNORE
    frame = 9 * 9 - 7 * 7
    assert boundary_counts(labels, torch.zeros_like(labels), 1).tolist() == [[frame, frame]]


def test_boundary_iou_sees_an_outline_that_region_iou_does_not() -> None:
    labels = torch.zeros(1, 100, 100, dtype=torch.int64)
    labels[:, 10:90, 10:90] = 1
    predictions = torch.zeros_like(labels)
    predictions[:, 12:88, 12:88] = 1
    region = scores(confusion_matrix(labels, predictions, 2), ["out", "in"], {}).class_iou["in"]
    common, union = boundary_counts(labels, predictions, 2)[1].tolist()
    assert region > 0.9
    assert common / union < 0.4


SIZES = (0.01, 0.1)  # of 20 x 20 pixels: medium from 4, large from 40


def squares(*corners: tuple[int, int, int, int]) -> Tensor:
    """(1, 20, 20): class 1 where rows top to bottom and columns left to right are given, else 0."""
    labels = torch.zeros(1, 20, 20, dtype=torch.int64)
    for top, bottom, left, right in corners:
        labels[0, top:bottom, left:right] = 1
    return labels


def test_objects_are_counted_by_their_size() -> None:
    labels = squares((0, 1, 0, 3), (4, 6, 4, 6), (10, 18, 10, 15))  # 3, 4 and 40 pixels
    found = size_counts(labels, labels, 2, SIZES)
    assert found[:, 1].tolist() == [[3, 3, 0], [4, 4, 0], [40, 40, 0]]


def test_a_missed_object_lowers_the_recall_of_its_size_alone() -> None:
    labels, predictions = squares((0, 1, 0, 3), (10, 18, 10, 15)), squares((10, 18, 10, 15))
    assert size_counts(labels, predictions, 2, SIZES)[:, 1].tolist() == [[0, 3, 0], [0, 0, 0], [40, 40, 0]]


def test_corners_join_an_object() -> None:
    labels = squares((0, 2, 0, 1), (2, 4, 1, 2))
    assert size_counts(labels, labels, 2, SIZES)[:, 1].tolist() == [[0, 0, 0], [4, 4, 0], [0, 0, 0]]


def test_a_false_pixel_has_the_size_of_the_object_that_it_was_predicted_with() -> None:
    labels = squares((0, 1, 0, 3))
    around = squares((0, 2, 0, 3))  # reaches over a small object by 3 pixels
    elsewhere = squares((0, 1, 0, 3), (10, 18, 10, 15))  # invents a large one
    assert size_counts(labels, around, 2, SIZES)[:, 1].tolist() == [[3, 3, 3], [0, 0, 0], [0, 0, 0]]
    assert size_counts(labels, elsewhere, 2, SIZES)[:, 1].tolist() == [[3, 3, 0], [0, 0, 0], [0, 0, 40]]


def test_sizes_together_are_the_common_counts() -> None:
    labels, predictions = patches((4, 30, 41), 4, seed=1, ignored=0.2), patches((4, 30, 41), 4, seed=2)
    confusion = confusion_matrix(labels, predictions, 4)
    hits, truth, found = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)

    counts = size_counts(labels, predictions, 4, (0.02, 0.03))

    assert counts.sum(dim=0).tolist() == torch.stack([hits, truth, found - hits], dim=1).tolist()
    assert (counts[:, :, 1].sum(dim=1) > 0).all(), "the case has objects of every size"


@pytest.mark.parametrize("digits", [1, 7])
def test_average_precision_agrees_with_scikit_learn_also_for_ties(digits: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        probabilities = generator.random(17).round(digits)
        present = generator.random(17) < 0.4
        present[3] = True
        expected = average_precision_score(present, probabilities)
        assert average_precision(torch.tensor(probabilities), torch.tensor(present)) == pytest.approx(
            expected
        )


def test_presence_is_scored_by_class_and_at_one_half() -> None:
    probabilities = torch.tensor([[0.9, 0.2, 0.1], [0.6, 0.5, 0.1], [0.4, 0.1, 0.1]])
    present = torch.tensor([[True, True, False], [False, True, False], [True, False, False]])

    found = presence_scores(probabilities, present, ["a", "b", "c"])

    assert found.class_ap == pytest.approx({"a": (1 + 2 / 3) / 2, "b": 1.0})
    assert found.mean_ap == pytest.approx((5 / 6 + 1) / 2)
    assert found.class_precision == {"a": 0.5, "b": 1.0}
    assert found.class_recall == {"a": 0.5, "b": 0.5}
    assert (found.precision, found.recall) == (2 / 3, 2 / 4)
    assert presence_scores(probabilities / 10, present, ["a", "b", "c"]).precision is None
