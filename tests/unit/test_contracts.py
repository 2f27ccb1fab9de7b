"""Each own part is tried before anything starts; one that breaks its contract is refused in one line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from encsearch.config import Config, with_values
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.model.own import check_backbone
from encsearch.parts import code_from
from encsearch.train.contracts import check_parts

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = """
import math, random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

"""


@pytest.fixture
def tried(toy_config: Config, tmp_path: Path) -> Iterator[Any]:
    """A function that tries the source of a module `tried_parts`, which the given values name."""

    def check(source: str, **values: Any) -> None:
        (tmp_path / "tried_parts.py").write_text(HEAD + source)
        config = with_values(toy_config, {path.replace("__", "."): value for path, value in values.items()})
        check_parts(config, Store(config.data.store))

    with code_from(tmp_path):
        yield check


def refuse(tried: Any, source: str, line: str, **values: Any) -> None:
    with pytest.raises(UserError) as refused:
        tried(source, **values)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_parts_of_the_examples_keep_to_their_contracts(toy_config: Config) -> None:
    values = {
        "model.backbone": "my_parts:Backbone",
        "model.args": {"my_parts:Backbone": {"width": 4}},
        "model.output_stride": 8,
        "model.head": "my_parts:Head",
        "model.context": "my_parts:Context",
        "loss.terms": {"my_parts:boundary": 0.5},
        "augment.extra": ["my_parts:Cutout"],
        "optim.name": "my_parts:SignSGD",
        "optim.schedule": "my_parts:halving",
        "metric": "my_parts:ImageMIoU",
    }
    config = with_values(toy_config, values)
    with code_from(EXAMPLES):
        check_parts(config, Store(config.data.store))
    assert "my_parts" in sys.modules


# --- losses

LOSS: dict[str, Any] = {"loss__terms": {"tried_parts:part": 1.0}}
PIXELS = "F.cross_entropy(logits, labels, ignore_index=255, reduction='none')"


def loss(body: str) -> str:
    return f"def part(logits, labels):\n    {body}\n"


@pytest.mark.parametrize(
    "source",
    [
        loss(f"return {PIXELS}.mean(dim=(1, 2))"),
        loss(f"return {PIXELS}.double().mean(dim=(1, 2))"),
        loss(f"return {PIXELS}.bfloat16().mean(dim=(1, 2))"),
        f"class part:\n    def __call__(self, logits, labels):\n        return {PIXELS}.mean(dim=(1, 2))",
        "class part(nn.Module):\n    def forward(self, logits, labels):\n"
        f"        return {PIXELS}.mean(dim=(1, 2))",
    ],
)
def test_a_loss_may_be_a_function_or_a_class_of_any_number_format(tried: Any, source: str) -> None:
    tried(source, **LOSS)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "return logits.mean()",
            "must return a value for each image, a float tensor (3,), but got () of float32",
        ),
        ("return 1.0", "a float tensor (3,), but got float"),
        ("return labels.flatten(1).sum(1)", "a float tensor (3,), but got (3,) of int64"),
        ("return logits.detach().mean(dim=(1, 2, 3))", "has no gradient with respect to the logits"),
        ("return logits.mean(dim=(1, 2, 3)) / 0", "for random logits; it must be finite"),
        (
            "return logits.mean(dim=(1, 2, 3)) * (1 + torch.rand(()))",
            "gives another value for the same logits and labels",
        ),
        (
            "return logits.square().mean(dim=(1, 2, 3)) * len(logits)",
            "a value may depend on its own image only",
        ),
        (
            "return (logits - logits.detach()).sum(dim=(1, 2, 3)).abs().sqrt()",
            "its gradient is not finite for random logits",
        ),
        (
            "known = labels != 255; "
            "return (logits.square().mean(dim=1) * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2))",
            "three images, the last of which has no labels",
        ),
        ("labels[labels == 255] = 0; return logits.mean(dim=(1, 2, 3))", "changes the given labels in place"),
        ("return undefined", "fails (NameError: name 'undefined' is not defined)"),
        ("return F.cross_entropy(logits, labels)", "loss tried_parts:part: fails (IndexError: Target 255"),
    ],
)
def test_a_loss_that_breaks_its_contract(tried: Any, body: str, line: str) -> None:
    refuse(tried, loss(body), "loss tried_parts:part: ", **LOSS)
    refuse(tried, loss(body), line, **LOSS)


def test_a_loss_has_no_weights_of_its_own(tried: Any) -> None:
    source = "class part(nn.Linear):\n    def __init__(self):\n        super().__init__(1, 1)\n"
    refuse(tried, source, "loss tried_parts:part: has weights, which no optimizer trains", **LOSS)


# --- transforms

TRANSFORM: dict[str, Any] = {"augment__extra": ["tried_parts:part"]}


def transform(body: str) -> str:
    return f"def part(image, mask, rng):\n    {body}\n"


def test_a_transform_draws_from_the_given_numbers(tried: Any) -> None:
    tried(transform("return np.roll(image, rng.integers(9), axis=1), mask"), **TRANSFORM)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "return image[:-1], mask",
            "must return image (32, 32, 3) of uint8, but got ndarray (31, 32, 3) of uint8",
        ),
        (
            "return image / 255, mask",
            "must return image (32, 32, 3) of uint8, but got ndarray (32, 32, 3) of float",
        ),
        ("return image, mask.tolist()", "must return mask (32, 32) of uint8, but got list None of None"),
        ("return image", "fails (ValueError: too many values to unpack"),
        ("image[0] = 0; return image, mask", "changes the given arrays in place; copy them"),
        (
            "return np.full_like(image, random.randrange(256)) + rng.integers(9, dtype=np.uint8), mask",
            "gives another image for the same `rng`; draw all chance from it",
        ),
        ("return image, np.full_like(mask, 3)", "the mask has 3, which is neither a class nor 255"),
        ("return image, mask, undefined", "fails (NameError: name 'undefined' is not defined)"),
    ],
)
def test_a_transform_that_breaks_its_contract(tried: Any, body: str, line: str) -> None:
    refuse(tried, transform(body), f"transform tried_parts:part: {line}", **TRANSFORM)


def test_of_several_transforms_the_one_that_fails_is_named(tried: Any) -> None:
    source = transform("return image, mask") + "def other(image, mask, rng): return undefined"
    names = ["tried_parts:part", "tried_parts:other"]
    refuse(tried, source, "transform tried_parts:other: fails (NameError", augment__extra=names)


def test_a_transform_that_only_a_row_of_the_ablation_names_is_tried(tried: Any) -> None:
    rows = {"with": {"augment.extra": ["tried_parts:part"]}}
    refuse(tried, transform("return image"), "transform tried_parts:part: fails", ablate__rows=rows)


# --- schedules

SCHEDULE: dict[str, Any] = {"optim__schedule": "tried_parts:part", "optim__warmup": 0.2}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return -1", "is -1 at step 4 of 20; it must be 0 or more"),
        ("return math.nan", "is nan at step 4 of 20; it must be 0 or more"),
        ("return random.random()", "gives another factor for the same step, so no resume is exact"),
        ("return 'half'", "fails (ValueError: could not convert string to float"),
        ("return 0.5 / (step - 4)", "is -0.125 at step 4 of 20"),
        ("return 1 / step", "fails (ZeroDivisionError"),
    ],
)
def test_a_schedule_that_breaks_its_contract(tried: Any, body: str, line: str) -> None:
    source = f"def part(step, total_steps):\n    {body}\n"
    refuse(tried, source, f"schedule tried_parts:part: {line}", **SCHEDULE)


def test_a_schedule_counts_the_steps_after_the_warm_up(tried: Any) -> None:
    check = "assert 0 <= step < total_steps == 16"
    source = f"def part(step, total_steps):\n    {check}\n    return 1 - step / total_steps"
    tried(source, **SCHEDULE)


# --- optimizers

OPTIMIZER: dict[str, Any] = {"optim__name": "tried_parts:part"}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam"])
def test_optimizers_of_pytorch_are_own_ones_too(tried: Any, name: str) -> None:
    """Their momenta are changed in place, so the state that the check goes on from must be a copy."""
    args = {f"torch.optim:{name}": {"momentum": 0.9}} if name == "SGD" else {}
    tried("", optim__name=f"torch.optim:{name}", optim__args=args)


OPTIMIZER_CLASS = """
class part(torch.optim.Optimizer):
    def __init__(self, groups, lr, weight_decay=0.0):
        super().__init__(groups, dict(lr=lr))
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for value in group["params"]:
                BODY
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("def part(groups, lr, weight_decay): return 3", "must make a torch.optim.Optimizer, but got int"),
        (
            "def part(groups, lr, weight_decay):\n"
            "    return torch.optim.SGD([v for g in groups for v in g['params']], lr)",
            "must keep both groups with rates [0.02, 0.04], but has [0.02]",
        ),
        (OPTIMIZER_CLASS.replace("BODY", "pass"), "a step changes no weight"),
        (
            OPTIMIZER_CLASS.replace("BODY", "value.sub_(group['lr'] / self.count * value.grad)"),
            "goes on from its state dict in another way; keep all in it",
        ),
        (OPTIMIZER_CLASS.replace("BODY", "value.sub_(undefined)"), "fails (NameError"),
        ("def part(groups): pass", "got an unexpected keyword argument 'lr'; it takes (groups)"),
    ],
)
def test_an_optimizer_that_breaks_its_contract(tried: Any, source: str, line: str) -> None:
    refuse(tried, source, f"optimizer tried_parts:part: {line}", **OPTIMIZER)


