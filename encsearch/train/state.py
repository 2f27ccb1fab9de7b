"""The state of a training between two steps; a checkpoint stores exactly this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from encsearch.config import OptimConfig
from encsearch.model.encnet import EncNet


@dataclass
class TrainState:
    """The model, its optimizer and the position in the sample stream.

    `step` is also the position in the schedule and the key of the random numbers, and `samples_seen`
    (global, over all ranks) is the whole state of the sampler, so at the end of an epoch nothing else needs
    to be stored. Inside an epoch `parts` has what each rank has of it: sums, random numbers, statistics.
    `network` is what the step calls: the model itself, or its DistributedDataParallel wrapper.
    """

    model: EncNet
    network: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    samples_seen: int = 0
    parts: tuple[Mapping[str, Any], ...] = ()


def new_optimizer(model: EncNet, optim: OptimConfig, *, fused: bool = False) -> torch.optim.SGD:
    """SGD whose heads learn `head_lr_factor` times faster than the backbone (reference code: 10).

    Each group remembers its base rate as `base_lr`; the loop scales it by the schedule. `fused`: one kernel
    updates all weights.
    """
    groups = model.parameter_groups(optim.lr, optim.head_lr_factor)
    optimizer = torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused
    )
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer
