"""Scores come from one confusion matrix, and absent classes are treated by a stated rule."""

import pytest
import torch

from encsearch.errors import UserError
from encsearch.metrics import Scores, confusion_matrix, scores


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