# --- metrics

METRIC: dict[str, Any] = {"metric": "tried_parts:part"}
RIGHT = "((labels == predictions) & (labels != 255)).sum()"


def metric(count: str, score: str = "counts[0] / counts[1]") -> str:
    return (
        "class part:\n"
        f"    def count(self, labels, predictions, num_classes):\n        {count}\n"
        f"    def score(self, counts):\n        return {score}\n"
    )


def test_a_metric_counts_what_adds_up(tried: Any) -> None:
    tried(metric(f"return torch.stack([{RIGHT}, (labels != 255).sum()])"), **METRIC)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("class part: pass", "has no count(); it needs count() and score()"),
        ("class part:\n    def count(self, *_): pass", "has no score(); it needs count() and score()"),
        (metric("return 3"), "count() must return a tensor, but got int"),
        (
            metric("return (labels == predictions).flatten(1).sum(1)"),
            "count() must return a tensor of a fixed shape, but got (3,) of int64 and (1,) of int64",
        ),
        (
            metric("return (labels == predictions).sum(dim=(0, 2))"),
            "count() must return a tensor of a fixed shape, but got (64,) of int64 and (1,) of int64",
        ),
        (
            metric("return (labels == predictions).float().mean(dim=(1, 2)).mean()[None]"),
            "the counts of 3 images are not the sum of those of each; they must add up",
        ),
        (metric(f"return {RIGHT}[None]", "counts[0]"), "must be in [0, 1], but is "),
        (
            metric(
                "known = labels != 255; "
                "return torch.stack([((labels != predictions) & known).sum(), known.sum()])"
            ),
            "the more must be the better",
        ),
        (
            metric("predictions[labels == 255] = 0; return (predictions == labels).sum()[None]"),
            "count() changes what it is given in place; copy it",
        ),
        (metric(f"return {RIGHT}[None]", "counts[3]"), "fails (IndexError"),
        (metric("return undefined"), "fails (NameError"),
    ],
)
def test_a_metric_that_breaks_its_contract(tried: Any, source: str, line: str) -> None:
    refuse(tried, source, "metric tried_parts:part: ", **METRIC)
    refuse(tried, source, line, **METRIC)


