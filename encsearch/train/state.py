"""The state of a training between two steps; a checkpoint stores exactly this."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from encsearch.config import OptimConfig
from encsearch.errors import UserError
from encsearch.model.encnet import EncNet
from encsearch.parts import PartName, SchedulePart, bind_part, is_part, make_part


@dataclass
class TrainState:
    """The model, its optimizer and the position in the sample stream.

    `step` is also the position in the schedule and the key of the random numbers, and `samples_seen`
    (global, over all ranks) is the whole state of the sampler, so at the end of an epoch nothing else needs
    to be stored. Inside an epoch `parts` has what each rank has of it: sums, random numbers, statistics.
    `network` is what the step calls: the model itself, or its DistributedDataParallel wrapper. `average` has
    the exponential moving average of the model's weights, with `train.ema`.
    """

    model: EncNet
    network: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    samples_seen: int = 0
    parts: tuple[Mapping[str, Any], ...] = ()
    average: EncNet | None = None

    @property
    def evaluated(self) -> EncNet:
        """The model that is validated and kept: the average of the weights, or else the weights."""
        return self.model if self.average is None else self.average


def new_optimizer(model: EncNet, optim: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """SGD or AdamW, whose heads learn `head_lr_factor` times faster than the backbone (reference code: 10).

    Each group remembers its base rate as `base_lr`; the loop scales it by `rate_factor`. `fused`: one kernel
    updates all weights.
    """
    groups = model.parameter_groups(optim.lr, optim.head_lr_factor)
    optimizer: torch.optim.Optimizer
    if is_part(optim.name):
        optimizer = _own_optimizer(optim.name, groups, optim)
        return _keep_base_rates(optimizer)
    match optim.name:
        case "sgd":
            optimizer = torch.optim.SGD(
                groups, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused
            )
        case "adamw":
            betas = (optim.momentum, optim.beta2)
            optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=optim.weight_decay, fused=fused)
    return _keep_base_rates(optimizer)


def _own_optimizer(
    name: PartName, groups: Sequence[Mapping[str, Any]], optim: OptimConfig
) -> torch.optim.Optimizer:
    """Part(groups, lr=, weight_decay=, **args), as PyTorch's optimizers are made; see `contracts`."""
    rates = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    made = make_part("optimizer", name, {**rates, **optim.args.get(name, {})}, groups)
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(f"optimizer {name}: must make a torch.optim.Optimizer, but got {type(made).__name__}")
    return made


def _keep_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def own_schedule(optim: OptimConfig) -> SchedulePart | None:
    """The schedule of `optim.schedule` if it is an own one, ready to be called."""
    name = optim.schedule
    return bind_part("schedule", name, optim.args.get(name, {})) if is_part(name) else None


def rate_factor(step: int, total_steps: int, optim: OptimConfig, own: SchedulePart | None = None) -> float:
    """Factor for the base learning rates when `step` of `total_steps` steps have been taken.

    It rises linearly to 1 in the first round(warmup * total_steps) steps (Goyal et al., arXiv:1706.02677,
    section 2.2). `progress` in [0, 1) is the share taken of the steps after these: poly is
    (1 - progress) ** power (Zhang et al., CVPR 2018, section 4), cosine (1 + cos(pi * progress)) / 2
    (Loshchilov and Hutter, ICLR 2017, equation 5, without restarts). wsd (warm-up, stable, decay; Hu et al.,
    arXiv:2404.06395, section 4) is 1, and falls linearly in the last round(decay * total_steps) steps, to 0
    after the last one. `own` is what `own_schedule` returns.
    """
    assert 0 <= step < total_steps, step
    warmup = round(optim.warmup * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if is_part(optim.schedule):
        assert own is not None
        return float(own(step - warmup, total_steps - warmup))
    progress = (step - warmup) / (total_steps - warmup)
    match optim.schedule:
        case "poly":
            return float((1 - progress) ** optim.poly_power)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            return min(1.0, (total_steps - step) / max(1, round(optim.decay * total_steps)))
        case "constant":
            return 1.0


def new_average(model: EncNet) -> EncNet:
    """A copy of the model for `update_average`, not trained itself."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def update_average(state: TrainState, decay: float) -> None:
    """Take the weights after a step into their average: decay * average + (1 - decay) * weights.

    Early in a training the decay is (1 + n) / (10 + n) after n steps, if that is less (TensorFlow's
    ExponentialMovingAverage), or the random weights of the beginning would stay in it for 1 / (1 - decay)
    steps. Nothing is read back from a GPU, unlike in PyTorch's AveragedModel (2.15), so its function is used
    alone.
    """
    if state.average is None:
        return
    early = (1 + state.step) / (10 + state.step)
    averages, weights = list(state.average.parameters()), list(state.model.parameters())
    get_ema_multi_avg_fn(min(decay, early))(averages, weights, state.step)


def copy_buffers(state: TrainState) -> None:
    """Give the average the model's running statistics of batch norm, before it is validated.

    They are means over steps already. An average of them would keep what a step without a finite gradient
    has left in them, which `Health` takes back only when it reads its count.
    """
    if state.average is not None:
        for average, buffer in zip(state.average.buffers(), state.model.buffers(), strict=True):
            average.copy_(buffer)
