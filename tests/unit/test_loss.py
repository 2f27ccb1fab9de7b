"""The loss of a batch does not depend on how it is spread over ranks, and ignores what is to be ignored."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import LossConfig
from encsearch.loss import LossSums, class_presence, loss_sums, weighted_loss
from encsearch.model.encnet import EncNet, EncNetOutput

NUM_CLASSES = 4


def batch(num_images: int = 4) -> tuple[EncNetOutput, Tensor]:
    """Random outputs and labels with a fifth ignored; the last image is wholly ignored."""
    generator = torch.Generator().manual_seed(0)
    size = (num_images, NUM_CLASSES, 5, 6)
    output = EncNetOutput(
        torch.randn(size, generator=generator, dtype=torch.float64),
        torch.randn(num_images, NUM_CLASSES, generator=generator, dtype=torch.float64),
        torch.randn(size, generator=generator, dtype=torch.float64),
    )
    labels = torch.randint(0, NUM_CLASSES, (num_images, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[-1] = 255
    return output, labels


def part(output: EncNetOutput, rows: slice) -> EncNetOutput:
    return EncNetOutput(*(value[rows] if value is not None else None for value in output))


def total(sums: LossSums, loss: LossConfig) -> Tensor:
    return weighted_loss(sums, sums.num_pixels, sums.num_images, loss=loss)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_presence_marks_the_classes_with_a_pixel(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[0, 0], [2, 255]], [[255, 255], [255, 255]], [[3, 1], [1, 3]]], dtype=dtype)
    assert class_presence(labels, NUM_CLASSES).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_presence_of_the_largest_number_of_classes() -> None:
    labels = torch.tensor([[[254, 255]]], dtype=torch.uint8)
    assert class_presence(labels, 255).nonzero().tolist() == [[0, 254]]


def test_is_the_weighted_sum_of_the_three_means() -> None:
    output, labels = batch()
    assert output.presence_logits is not None
    assert output.aux_logits is not None
    loss = LossConfig(se_weight=0.3, aux_weight=0.7)
    se_loss = F.binary_cross_entropy_with_logits(
        output.presence_logits[:-1], class_presence(labels, NUM_CLASSES)[:-1].double()
    )
    expected = (
        F.cross_entropy(output.logits, labels, ignore_index=255)
        + 0.7 * F.cross_entropy(output.aux_logits, labels, ignore_index=255)
        + 0.3 * se_loss
    )
    torch.testing.assert_close(total(loss_sums(output, labels, NUM_CLASSES), loss), expected)


def test_ranks_add_up_to_the_whole_batch() -> None:
    output, labels = batch()
    loss = LossConfig()
    whole = loss_sums(output, labels, NUM_CLASSES)
    ranks = [loss_sums(part(output, rows), labels[rows], NUM_CLASSES) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(rank.num_pixels for rank in ranks) == whole.num_pixels
    assert sum(rank.num_images for rank in ranks) == whole.num_images == 3
    parts = [weighted_loss(rank, whole.num_pixels, whole.num_images, loss=loss) for rank in ranks]
    torch.testing.assert_close(sum(parts), total(whole, loss))


def test_an_ignored_image_changes_nothing() -> None:
    output, labels = batch()
    with_it = loss_sums(output, labels, NUM_CLASSES)
    without = loss_sums(part(output, slice(0, 3)), labels[:3], NUM_CLASSES)
    for field in ("pixel", "aux", "presence", "num_pixels", "num_images"):
        torch.testing.assert_close(getattr(with_it, field), getattr(without, field))


def test_outputs_that_a_model_lacks_count_as_zero() -> None:
    output, labels = batch()
    sums = loss_sums(EncNetOutput(output.logits, None, None), labels, NUM_CLASSES)
    assert sums.aux == sums.presence == 0
    torch.testing.assert_close(
        total(sums, LossConfig()), F.cross_entropy(output.logits, labels, ignore_index=255)
    )


@pytest.mark.parametrize("context", ["encoding", "gate", "none"])
@pytest.mark.parametrize(
    ("se_weight", "aux_weight", "label"),
    [(0.2, 0.4, 255), (0.0, 0.0, 1)],
    ids=["all ignored", "zero weights"],
)
def test_every_parameter_stays_in_the_graph(
    context: str, se_weight: float, aux_weight: float, label: int
) -> None:
    model = EncNet("tiny", 4, NUM_CLASSES, context=context, channels=8, output_stride=4)
    labels = torch.full((2, 16, 16), label, dtype=torch.uint8)
    value = total(
        loss_sums(model(torch.randn(2, 3, 16, 16)), labels, NUM_CLASSES),
        LossConfig(se_weight=se_weight, aux_weight=aux_weight),
    )
    value.backward()
    assert value.isfinite()
    assert value == 0 or label != 255
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_low_precision_logits_are_compared_in_float32() -> None:
    output, labels = batch()
    low = EncNetOutput(*(value.bfloat16() for value in output if value is not None))
    exact = EncNetOutput(*(value.float() for value in low if value is not None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_sums(low, labels, NUM_CLASSES)
    expected = loss_sums(exact, labels, NUM_CLASSES)
    assert found.pixel.dtype == found.presence.dtype == torch.float32
    torch.testing.assert_close(found.pixel, expected.pixel)
    torch.testing.assert_close(found.presence, expected.presence)
