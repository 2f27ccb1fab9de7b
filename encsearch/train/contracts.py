"""Try the own parts of a recipe before anything starts: each must do what its contract says.

`LossPart`, `TransformPart`, `SchedulePart` and `MetricPart` in `encsearch.parts` are contracts; those of
networks are in `encsearch.model.own`. An optimizer is made as `Part(groups, lr=, weight_decay=, **args)`, has
those groups, and goes on from its state dict as it would have. `check_sampler` in `search` tries
a sampler.
"""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encsearch.config import Config, named_parts, with_values
from encsearch.config.tree import PART_PATH
from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.store import Store
from encsearch.data.transforms import OwnTransforms, augment_sample
from encsearch.errors import UserError, one_line
from encsearch.model.encnet import EncNet
from encsearch.parts import Kind, PartName, make_part
from encsearch.text import format_given, format_param
from encsearch.train.loss import own_losses
from encsearch.train.state import new_optimizer, own_schedule, rate_factor

TRIED_STEPS = 20
SIZE = 64, 96  # px, of the images on which losses, metrics and whole networks are tried


def check_parts(config: Config, store: Store) -> None:
    """Make each own part that the recipe names, also in its search, and try it; some seconds for a network.

    Arguments that are searched have their first value. Raises UserError with one line.
    """
    named = named_parts(config)
    if not named:
        return
    space = config.search.space if config.search else {}
    first = {path: dimension.examples[0] for path, dimension in space.items() if PART_PATH.fullmatch(path)}
    base = with_values(config.model_copy(update={"search": None}), first)
    for name, (kind, path) in named.items():
        _check_part(base, store, kind, name, path)


def _check_part(base: Config, store: Store, kind: Kind, name: PartName, path: str) -> None:
    classes = len(store.info.classes)
    match kind:
        case "backbone" | "head" | "context":
            _check_network(with_values(base, {path: name}), classes, kind, name)
        case "loss":
            _check_loss(with_values(base, {f"loss.terms.{name}": 1.0}), classes, name)
        case "transform":
            _check_transform(with_values(base, {path: [name]}), store, name)
        case "schedule":
            _check_schedule(with_values(base, {path: name}), name)
        case "optimizer":
            _check_optimizer(with_values(base, {path: name}), name)
        case "metric":
            _check_metric(base, classes, name)
        case "dataset" | "sampler":  # where they are made
            pass


def _check_network(config: Config, num_classes: int, kind: Kind, name: PartName) -> None:
    """Twice the same weights of one seed, twice the same logits of one image, and a gradient."""
    networks = []
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(config.train.seed)
            networks.append(EncNet.from_config(config.model, num_classes).eval())
        states = [network.state_dict() for network in networks]
        for key, value in states[0].items():
            if key not in states[1] or not torch.equal(value, states[1][key]):
                raise UserError(
                    f"{kind} {name}: {key} differs when it is made again with the same seed; draw its "
                    "weights from torch's random numbers alone"
                )
        images = torch.randn(2, 3, 2 * SIZE[0], 2 * SIZE[1])
        model = networks[0]
        with torch.no_grad():
            first, second = (_call(lambda: model(images).logits, kind, name) for _ in range(2))
        _call(lambda: model.train()(images).logits.sum().backward(), kind, name)
    if not torch.equal(first, second):
        raise UserError(f"{kind} {name}: gives other outputs for the same images in eval mode")
    if not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        raise UserError(f"{kind} {name}: its gradient is not finite")
    if not any(p.grad is not None for p in model.parameters()):
        raise UserError(f"{kind} {name}: no weight has a gradient")