# --- networks

BACKBONE = """
class part(nn.Module):
    def __init__(self, channels=(4, 4, 8, 8), strides=(4, 8, 8, 8), kernel=1):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.layers = nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)

    def forward(self, images):
        return [layer(F.avg_pool2d(images, s)) for layer, s in zip(self.layers, self.strides)]
"""
OF_BACKBONE: dict[str, Any] = {"model__backbone": "tried_parts:part", "model__output_stride": 8}


def test_a_backbone_has_channels_and_a_stride_that_is_measured(tried: Any) -> None:
    tried(BACKBONE, **OF_BACKBONE)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("nn.Module)", "object)", "must make an nn.Module, but got part"),
        ("self.channels, self.strides = channels,", "self.channels, self.strides = 8,", "but is 8"),
        ("self.channels, self.strides = channels,", "self.channels, self.strides = (8, 8),", "but is (8, 8)"),
        (
            "self.channels, self.strides = channels,",
            "self.channels, self.strides = (1, 1, 1, 1),",
            "(B, 1, h, w), (B, 1, h, w), but got [(2, 4, 32, 48), (2, 4, 16, 24), ",
        ),
        ("self.strides)]", "self.strides)][:3]", "must return four features"),
        ("self.strides)]", "self.strides)][0]", "must return four features"),
        (
            "layer(F.avg",
            "layer(F.avg_pool2d(images, s)).mean((2, 3)) if s else (F.avg",
            "must return four features",
        ),
        (
            "(4, 8, 8, 8)",
            "(8, 4, 8, 8)",
            "must return features from the finest to the coarsest, each of one stride",
        ),
        (
            "(4, 8, 8, 8)",
            "(2, 4, 4, 4)",
            "its last stage has stride 4, but model.output_stride=8; set that to 4",
        ),
        (
            "super().__init__()",
            "super().__init__(); self.stride = 16",
            "its `stride` is 16, but its last features have 8",
        ),
        ("return [", "undefined; return [", "fails on (2, 3, 128, 192) (name 'undefined' is not defined)"),
        (
            "layer(F.avg",
            "(1 + torch.rand(())) * layer(F.avg",
            "gives other outputs for the same images in eval mode",
        ),
        ("def forward", "_ = random.seed(0)\n    def forward", ""),
        (
            "super().__init__()",
            "super().__init__(); self.register_buffer('noise', torch.tensor(random.random()))",
            "backbone.noise differs when it is made again with the same seed",
        ),
        (
            "return [",
            "if self.training: raise KeyError('only eval')\n        return [",
            "fails (KeyError: 'only eval')",
        ),
    ],
)
def test_a_backbone_that_breaks_its_contract(tried: Any, old: str, new: str, line: str) -> None:
    assert old in BACKBONE
    if line:
        refuse(tried, BACKBONE.replace(old, new), "backbone tried_parts:part: ", **OF_BACKBONE)
        refuse(tried, BACKBONE.replace(old, new), line, **OF_BACKBONE)
    else:
        tried(BACKBONE.replace(old, new), **OF_BACKBONE)


