"""The training loop as a generator: one report per epoch, no callbacks.

    for report in fit(state, loaders, loss, plan):
        publish(report, state)

Rank, world size and device are values in the plan; with one rank no process group is needed.
"""

import base64
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

from encsearch.config import LossConfig
from encsearch.data.codec import encode_png
from encsearch.data.loading import Batch, Inputs, TrainStream, feed
from encsearch.errors import TrainingError, first_line, one_line
from encsearch.metrics import confusion_matrix, scores
from encsearch.model.layers import most_likely
from encsearch.reports import Point, Report
from encsearch.text import format_param
from encsearch.train.curve import EpochSums
from encsearch.train.kernels import Kernels
from encsearch.train.loss import Term, TermName, loss_sums, term_weights, weighted_loss
from encsearch.train.state import TrainState
from encsearch.train.telemetry import (
    PROCESS_MEMORY,
    SystemSampler,
    TimedBatches,
    describe_machine,
    largest_over_ranks,
    profile_table,
    step_profiler,
)

# The finiteness of the gradients is read back only this often, so that a single step never waits.
STEPS_PER_FINITE_CHECK = 20
# Limits of the predictions that are shown during training.
MAX_EPOCHS = 8
MAX_SIDE_PX = 384


def poly(progress: float, power: float) -> float:
    """Factor for the base learning rate: (1 - progress) ** power (Zhang et al., CVPR 2018, section 4).

    `progress` in [0, 1) is the share of all optimizer steps already taken.
    """
    assert 0 <= progress < 1, progress
    return float((1 - progress) ** power)


def shown_epochs(epochs: int) -> frozenset[int]:
    """The first and the last epoch, and others evenly between them; at most MAX_EPOCHS in all."""
    return frozenset(int(epoch) for epoch in np.linspace(1, epochs, min(epochs, MAX_EPOCHS)).round())


def label_maps(model: nn.Module, batches: Iterable[Batch], kernels: Kernels) -> dict[str, str]:
    """The predicted classes of each image by its id: a grey PNG in base64, its long side MAX_SIDE_PX at most.

    A larger map is subsampled, so that every pixel stays a class. The model is left in eval mode.
    """
    maps = {}
    model.eval()
    with torch.inference_mode():
        for inputs in feed(batches, kernels.device, channels_last=kernels.channels_last):
            with kernels.autocast():
                logits = model(inputs.images).logits
            labels = most_likely(logits).unsqueeze(1).to(torch.uint8)
            factor = max(1, max(labels.shape[-2:]) / MAX_SIDE_PX)
            if factor > 1:
                size = [max(1, round(side / factor)) for side in labels.shape[-2:]]
                labels = F.interpolate(labels, size, mode="nearest-exact")
            for name, label_map in zip(inputs.ids, labels[:, 0].cpu().numpy(), strict=True):
                maps[name] = base64.b64encode(encode_png(label_map)).decode("ascii")
    return maps


@dataclass(frozen=True)
class Loaders:
    """The endless training stream, and functions that start one pass over validation images.

    `validation` gives this rank's part, `shown` the few whose predictions are reported, none by default.
    """

    train: TrainStream
    validation: Callable[[], Iterator[Batch]]
    shown: Callable[[], Iterable[Batch]] = tuple


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know beside the state; `profile_steps` steps of the first epoch are profiled.

    `one_size`: whether all training images have the same size.
    """

    epochs: int
    steps_per_epoch: int
    global_batch_size: int
    seed: int
    poly_power: float
    clip_norm: float | None
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    kernels: Kernels
    one_size: bool = True
    class_weights: Tensor | None = None
    profile_steps: int = 0
    rank: int = 0
    world_size: int = 1

    @property
    def device(self) -> torch.device:
        return self.kernels.device

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def fit(state: TrainState, loaders: Loaders, loss: LossConfig, plan: Plan) -> Generator[Report, None, None]:
    """Train from `state` to the end of the plan, yielding one report per epoch after its validation.

    The metrics of a report, except time, throughput and memory, follow from the state and the plan.
    Raises TrainingError at a non-finite gradient, on every rank at the same step.
    """
    stream = loaders.train.batches(state.samples_seen)
    sampler = SystemSampler(plan.device)
    # Sent with the first report of each process, since a resumed training may be on another machine.
    epoch = state.step // plan.steps_per_epoch + 1
    facts = describe_machine(plan.device) + f"precision: {'bf16' if plan.kernels.bf16 else 'fp32'}\n"
    machine = {f"lineage/machine_epoch_{epoch}.txt": facts}
    try:
        while state.step < plan.total_steps:
            report = _run_epoch(state, stream, sampler, loaders, loss, plan)
            yield replace(report, texts={**report.texts, **machine})
            machine = {}
    finally:
        stream.close()


def evaluate(
    model: nn.Module, batches: Iterator[Batch], kernels: Kernels, *, num_classes: int, world_size: int = 1
) -> Tensor:
    """Confusion matrix (num_classes, num_classes) int64 over the samples of all ranks, on the CPU.

    The counts are summed over ranks before any ratio is formed: a mean of per-rank mIoUs would differ.
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=kernels.device)
    model.eval()
    with torch.inference_mode():
        for inputs in feed(batches, kernels.device, channels_last=kernels.channels_last):
            with kernels.autocast():
                output = model(inputs.images)
            total += confusion_matrix(inputs.labels, most_likely(output.logits), num_classes)
    _sum_over_ranks(total, world_size)
    return total.cpu()