def _check_loss(config: Config, num_classes: int, name: PartName) -> None:
    part = own_losses(config.loss)[name]
    if isinstance(part, nn.Module) and any(True for _ in part.parameters()):
        raise UserError(f"loss {name}: has weights, which no optimizer trains; use buffers, or none")
    logits, labels = _try_outputs(num_classes)
    given = labels.clone()
    found = _call(lambda: part(logits, labels), "loss", name)
    if not torch.equal(labels, given):
        raise UserError(f"loss {name}: changes the given labels in place; copy them")
    if not isinstance(found, Tensor) or found.shape != (len(labels),) or not found.is_floating_point():
        raise UserError(
            f"loss {name}: must return a value for each image, a float tensor ({len(labels)},), but got "
            f"{_describe(found)}"
        )
    if not found[:2].isfinite().all():
        raise UserError(f"loss {name}: is {found[:2].tolist()} for random logits; it must be finite")
    if not found.requires_grad:
        raise UserError(f"loss {name}: has no gradient with respect to the logits")
    if not torch.equal(found[:2], _call(lambda: part(logits, labels), "loss", name)[:2]):
        raise UserError(f"loss {name}: gives another value for the same logits and labels")
    alone = _call(lambda: part(logits[:1], labels[:1]), "loss", name)
    if not torch.allclose(found[:1], alone, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"loss {name}: the first image has {format_given(found[0].item())} in a batch of {len(labels)}, "
            f"but {format_given(alone[0].item())} alone; a value may depend on its own image only"
        )
    (gradient,) = torch.autograd.grad(found[:2].sum(), logits)
    if not gradient.isfinite().all():
        raise UserError(
            f"loss {name}: its gradient is not finite for random logits and three images, the last of which "
            "has no labels"
        )


def _check_transform(config: Config, store: Store, name: PartName) -> None:
    """On a crop as training takes it; `OwnTransforms` looks at sizes and types."""
    sample = store.split(config.data.train_split)[0]
    own = OwnTransforms.of(config.augment)
    crop, _ = augment_sample(sample, config.augment, np.random.default_rng(0))
    found = []
    for _ in range(2):
        given = Sample(crop.id, crop.image.copy(), crop.mask.copy())
        found.append(_call(partial(own, given, np.random.default_rng(1)), "transform", name))
        if not (np.array_equal(given.image, crop.image) and np.array_equal(given.mask, crop.mask)):
            raise UserError(f"transform {name}: changes the given arrays in place; copy them")
    if not all(np.array_equal(getattr(found[0], n), getattr(found[1], n)) for n in ("image", "mask")):
        raise UserError(f"transform {name}: gives another image for the same `rng`; draw all chance from it")
    strange = set(np.unique(found[0].mask).tolist()) - {*range(len(store.info.classes)), IGNORE}
    if strange:
        raise UserError(
            f"transform {name}: the mask has {min(strange)}, which is neither a class nor {IGNORE}"
        )


def _check_schedule(config: Config, name: PartName) -> None:
    own = own_schedule(config.optim)
    for step in range(TRIED_STEPS):
        factors = [
            _call(partial(rate_factor, step, TRIED_STEPS, config.optim, own), "schedule", name)
            for _ in range(2)
        ]
        if not (math.isfinite(factors[0]) and factors[0] >= 0):
            raise UserError(
                f"schedule {name}: is {format_given(factors[0])} at step {step} of {TRIED_STEPS}; it must be "
                "0 or more"
            )
        if factors[0] != factors[1]:
            raise UserError(f"schedule {name}: gives another factor for the same step, so no resume is exact")


