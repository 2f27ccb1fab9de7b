"""The training loop as a generator: one report an epoch, no callbacks.

    for report in fit(state, loaders, loss, plan):
        publish(report, state)

Rank, world size and device are values in the plan; with one rank no process group is needed.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from encsearch.config import LossConfig
from encsearch.data.loading import Batch, TrainStream
from encsearch.errors import TrainingError
from encsearch.loss import Term, loss_sums, term_means, term_weights, weighted_loss
from encsearch.metrics import confusion_matrix, scores
from encsearch.records import Report
from encsearch.train.schedules import poly
from encsearch.train.state import TrainState

# The finiteness of the gradients is read back this often, so that the step itself never waits.
STEPS_PER_FINITE_CHECK = 20


@dataclass(frozen=True)
class Loaders:
    """The endless training stream, and a function that starts one pass over this rank's validation part."""

    train: TrainStream
    validation: Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside the state."""

    epochs: int
    steps_per_epoch: int
    global_batch_size: int
    seed: int
    poly_power: float
    clip_norm: float | None
    bf16: bool
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    device: torch.device
    class_weights: Tensor | None = None
    rank: int = 0
    world_size: int = 1

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def fit(state: TrainState, loaders: Loaders, loss: LossConfig, plan: Plan) -> Iterator[Report]:
    """Train from `state` to the end of the plan, yielding one report an epoch after its validation.

    Raises TrainingError at a non-finite gradient, on every rank at the same step.
    """
    batches = loaders.train.batches(state.samples_seen)
    try:
        while state.step < plan.total_steps:
            started = time.monotonic()
            train_metrics = _train_epoch(state, batches, loss, plan)
            _average_batch_norm(state.model, plan.world_size)
            confusion = evaluate(
                state.model,
                loaders.validation(),
                num_classes=len(plan.classes),
                device=plan.device,
                bf16=plan.bf16,
                world_size=plan.world_size,
            )
            result = scores(confusion, plan.classes, plan.groups)
            yield Report(
                epoch=state.step // plan.steps_per_epoch,
                step=state.step,
                seconds=time.monotonic() - started,
                metrics={**result.to_metrics(), **train_metrics},
                class_iou=result.class_iou,
                confusion=tuple(tuple(row) for row in confusion.tolist()),
            )
    finally:
        batches.close()


def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    num_classes: int,
    device: torch.device,
    bf16: bool = False,
    world_size: int = 1,
) -> Tensor:
    """Confusion matrix (num_classes, num_classes) int64 over the samples of all ranks, on the CPU.

    The counts are summed over ranks before any ratio is formed: a mean of per-rank mIoU is another number.
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                output = model(batch.images.to(device, non_blocking=True))
            labels = batch.labels.to(device, non_blocking=True)
            total += confusion_matrix(labels, output.logits.argmax(dim=1), num_classes)
    _sum_over_ranks(total, world_size)
    return total.cpu()


def _train_epoch(
    state: TrainState, batches: Iterator[Batch], loss: LossConfig, plan: Plan
) -> dict[str, float]:
    state.network.train()
    # Dropout is keyed by (seed, step, rank), so a resumed epoch draws what the lost one drew.
    torch.manual_seed(hash((plan.seed, state.step, plan.rank)) % 2**63)
    totals = torch.zeros((), dtype=torch.float64, device=plan.device)  # (T, 2) from the first step on
    finite = torch.ones((), dtype=torch.bool, device=plan.device)
    last_step = (state.step // plan.steps_per_epoch + 1) * plan.steps_per_epoch
    factor = poly(state.step / plan.total_steps, plan.poly_power)
    while state.step < last_step:
        factor = poly(state.step / plan.total_steps, plan.poly_power)
        for group in state.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        terms, norm = train_step(state, next(batches), loss, plan)
        finite &= torch.isfinite(norm)
        totals = totals + torch.stack([torch.stack(term) for term in terms.values()]).detach()
        state.step += 1
        state.samples_seen += plan.global_batch_size
        if (state.step % STEPS_PER_FINITE_CHECK == 0 or state.step == last_step) and not finite:
            raise TrainingError(
                f"non-finite gradient by step {state.step} of {plan.total_steps} "
                f"(lr={factor * state.optimizer.param_groups[0]['base_lr']:.3g}, "
                f"se_weight={loss.se_weight:g}); try a smaller optim.lr or optim.clip_norm"
            )
    _sum_over_ranks(totals, plan.world_size)
    means = dict(zip(terms, term_means(*totals.unbind(dim=1)).tolist(), strict=True))
    weights = term_weights(loss)
    return {
        **{f"train/{name}": mean for name, mean in means.items()},
        "train/loss": sum(weights[name] * mean for name, mean in means.items()),
        "lr": factor * state.optimizer.param_groups[0]["base_lr"],
    }


def train_step(
    state: TrainState, batch: Batch, loss: LossConfig, plan: Plan
) -> tuple[dict[str, Term], Tensor]:
    """One update; returns this rank's loss terms and the global gradient norm, the same on every rank."""
    images = batch.images.to(plan.device, non_blocking=True)
    labels = batch.labels.to(plan.device, non_blocking=True)
    with torch.autocast(plan.device.type, dtype=torch.bfloat16, enabled=plan.bf16):
        output = state.network(images)
    terms = loss_sums(output, labels, loss=loss, class_weights=plan.class_weights)
    divisors = torch.stack([term.divisor for term in terms.values()]).to(torch.float64)
    _sum_over_ranks(divisors, plan.world_size)
    # DDP averages gradients over ranks; the loss is a sum over ranks divided by global counts.
    value = weighted_loss(terms, divisors, loss) * plan.world_size
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), plan.clip_norm or math.inf)
    state.optimizer.step()
    return terms, norm


def _average_batch_norm(model: nn.Module, world_size: int) -> None:
    """Give every rank the mean of all ranks' running statistics.

    Without SyncBatchNorm (CPU, or off) each rank saw other samples; validation must not depend on which.
    """
    if world_size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            for buffer in (module.running_mean, module.running_var):
                dist.all_reduce(buffer)
                buffer /= world_size


def _sum_over_ranks(values: Tensor, world_size: int) -> None:
    if world_size > 1:
        dist.all_reduce(values)
