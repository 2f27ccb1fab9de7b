"""The loss of a batch does not depend on how it is spread over ranks, and ignores what is to be ignored."""

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import Context, LossConfig
from encsearch.model.encnet import EncNet, EncNetOutput
from encsearch.train.loss import Term, TermName, class_presence, hard_labels, loss_sums, weighted_loss

NUM_CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 0.25, 1.5])
PLAIN = LossConfig(se_weight=0, aux_weight=0)
EVERYTHING = LossConfig(label_smoothing=0.1, ohem_threshold=0.4, ohem_min_share=0.1, dice_weight=0.5)

every_kind = pytest.mark.parametrize(
    ("loss", "weights"),
    [
        (
            LossConfig(label_smoothing=smoothing, ohem_threshold=threshold, dice_weight=dice_weight),
            weights,
        )
        for smoothing, threshold, dice_weight, weights in product(
            (0, 0.1), (None, 0.4), (0, 0.5), (None, WEIGHTS)
        )
    ],
)


def batch(num_images: int = 4) -> tuple[EncNetOutput, Tensor]:
    """Random outputs and labels with a fifth ignored; the last image is wholly ignored."""
    generator = torch.Generator().manual_seed(0)
    size = (num_images, NUM_CLASSES, 5, 6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    output = EncNetOutput(normal(*size), normal(*size[:2]), normal(*size))
    labels = torch.randint(0, NUM_CLASSES, (num_images, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[0][labels[0] == 3] = 1  # this image lacks a class
    labels[-1] = 255
    return output, labels


def part(output: EncNetOutput, rows: slice) -> EncNetOutput:
    return EncNetOutput(*(value[rows] if value is not None else None for value in output))


def divisors(terms: dict[TermName, Term]) -> Tensor:
    return torch.stack([term.divisor for term in terms.values()]).double()


def total(terms: dict[TermName, Term], loss: LossConfig) -> Tensor:
    return weighted_loss(terms, divisors(terms), loss)


def mean(term: Term) -> Tensor:
    return term.sum / term.divisor


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_presence_marks_the_classes_with_a_pixel(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[0, 0], [2, 255]], [[255, 255], [255, 255]], [[3, 1], [1, 3]]], dtype=dtype)
    assert class_presence(labels, NUM_CLASSES).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_presence_of_the_largest_number_of_classes() -> None:
    labels = torch.tensor([[[254, 255]]], dtype=torch.uint8)
    assert class_presence(labels, 255).nonzero().tolist() == [[0, 254]]


def test_the_se_loss_is_the_binary_cross_entropy_of_each_class() -> None:
    presence_logits = torch.tensor([[1.0, -2.0], [0.5, 0.0], [9.0, 9.0]])
    labels = torch.tensor([[[0, 0, 255]], [[0, 1, 1]], [[255, 255, 255]]])

    terms = loss_sums(EncNetOutput(torch.zeros(3, 2, 1, 3), presence_logits, None), labels, loss=PLAIN)

    def sigmoid(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    by_hand = -(
        math.log(sigmoid(1)) + math.log(1 - sigmoid(-2)) + math.log(sigmoid(0.5)) + math.log(sigmoid(0))
    )
    torch.testing.assert_close(terms["se_loss"].sum, torch.tensor(by_hand))
    assert terms["se_loss"].divisor == 4


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_cross_entropies_are_those_of_torch(smoothing: float, weights: Tensor | None) -> None:
    output, labels = batch()
    assert output.aux_logits is not None

    terms = loss_sums(output, labels, loss=LossConfig(label_smoothing=smoothing), class_weights=weights)

    for name, logits in (("pixel_loss", output.logits), ("aux_loss", output.aux_logits)):
        expected = F.cross_entropy(
            logits,
            labels,
            weight=None if weights is None else weights.double(),
            ignore_index=255,
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(mean(terms[name]), expected)


@pytest.mark.parametrize("threshold", [0.1, 0.4])
@pytest.mark.parametrize("min_share", [0.01, 1 / 16, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_is_the_mean_over_the_hard_pixels(
    threshold: float, min_share: float, weights: Tensor | None
) -> None:
    output, labels = batch()
    loss = LossConfig(ohem_threshold=threshold, ohem_min_share=min_share)

    term = loss_sums(output, labels, loss=loss, class_weights=weights)["pixel_loss"]

    of_class = (torch.ones(NUM_CLASSES) if weights is None else weights).tolist()
    value = weight = 0.0
    for logits, label in zip(output.logits.numpy(), labels.numpy(), strict=True):
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
        pixels = sorted(
            (probabilities[label[place]][place], of_class[label[place]])
            for place in np.ndindex(label.shape)
            if label[place] != 255
        )
        least = math.ceil(min_share * len(pixels))
        kept = [pixel for rank, pixel in enumerate(pixels) if rank < least or pixel[0] < threshold]
        value -= sum(w * math.log(p) for p, w in kept)
        weight += sum(w for _, w in kept)
    assert term.sum.item() == pytest.approx(value)
    assert term.divisor.item() == pytest.approx(weight)


def test_ohem_keeps_pixels_that_are_equally_hard_together() -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[:, 0] = torch.tensor([[50.0, 50, 50], [50, 60, 50]])  # in float32 all are certain
    labels = torch.tensor([[[0, 0, 0], [0, 0, 255]]])

    kept = hard_labels(logits, labels, threshold=0.5, min_share=0.2)

    assert torch.equal(kept, labels)


def test_dice_is_the_mean_over_images_of_the_classes_that_they_have() -> None:
    output, labels = batch()

    term = loss_sums(output, labels, loss=LossConfig(dice_weight=1))["dice_loss"]

    losses = []
    for logits, label in zip(output.logits.softmax(dim=1).tolist(), labels.tolist(), strict=True):
        dice = []
        places = [(y, x) for y in range(5) for x in range(6) if label[y][x] != 255]
        for c in {label[y][x] for y, x in places}:
            overlap = sum(logits[c][y][x] for y, x in places if label[y][x] == c)
            squares = sum(logits[c][y][x] ** 2 + (label[y][x] == c) for y, x in places)
            dice.append(2 * overlap / squares)
        if dice:
            losses.append(1 - sum(dice) / len(dice))
    assert len(losses) == 3
    assert mean(term).item() == pytest.approx(sum(losses) / len(losses))


def test_dice_of_a_certain_and_right_prediction_is_zero() -> None:
    _, labels = batch()
    certain = 100.0 * F.one_hot(labels.where(labels != 255, 0), NUM_CLASSES).permute(0, 3, 1, 2)

    right, wrong = (
        mean(loss_sums(EncNetOutput(x, None, None), labels, loss=LossConfig(dice_weight=1))["dice_loss"])
        for x in (certain, certain.roll(1, dims=1))
    )

    torch.testing.assert_close(right, torch.tensor(0.0))
    assert wrong > 0.9


def test_the_loss_is_the_weighted_sum_of_the_means() -> None:
    output, labels = batch()
    loss = LossConfig(se_weight=0.3, aux_weight=0.7, dice_weight=0.9)

    terms = loss_sums(output, labels, loss=loss)

    assert list(terms) == ["pixel_loss", "se_loss", "aux_loss", "dice_loss"]
    expected = sum(
        weight * mean(term) for weight, term in zip((1, 0.3, 0.7, 0.9), terms.values(), strict=True)
    )
    torch.testing.assert_close(total(terms, loss), expected)


@every_kind
def test_ranks_add_up_to_the_whole_batch(loss: LossConfig, weights: Tensor | None) -> None:
    output, labels = batch()
    whole = loss_sums(output, labels, loss=loss, class_weights=weights)
    ranks = [
        loss_sums(part(output, rows), labels[rows], loss=loss, class_weights=weights)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert ranks[0].keys() == ranks[1].keys() == whole.keys()
    torch.testing.assert_close(divisors(ranks[0]) + divisors(ranks[1]), divisors(whole))
    parts = [weighted_loss(rank, divisors(whole), loss) for rank in ranks]
    torch.testing.assert_close(parts[0] + parts[1], total(whole, loss))


def test_an_ignored_image_changes_nothing() -> None:
    output, labels = batch()
    with_it = loss_sums(output, labels, loss=EVERYTHING, class_weights=WEIGHTS)
    without = loss_sums(part(output, slice(0, 3)), labels[:3], loss=EVERYTHING, class_weights=WEIGHTS)
    torch.testing.assert_close(with_it, without)


def test_dice_alone_leaves_the_cross_entropy_without_a_gradient() -> None:
    logits, labels = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    output = EncNetOutput(logits, None, None)

    def gradient(loss: LossConfig, *names: TermName) -> Tensor:
        terms = loss_sums(output, labels, loss=loss)
        kept = {name: terms[name] for name in names or terms}
        divisors = torch.stack([term.divisor for term in kept.values()])
        (found,) = torch.autograd.grad(weighted_loss(kept, divisors, loss), logits)
        return found

    alone = LossConfig(ce_weight=0, dice_weight=1)
    assert torch.equal(gradient(alone), gradient(LossConfig(dice_weight=1), "dice_loss"))
    halved = LossConfig(ce_weight=0.5)
    torch.testing.assert_close(gradient(halved), 0.5 * gradient(LossConfig()))
    with pytest.raises(ValueError, match="leave no loss of the pixels; try dice_weight=1"):
        LossConfig(ce_weight=0)


@pytest.mark.parametrize("name", ["pixel_loss", "aux_loss", "dice_loss"])
def test_an_ignored_pixel_has_no_gradient(name: str) -> None:
    output, labels = batch()
    leaves = [output.logits.requires_grad_(), output.aux_logits]
    assert leaves[1] is not None
    leaves[1].requires_grad_()

    loss_sums(output, labels, loss=EVERYTHING, class_weights=WEIGHTS)[name].sum.backward()

    gradient = next(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)
    assert not gradient.movedim(1, -1)[labels == 255].any()
    assert gradient.movedim(1, -1)[labels != 255].any()


def test_the_second_context_module_has_an_se_loss_of_its_own() -> None:
    output, labels = batch()
    second = EncNetOutput(output.logits, output.presence_logits, output.presence_logits)
    terms = loss_sums(second, labels, loss=PLAIN)
    assert list(terms) == ["pixel_loss", "se_loss", "aux_se_loss"]
    torch.testing.assert_close(terms["aux_se_loss"], terms["se_loss"])
    alone = loss_sums(EncNetOutput(output.logits, None, None), labels, loss=PLAIN)
    gained = total(terms, LossConfig(se_weight=0.3)) - total(alone, PLAIN)
    torch.testing.assert_close(gained, 0.6 * mean(terms["se_loss"]))


def test_terms_that_a_model_has_no_output_for_are_not_there() -> None:
    output, labels = batch()
    terms = loss_sums(EncNetOutput(output.logits, None, None), labels, loss=LossConfig())
    assert list(terms) == ["pixel_loss"]
    torch.testing.assert_close(
        total(terms, LossConfig()), F.cross_entropy(output.logits, labels, ignore_index=255)
    )


@every_kind
def test_a_batch_without_labels_has_no_loss_and_finite_gradients(
    loss: LossConfig, weights: Tensor | None
) -> None:
    output, labels = batch()
    leaves = [value.requires_grad_() for value in output if value is not None]

    value = total(loss_sums(output, torch.full_like(labels, 255), loss=loss, class_weights=weights), loss)
    value.backward()

    assert value == 0
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pixels_of_a_class_without_weight_have_no_loss(smoothing: float) -> None:
    output, labels = batch()
    loss = LossConfig(se_weight=0, label_smoothing=smoothing)
    weights = torch.tensor([0.0, 1, 1, 1])

    terms = loss_sums(output, torch.zeros_like(labels), loss=loss, class_weights=weights)

    assert total(terms, loss) == 0


@pytest.mark.parametrize("preset", ["paper", "mmseg"])
@pytest.mark.parametrize("context", get_args(Context))
@pytest.mark.parametrize(
    ("se_weight", "aux_weight", "label"),
    [(0.2, 0.4, 255), (0.0, 0.0, 1)],
    ids=["all ignored", "zero weights"],
)
def test_every_parameter_stays_in_the_graph(
    preset: str, context: str, se_weight: float, aux_weight: float, label: int
) -> None:
    model = EncNet("tiny", 4, NUM_CLASSES, preset=preset, context=context, channels=8, output_stride=4)
    labels = torch.full((2, 16, 16), label, dtype=torch.uint8)
    loss = EVERYTHING.model_copy(update={"se_weight": se_weight, "aux_weight": aux_weight})
    value = total(loss_sums(model(torch.randn(2, 3, 16, 16)), labels, loss=loss), loss)
    value.backward()
    assert value.isfinite()
    assert value == 0 or label != 255
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_logits_are_compared_in_float32(autocast: bool) -> None:
    output, labels = batch()
    low = EncNetOutput(*(value.bfloat16() for value in output if value is not None))
    exact = EncNetOutput(*(value.float() for value in low if value is not None))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = loss_sums(low, labels, loss=EVERYTHING, class_weights=WEIGHTS)
    assert {term.sum.dtype for term in found.values()} == {torch.float32}
    torch.testing.assert_close(found, loss_sums(exact, labels, loss=EVERYTHING, class_weights=WEIGHTS))


@pytest.mark.parametrize(("loss", "weights"), [(PLAIN, None), (EVERYTHING, WEIGHTS)])
def test_one_graph_holds_the_whole_loss(loss: LossConfig, weights: Tensor | None) -> None:
    """torch.compile needs no break: nothing is read back and no branch depends on values."""
    output, labels = batch()

    def value(output: EncNetOutput, labels: Tensor) -> Tensor:
        return total(loss_sums(output, labels, loss=loss, class_weights=weights), loss)

    traced = torch.compile(value, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(output, labels), value(output, labels))