def _check_optimizer(config: Config, name: PartName) -> None:
    """It must lower a loss, keep the two groups, and go on from its state dict bit for bit."""

    def start() -> tuple[EncNet, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model: Any = _Two()
        return model, new_optimizer(model, config.optim)

    def run(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad(set_to_none=True)
            model(torch.full((4, 3), 0.1 * (step + 1))).square().sum().backward()
            _call(optimizer.step, "optimizer", name)

    with torch.random.fork_rng():
        model, optimizer = start()
        rates = [group["lr"] for group in optimizer.param_groups]
        wanted = [config.optim.lr, config.optim.lr * config.optim.head_lr_factor]
        if rates != wanted:
            raise UserError(f"optimizer {name}: must keep both groups with rates {wanted}, but has {rates}")
        run(model, optimizer, range(3))
        kept = [value.detach().clone() for value in model.parameters()]
        archive = io.BytesIO()
        torch.save(optimizer.state_dict(), archive)
        run(model, optimizer, range(3, 6))
        again, resumed = start()
        for value, old in zip(again.parameters(), kept, strict=True):
            value.data.copy_(old)
        archive.seek(0)
        state = _call(lambda: torch.load(archive, weights_only=True), "optimizer", name)  # as a checkpoint is
        _call(lambda: resumed.load_state_dict(state), "optimizer", name)
    run(again, resumed, range(3, 6))
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        if not torch.equal(old, new):
            raise UserError(f"optimizer {name}: goes on from its state dict in another way; keep all in it")
    if torch.equal(kept[0], next(model.parameters())):
        raise UserError(f"optimizer {name}: a step changes no weight")


class _Two(nn.Module):
    """A backbone and a head, as small as they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(inputs))
        return out

    parameter_groups = EncNet.parameter_groups


def _check_metric(config: Config, num_classes: int, name: PartName) -> None:
    metric = make_part("metric", name, config.eval.args.get(name, {}))
    for needed in ("count", "score"):
        if not callable(getattr(metric, needed, None)):
            raise UserError(f"metric {name}: has no {needed}(); it needs count() and score()")
    logits, labels = _try_outputs(num_classes)
    chance, right = logits.argmax(dim=1), labels.clamp(max=num_classes - 1)

    def count(predictions: Tensor, images: slice = slice(None), side: int | None = None) -> Any:
        given = [tensor[images, :side, :side] for tensor in (labels, predictions)]
        kept = [tensor.clone() for tensor in given]
        found = _call(lambda: metric.count(*given, num_classes), "metric", name)
        if not all(map(torch.equal, given, kept)):
            raise UserError(f"metric {name}: count() changes what it is given in place; copy it")
        if not isinstance(found, Tensor):
            raise UserError(f"metric {name}: count() must return a tensor, but got {_describe(found)}")
        return found

    counts, each = count(chance), [count(chance, slice(i, i + 1)) for i in range(len(labels))]
    # Training begins with an image of one pixel, for ranks without any image.
    for one in (*each, count(chance, side=1)):
        if one.shape != counts.shape:
            raise UserError(
                f"metric {name}: count() must return a tensor of a fixed shape, but got "
                f"{_describe(counts)} and {_describe(one)} of other images"
            )
    if not torch.allclose(counts.double(), torch.stack(each).double().sum(dim=0), rtol=1e-6, atol=1e-9):
        raise UserError(
            f"metric {name}: the counts of {len(labels)} images are not the sum of those of each; they must "
            "add up"
        )
    worse, best = (_call(partial(_score, metric, found), "metric", name) for found in (counts, count(right)))
    figures = f"{format_param(worse)} by chance and {format_param(best)} where all is right"
    if not (0 <= worse <= 1 and 0 <= best <= 1):
        raise UserError(f"metric {name}: must be in [0, 1], but is {figures}")
    if best < worse:
        raise UserError(f"metric {name}: is {figures}; the more must be the better")


def _score(metric: Any, counts: Tensor) -> float:
    return float(metric.score(counts.double()))


def _try_outputs(num_classes: int) -> tuple[Tensor, Tensor]:
    """Random logits of three images, and labels; the last image has none."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, num_classes, *SIZE, generator=generator, requires_grad=True)
    labels = torch.randint(num_classes, (3, *SIZE), generator=generator)
    labels[:, :8] = IGNORE
    labels[2] = IGNORE
    return logits, labels


def _call(function: Callable[[], Any], kind: Kind, name: PartName) -> Any:
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} {name}: fails ({type(error).__name__}: {one_line(error)})") from None


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
