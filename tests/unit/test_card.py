"""The model card names everything that is on, and nothing that is off."""

from dataclasses import replace
from itertools import product
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from encsearch.config import Config, Context, ModelConfig, with_values
from encsearch.data.datasets import DatasetInfo
from encsearch.inference.card import ModelFacts, model_card, name_term
from encsearch.model.encnet import EncNet
from encsearch.train.loss import BuiltInTerm, loss_sums

INFO = DatasetInfo("toy", ("sky", "road", "car"), ((0, 0, 255), (9, 9, 9), (255, 0, 0)), {})
# Whatever another field needs before it counts is on.
BASE = Config.model_validate(
    {
        "data": {"store": "store"},
        "model": {"backbone": "resnet34", "auxiliary": "fcn"},
        "loss": {"ohem_threshold": 0.7},
        "scaling": {"num_workers": 2, "gpus_per_worker": 1},
    }
)

# Path, value, what the card then says; of every Literal all members but the base's.
NAMED: list[tuple[str, Any, str]] = [
    ("augment.crop", 48, "crops of 48x48 px"),
    ("augment.crop", [360, 480], "crops of 480x360 px"),
    ("augment.shorter_side", 520, "shorter side zoomed to 520 px"),
    ("augment.flip", 0.25, "mirrored with probability 0.25"),
    ("augment.scale", [0.5, 2.5], "zoomed by 0.5 to 2.5"),
    ("augment.rotate_deg", 15, "rotated by up to 15 degrees"),
    ("augment.jitter", 0.35, "brightness, contrast and saturation changed by up to 35 %"),
    ("augment.blur", 0.45, "blurred by up to 1 px with probability 0.45"),
    ("augment.extra", ["my_parts:Cutout"], "own transforms `my_parts:Cutout`"),
    ("augment.args", {"my_parts:Cutout": {"side": 9}}, "`my_parts:Cutout`: side=9"),
    ("augment.class_uniform", 0.55, "a random class of the image with probability 0.55"),
    ("model.backbone", "resnet18", "backbone resnet18"),
    ("model.weights", "/somewhere/trained.pth", "initial weights: trained.pth"),
    ("model.output_stride", 16, "output stride 16"),
    ("model.output_stride", 32, "output stride 32"),
    ("model.head", "pspnet", "head pspnet"),
    ("model.head", "deeplabv3", "head deeplabv3;"),
    ("model.head", "deeplabv3plus", "head deeplabv3plus"),
    ("model.head", "unet", "head unet"),
    ("model.head", "refinenet", "head refinenet"),
    ("model.head", "my_parts:Head", "head my_parts:Head"),
    ("model.args", {"my_parts:Head": {"width": 9}}, "`my_parts:Head`: width=9"),
    ("model.context", "my_parts:Context", "context module: `my_parts:Context`"),
    ("model.context", "gate", "context module: average pooling"),
    ("model.context", "none", "without a context module"),
    ("model.num_codewords", 17, "17 codewords"),
    ("model.codeword_init", "published", "codewords as published"),
    ("model.channels", 96, "head of 96 channels"),
    ("model.rescale_encoding", False, "over the codewords; its"),
    ("model.aggregate", "mean", "averaged over the codewords"),
    ("model.scaling", "residual", "the features times its scaling factors are added to the features"),
    ("model.attention", "classes", "the logits are multiplied by the presence of their class"),
    ("model.attention", "both", "multiply the features; the logits are multiplied"),
    ("model.attention_stages", [3, 4], "the auxiliary context module scales the features of stage 3"),
    ("model.encoding_conv", True, "after a 1x1 convolution"),
    ("model.auxiliary", "se", "the SE-loss of the auxiliary context module"),
    ("model.auxiliary", "none", "the SE-loss of the context module\n"),
    ("model.lateral", True, "the features of stages 2 and 3 join"),
    ("model.align_corners", True, "corners aligned"),
    ("model.dropout", 0.37, "dropout 0.37"),
    ("loss.se_weight", 0.35, "0.35 times the SE-loss of the context module"),
    ("loss.aux_weight", 0.45, "0.45 times the cross-entropy of the auxiliary FCN head"),
    ("loss.dice_weight", 0.55, "0.55 times the soft Dice loss"),
    ("loss.ce_weight", 0.65, "0.65 times pixel cross-entropy"),
    ("loss.dice_weight", 1, "plus the soft Dice loss"),
    ("loss.terms", {"my_parts:boundary": 0.35}, "0.35 times the own loss `my_parts:boundary`"),
    ("loss.args", {"my_parts:boundary": {"radius": 2}}, "`my_parts:boundary`: radius=2"),
    ("loss.class_weights", "median_frequency", "classes weighted by median frequency"),
    ("loss.class_weights", {"sky": 1, "road": 2.5, "car": 0}, "sky 1, road 2.5, car 0"),
    ("loss.label_smoothing", 0.15, "label smoothing 0.15"),
    ("loss.ohem_threshold", 0.65, "a probability below 0.65"),
    ("loss.ohem_min_share", 0.125, "the hardest 12.5 % of an image"),
    ("optim.lr", 0.023, "0.023 * (1 - progress)"),
    ("optim.head_lr_factor", 7, "7 times that for the heads"),
    ("optim.momentum", 0.85, "momentum 0.85"),
    ("optim.weight_decay", 0.0007, "weight decay 0.0007"),
    ("optim.poly_power", 1.5, "(1 - progress) ** 1.5"),
    ("optim.name", "adamw", "AdamW: learning rate"),
    ("optim.beta2", 0.95, "betas 0.9 and 0.95"),
    ("optim.schedule", "cosine", "0.01 * (1 + cos(pi * progress)) / 2"),
    ("optim.schedule", "wsd", "falling linearly to 0 in the last 20 % of the steps"),
    ("optim.schedule", "constant", "0.01, constant"),
    ("optim.name", "timm.optim:Lion", "the own optimizer `timm.optim:Lion`: learning rate"),
    ("optim.schedule", "my_parts:halving", "0.01 times the own schedule `my_parts:halving`"),
    ("optim.args", {"my_parts:halving": {"times": 4}}, "`my_parts:halving`: times=4"),
    ("optim.warmup", 0.05, "a linear warm-up in 5 % of the steps"),
    ("optim.decay", 0.3, "in the last 30 % of the steps"),
    ("optim.clip_norm", 3.5, "gradients clipped to norm 3.5"),
    ("train.epochs", 77, "77 epochs"),
    ("train.steps_per_epoch", 123, "of 123 steps"),
    ("train.global_batch_size", 34, "34 images a step"),
    ("train.micro_batch_size", 3, "in parts of 3 images at most"),
    ("train.seed", 99, "seed 99"),
    (
        "train.init_from",
        "/somewhere/runs/a/artifacts/bundle",
        "weights: those of the model a/artifacts/bundle",
    ),
    ("train.early_stop", {"patience": 4}, "after 4 validations in a row without a rise of mIoU"),
    ("train.early_stop", {"patience": 4, "min_delta": 0.01}, "of mIoU by more than 1.00 points"),
    ("train.ema", 0.995, "moving average of the trained ones, with a decay of 0.995"),
    ("train.precision", "bf16", "precision bf16"),
    ("train.precision", "fp32", "precision fp32"),
    ("train.matmul_precision", "highest", "no TF32"),
    ("train.sync_bn", "off", "batch norm in each alone"),
]
UNNAMED = {
    "model.preset": "stands for values that are named one by one",
    "train.val_batch_size": "changes no figure",
    "train.profile_steps": "changes no figure",
    "train.checkpoint_every": "changes no figure",
    "train.max_skipped_steps": "a report says which steps were skipped",
    "train.channels_last": "changes no figure but in the last digits",
    "train.cudnn_benchmark": "changes no figure but in the last digits",
    "train.fused_optimizer": "changes no figure but in the last digits",
    "train.compile": "changes no figure but in the last digits",
    "train.deterministic": "changes no figure but in the last digits",
}
# What another value of its section must be for a field to count.
NEEDED: dict[str, dict[str, Any]] = {
    "optim.beta2": {"optim.name": "adamw"},
    "optim.decay": {"optim.schedule": "wsd"},
    "train.micro_batch_size": {"loss.ohem_threshold": None},
}
SECTIONS = ("augment", "model", "loss", "optim", "train")