def test_a_backbone_may_take_the_stride_and_its_arguments_first(tried: Any) -> None:
    source = BACKBONE.replace("__init__(self, ", "__init__(self, output_stride, ")
    source = source.replace("= channels, strides", "= channels, (2, 4, 4, output_stride)")
    tried(source, **OF_BACKBONE)
    refuse(
        tried,
        source,
        "got an unexpected keyword argument 'depth'; it takes (output_stride, channels=(4, 4, 8, 8)",
        model__args={"tried_parts:part": {"depth": 3}},
        **OF_BACKBONE,
    )


def test_a_module_is_measured_once(toy_config: Config) -> None:
    class Four(torch.nn.Module):
        channels = (3, 3, 3, 3)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.avg_pool2d(images, stride) for stride in (4, 8, 16, 16)]

    four = Four()
    assert check_backbone(four, "Four") is four
    assert four.stride == 16
    assert four.training, "it is left as it was"


HEAD_CLASS = """
class part(nn.Module):
    def __init__(self, stage_channels, channels):
        super().__init__()
        self.project = nn.Conv2d(stage_channels[-1], channels, 1)

    def forward(self, stages):
        return self.project(stages[-1])
"""
CONTEXT_CLASS = """
class part(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, features):
        return self.mix(features.mean(dim=(2, 3)))
"""


@pytest.mark.parametrize(
    ("kind", "source", "old", "new", "line"),
    [
        ("head", HEAD_CLASS, "", "", ""),
        ("head", HEAD_CLASS, "(nn.Module)", "", "must make an nn.Module, but got part"),
        (
            "head",
            HEAD_CLASS,
            "channels, 1)",
            "3, 1)",
            "must return features (B, 16, h, w), but got (2, 3, 32, 48)",
        ),
        ("head", HEAD_CLASS, "return self.project(stages[-1])", "return stages", "but got [(2, "),
        ("head", HEAD_CLASS, "stages[-1])", "stages[7])", "fails on [(2, "),
        ("context", CONTEXT_CLASS, "", "", ""),
        ("context", CONTEXT_CLASS, "(nn.Module)", "", "must make an nn.Module, but got part"),
        (
            "context",
            CONTEXT_CLASS,
            ".mean(dim=(2, 3)))",
            ".flatten(2).mean(2))[:, :3]",
            "(B, 16), but got (2, 3)",
        ),
        (
            "context",
            CONTEXT_CLASS,
            "return self.mix",
            "return str",
            "a vector for each image, (B, 16), but got str",
        ),
        (
            "context",
            CONTEXT_CLASS,
            "dim=(2, 3)",
            "dim=(2, 9)",
            "fails on (2, 16, 8, 12) (Dimension out of range",
        ),
    ],
)
def test_heads_and_context_modules(tried: Any, kind: str, source: str, old: str, new: str, line: str) -> None:
    values = {f"model__{kind}": "tried_parts:part"}
    assert old in source
    if not line:
        tried(source, **values)
        return
    refuse(tried, source.replace(old, new), f"{kind} tried_parts:part: ", **values)
    refuse(tried, source.replace(old, new), line, **values)


# --- all of them


def test_parts_and_arguments_that_are_searched_are_tried(tried: Any) -> None:
    source = f"def part(logits, labels, factor): return factor * {PIXELS}.mean(dim=(1, 2))"
    space = {
        "loss.terms.tried_parts:part": {"uniform": [0, 1]},
        "loss.args.tried_parts:part.factor": {"choice": [1, 2]},
    }
    tried(source, search={"space": space, "budget": {"trials": 1}})
    refuse(
        tried,
        f"{source}.detach()",
        "loss tried_parts:part: has no gradient",
        search={"space": space, "budget": {"trials": 1}},
    )
    heads = {"model.head": {"choice": ["fcn", "tried_parts:part"]}}
    refuse(
        tried,
        "def part(*_): return 3",
        "head tried_parts:part: must make an nn.Module, but got int",
        search={"space": heads, "budget": {"trials": 1}},
    )