def train_step(
    state: TrainState, inputs: Inputs, loss: LossConfig, plan: Plan
) -> tuple[dict[TermName, Term], Tensor]:
    """One update; returns this rank's loss terms and the global gradient norm, the same on every rank.

    Nothing is read back from the device, so that a GPU's queue of work is never empty.
    """
    with plan.kernels.autocast():
        output = state.network(inputs.images)
    terms = loss_sums(output, inputs.labels, loss=loss, class_weights=plan.class_weights)
    divisors = torch.stack([term.divisor for term in terms.values()]).to(torch.float64)
    _sum_over_ranks(divisors, plan.world_size)
    # DDP averages gradients over ranks; the loss is a sum over ranks divided by global counts.
    value = weighted_loss(terms, divisors, loss) * plan.world_size
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), plan.clip_norm or math.inf)
    state.optimizer.step()
    return terms, norm


def _run_epoch(
    state: TrainState,
    stream: Iterator[Batch],
    sampler: SystemSampler,
    loaders: Loaders,
    loss: LossConfig,
    plan: Plan,
) -> Report:
    """Train, validate and report. Times and memory are the largest over the ranks."""
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    started, first_step = time.monotonic(), state.step
    batches = TimedBatches(stream)
    profiler = (
        step_profiler(plan.steps_per_epoch, plan.profile_steps, plan.device)
        if plan.profile_steps and first_step == 0
        else None
    )
    with sampler.running(lambda: state.step) as system:
        with profiler or nullcontext(), plan.kernels.chosen(one_size=plan.one_size):
            train_metrics, points = _train_epoch(state, batches, loss, plan, profiler)
        trained = time.monotonic()
        _average_batch_norm(state.model, plan.world_size)
        with plan.kernels.chosen(one_size=False):
            confusion = evaluate(
                state.model,
                loaders.validation(),
                plan.kernels,
                num_classes=len(plan.classes),
                world_size=plan.world_size,
            )
        validated = time.monotonic()
    costs = {
        "time/data": batches.waited_s,
        "time/train": trained - started,
        "time/validation": validated - trained,
        **_memory(system, plan.device),
    }
    costs = largest_over_ranks(costs, plan.device, plan.world_size)
    num_images = (state.step - first_step) * plan.global_batch_size
    costs |= {"throughput/images_per_s": num_images / costs["time/train"], "world_size": plan.world_size}
    epoch = state.step // plan.steps_per_epoch
    result = scores(confusion, plan.classes, plan.groups)
    shown = loaders.shown() if epoch in shown_epochs(plan.epochs) else ()
    maps = label_maps(state.model, shown, plan.kernels)
    return Report(
        epoch=epoch,
        step=state.step,
        seconds=time.monotonic() - started,
        metrics={**result.to_metrics(), **train_metrics, **costs},
        class_iou=result.class_iou,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        points=(*points, *system),
        label_maps=maps,
        texts={"profile.txt": profile_table(profiler, plan.device)} if profiler else {},
    )


def _memory(system: list[Point], device: torch.device) -> dict[str, float]:
    """The most memory that this rank took in an epoch; 0 where nothing measures it."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "memory/process_megabytes": max(
            (point.values.get(PROCESS_MEMORY, 0.0) for point in system), default=0
        ),
        "memory/gpu_peak_megabytes": peak / 1e6,
    }


def _train_epoch(
    state: TrainState, batches: Iterator[Batch], loss: LossConfig, plan: Plan, profiler: profile | None
) -> tuple[dict[str, float], tuple[Point, ...]]:
    """The means over all ranks for the epoch, and for its parts."""
    state.network.train()
    # Dropout is keyed by (seed, step, rank), so a resumed epoch draws what the lost one drew.
    torch.manual_seed(hash((plan.seed, state.step, plan.rank)) % 2**63)
    curve = EpochSums(plan.steps_per_epoch)
    finite = torch.ones((), dtype=torch.bool, device=plan.device)
    last_step = (state.step // plan.steps_per_epoch + 1) * plan.steps_per_epoch
    rate = math.nan
    inputs = feed(batches, plan.device, channels_last=plan.kernels.channels_last)
    while state.step < last_step:
        rate = _set_rate(state, plan)
        batch = next(inputs)
        try:
            terms, norm = train_step(state, batch, loss, plan)
        except RuntimeError as error:
            if plan.kernels.deterministic and "deterministic" in str(error):
                raise TrainingError(f"train.deterministic: {one_line(first_line(error))}") from None
            raise
        finite &= torch.isfinite(norm)
        state.step += 1
        state.samples_seen += plan.global_batch_size
        curve.add(terms, norm, step=state.step, lr=rate)
        if profiler:
            profiler.step()
        if (state.step % STEPS_PER_FINITE_CHECK == 0 or state.step == last_step) and not finite:
            raise TrainingError(
                f"non-finite gradient by step {state.step} of {plan.total_steps} "
                f"(lr={format_param(rate)}, se_weight={format_param(loss.se_weight)}); try a smaller "
                "optim.lr or optim.clip_norm"
            )
    means = curve.means(term_weights(loss), plan.world_size)
    return {**means.metrics, "lr": rate}, means.points


def _set_rate(state: TrainState, plan: Plan) -> float:
    """Set every group's learning rate for this step; returns the first group's, the backbone's."""
    factor = poly(state.step / plan.total_steps, plan.poly_power)
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    rate: float = state.optimizer.param_groups[0]["lr"]
    return rate


def _average_batch_norm(model: nn.Module, world_size: int) -> None:
    """Give every rank the mean of all ranks' running statistics.

    Without SyncBatchNorm (CPU, or off) each rank saw other samples; validation must not depend on the rank.
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
