"""One optimizer step, on every rank the same: the loss of the global batch, its gradient, the update."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from encsearch.config import LossConfig, OptimConfig
from encsearch.data.loading import Inputs
from encsearch.parts import LossPart, MetricPart, PartName, SchedulePart
from encsearch.train.kernels import Kernels
from encsearch.train.loss import Term, TermName, label_divisors, loss_sums, weighted_loss
from encsearch.train.moments import no_notice
from encsearch.train.state import TrainState, update_average


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside the state; `profile_steps` steps of the first epoch are profiled.

    `one_size`: whether all training images have the same size. `save_steps` and `save_minutes`: how often the
    state is saved inside an epoch, None: never. `notice` says whether this rank was told to end; `preempted`,
    which every rank asks at the same steps, whether a machine of the training is about to go.
    """

    epochs: int
    steps_per_epoch: int
    global_batch_size: int
    seed: int
    optim: OptimConfig
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    kernels: Kernels
    one_size: bool = True
    class_weights: Tensor | None = None
    own_losses: Mapping[PartName, LossPart] = field(default_factory=dict)
    own_schedule: SchedulePart | None = None
    own_metric: tuple[PartName, MetricPart] | None = None
    micro_batch_size: int | None = None
    ema: float = 0.0
    profile_steps: int = 0
    max_skipped_steps: int = 0
    save_steps: int | None = None
    save_minutes: float | None = None
    notice: Callable[[], bool] = no_notice
    preempted: Callable[[], bool] = no_notice
    rank: int = 0
    world_size: int = 1

    @property
    def device(self) -> torch.device:
        return self.kernels.device

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def train_step(
    state: TrainState, inputs: Inputs, loss: LossConfig, plan: Plan
) -> tuple[dict[TermName, Term], Tensor]:
    """One update; returns this rank's loss terms and the global gradient norm, the same on every rank.

    A batch larger than `micro_batch_size` goes through in parts, whose gradients add up to that of the whole.
    A gradient that is not finite changes no weight. Nothing is read back from a GPU (except with
    `fused_optimizer` off, and in the first step), so that its queue of work is never empty.
    """
    parts = _split(inputs, loss, plan)
    all_terms: list[dict[TermName, Term]] = []
    divisors: Tensor | None = None
    for part in parts:
        with nullcontext() if part is parts[-1] else _without_sum_over_ranks(state.network):
            with plan.kernels.autocast():
                output = state.network(part.images)
            terms = loss_sums(
                output, part.labels, loss=loss, class_weights=plan.class_weights, own=plan.own_losses
            )
            if divisors is None:
                divisors = _divisors(terms, inputs.labels, plan, is_whole=len(parts) == 1)
                state.optimizer.zero_grad(set_to_none=True)
            # DDP averages gradients over ranks; the loss is a sum over ranks divided by global counts.
            value = weighted_loss(terms, divisors, loss) * plan.world_size
            value.backward()
        all_terms.append(terms)
    terms = _add_terms(all_terms)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), plan.optim.clip_norm or math.inf)
    finite = torch.isfinite(norm)
    # The fused optimizer reads `found_inf` on the device, but leaves a first momentum unwritten (torch 2.15).
    if state.optimizer.defaults.get("fused") and state.optimizer.state:
        state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        state.optimizer.step()
    elif finite:
        state.optimizer.step()
    update_average(state, plan.ema)
    return terms, norm


def _split(inputs: Inputs, loss: LossConfig, plan: Plan) -> list[Inputs]:
    """The batch in parts of `micro_batch_size` at most, as many on every rank: SyncBatchNorm waits for all.

    Whole with OHEM, whose divisor follows from the outputs for the whole batch.
    """
    largest = -(-plan.global_batch_size // plan.world_size)
    if plan.micro_batch_size is None or largest <= plan.micro_batch_size or loss.ohem_threshold is not None:
        return [inputs]
    number = -(-largest // plan.micro_batch_size)
    images, labels = (tensor.tensor_split(number) for tensor in (inputs.images, inputs.labels))
    return [Inputs(*part, ids=()) for part in zip(images, labels, strict=True)]


def _divisors(terms: Mapping[TermName, Term], labels: Tensor, plan: Plan, *, is_whole: bool) -> Tensor:
    """The divisors of the terms over all ranks and parts."""
    found = {name: term.divisor for name, term in terms.items()}
    if not is_whole:
        found |= label_divisors(
            labels, len(plan.classes), class_weights=plan.class_weights, own=plan.own_losses
        )
    divisors = torch.stack([found[name] for name in terms]).to(torch.float64)
    sum_over_ranks(divisors, plan.world_size)
    return divisors


def _add_terms(parts: Sequence[dict[TermName, Term]]) -> dict[TermName, Term]:
    first, *others = parts
    return {
        name: Term(
            sum((part[name].sum.detach() for part in others), term.sum),
            sum((part[name].divisor for part in others), term.divisor),
        )
        for name, term in first.items()
    }


def _without_sum_over_ranks(network: nn.Module) -> AbstractContextManager[None]:
    """DDP sums the gradients of the last part and those before it at once."""
    no_sync = getattr(network, "no_sync", nullcontext)
    context: AbstractContextManager[None] = no_sync()
    return context


def sum_over_ranks(values: Tensor, world_size: int) -> None:
    """Replace the values by their sums over the ranks."""
    if world_size > 1:
        dist.all_reduce(values)