def card(config: Config) -> str:
    return model_card(ModelFacts(config, INFO, "abc", "def", 1000, {"mIoU": 0.5}, {}, {}))


def test_every_field_that_a_training_follows_is_named() -> None:
    fields = {f"{name}.{field}" for name in SECTIONS for field in type(getattr(BASE, name)).model_fields}

    assert {path for path, _, _ in NAMED} | UNNAMED.keys() == fields


def test_every_member_of_a_closed_list_is_named() -> None:
    for path in {path for path, _, _ in NAMED}:
        name, field = path.split(".")
        section = getattr(BASE, name)
        named = [getattr(section, field), *(value for other, value, _ in NAMED if other == path)]
        if path == "model.output_stride":
            named.append(4)  # of the backbone tiny alone
        for member in members(type(section).model_fields[field].annotation):
            assert member in named, path


def members(annotation: Any) -> list[Any]:
    """Of a Literal, or of those in a union."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [member for part in get_args(annotation) for member in members(part)]


@pytest.mark.parametrize(("path", "value", "words"), NAMED)
def test_a_field_is_named_where_it_is_set_and_only_there(path: str, value: Any, words: str) -> None:
    base = with_values(BASE, NEEDED.get(path, {}))
    assert words in card(with_values(base, {path: value}))
    assert words not in card(base)


@pytest.mark.parametrize(
    ("context", "auxiliary"),
    list(product(get_args(Context), get_args(ModelConfig.model_fields["auxiliary"].annotation))),
)
def test_the_terms_that_are_named_are_those_that_train(context: str, auxiliary: str) -> None:
    values = {"model.backbone": "tiny", "model.output_stride": 4, "model.channels": 8}
    config = with_values(
        BASE, {**values, "model.context": context, "model.auxiliary": auxiliary, "loss.dice_weight": 0.5}
    )
    network = EncNet.from_config(config.model, num_classes=3)

    terms = loss_sums(network(torch.randn(2, 3, 16, 16)), torch.zeros(2, 16, 16), loss=config.loss)

    assert terms.keys() == {term for term in get_args(BuiltInTerm) if name_term(term, config.model)}


def test_an_fcn_is_described_truly_and_whole() -> None:
    recipe = {
        "data": {"store": "store"},
        "model": {"context": "none"},
        "loss": {
            "dice_weight": 0.5,
            "ohem_threshold": 0.7,
            "class_weights": "median_frequency",
            "label_smoothing": 0.1,
        },
        "augment": {"rotate_deg": 10, "jitter": 0.3},
    }

    text = card(Config.model_validate(recipe))

    assert text.partition("## Training\n\n")[2].partition("\n\n## ")[0].splitlines() == [
        "- 50 epochs, 16 images a step, seed 0, precision auto (bf16 where the device has it, else fp32)",
        "- SGD: learning rate `0.01 * (1 - progress) ** 0.9`, 10 times that for the heads, momentum 0.9, "
        "weight decay 0.0001",
        "- loss: pixel cross-entropy, plus 0.5 times the soft Dice loss",
        "- only hard pixels in the pixel cross-entropy (OHEM): those whose class has a probability below "
        "0.7, and at least the hardest 6.25 % of an image",
        "- classes weighted by median frequency in the cross-entropy",
        "- label smoothing 0.1 in the cross-entropy",
        "- augmentation: mirrored with probability 0.5, rotated by up to 10 degrees either way, brightness, "
        "contrast and saturation changed by up to 30 %",
        "- backbone's initial weights: random",
    ]
    assert "SE-loss" not in text
    assert "codewords" not in text
    assert "which classes are anywhere" not in text


def test_without_cross_entropy_nothing_of_it_is_named() -> None:
    alone = {"loss.ce_weight": 0, "loss.dice_weight": 1, "loss.aux_weight": 0, "loss.label_smoothing": 0.1}

    text = card(with_values(BASE, {**alone, "loss.ohem_threshold": 0.7}))

    assert "plus the soft Dice loss\n" in text
    assert not any(words in text for words in ("cross-entrop", "hard pixels", "label smoothing"))


def test_what_has_weight_zero_or_no_branch_is_not_named() -> None:
    off = {"loss.se_weight": 0, "loss.aux_weight": 0, "augment.flip": 0, "loss.ohem_threshold": None}

    text = card(with_values(BASE, off))

    assert "- loss: pixel cross-entropy\n" in text
    assert "- augmentation: none\n" in text
    assert "predictions of class presence mean nothing" in text


def test_an_unfinished_training_and_the_epoch_of_the_weights_are_said() -> None:
    facts = ModelFacts(BASE, INFO, "data", "weights", 1, {"mIoU": 0.5}, {}, {}, epoch=2)
    whole, part = model_card(facts), model_card(replace(facts, unfinished_at=3))
    assert "the weights are those of epoch 2, the best by mIoU" in whole
    assert "not finished" not in whole
    assert "**not finished**: it had come to 3 of " in part
