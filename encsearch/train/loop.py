"""The training loop as a generator: one report per epoch, no callbacks.

    for event in fit(state, loaders, loss, plan):
        publish(event, state)

Rank, world size and device are values in the plan; with one rank no process group is needed.
"""

import base64
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

from encsearch.config import LossConfig
from encsearch.data.codec import encode_png
from encsearch.data.datasets import IGNORE
from encsearch.data.loading import Batch, TrainStream, feed
from encsearch.errors import TrainingError, UserError, first_line, one_line
from encsearch.metrics import confusion_matrix, scores
from encsearch.model.layers import most_likely
from encsearch.parts import MetricPart, PartName
from encsearch.reports import Point, Report
from encsearch.text import format_param
from encsearch.train.curve import EpochSums
from encsearch.train.health import Health
from encsearch.train.kernels import Kernels
from encsearch.train.loss import term_weights
from encsearch.train.moments import Moment, Moments
from encsearch.train.state import TrainState, copy_buffers, rate_factor
from encsearch.train.step import Plan, sum_over_ranks, train_step
from encsearch.train.telemetry import (
    PROCESS_MEMORY,
    SystemSampler,
    TimedBatches,
    describe_machine,
    largest_over_ranks,
    profile_table,
    step_profiler,
)

# Limits of the predictions that are shown during training.
MAX_EPOCHS = 8
MAX_SIDE_PX = 384


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


def fit(
    state: TrainState, loaders: Loaders, loss: LossConfig, plan: Plan
) -> Generator[Report | Moment, None, None]:
    """Train from `state` to the end of the plan, yielding one report per epoch after its validation.

    Between two steps it yields a Moment when the state is to be saved, as the plan says; after Moment.END it
    ends. The metrics of a report, except time, throughput and memory, follow from the state and the plan.
    Raises TrainingError at too many non-finite gradients, on every rank at the same step.
    """
    moments = Moments(
        first_step=state.step,
        every_steps=plan.save_steps,
        every_minutes=plan.save_minutes,
        notice=plan.notice,
        preempted=plan.preempted,
        device=plan.device,
        world_size=plan.world_size,
    )
    stream = loaders.train.batches(state.samples_seen)
    sampler = SystemSampler(plan.device)
    # Sent with the first report of each process, since a resumed training may be on another machine.
    epoch = _epoch(state, plan)
    facts = describe_machine(plan.device) + f"precision: {'bf16' if plan.kernels.bf16 else 'fp32'}\n"
    machine = {f"lineage/machine_epoch_{epoch}.txt": facts}
    try:
        # With parts the validation after the last step is still to come.
        while state.step < plan.total_steps or state.parts:
            report = yield from _run_epoch(state, stream, sampler, loaders, loss, plan, moments)
            if report is None:
                return
            yield replace(report, texts={**report.texts, **machine})
            moments.saved()
            machine = {}
    finally:
        stream.close()


def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    kernels: Kernels,
    *,
    num_classes: int,
    world_size: int = 1,
    own: "OwnFigure | None" = None,
) -> Tensor:
    """Confusion matrix (num_classes, num_classes) int64 over the samples of all ranks, on the CPU.

    `own` counts for an own metric beside it. The counts are summed over ranks before any ratio is formed: a
    mean of per-rank mIoUs would differ.
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=kernels.device)
    model.eval()
    with torch.inference_mode():
        for inputs in feed(batches, kernels.device, channels_last=kernels.channels_last):
            with kernels.autocast():
                output = model(inputs.images)
            predictions = most_likely(output.logits)
            total += confusion_matrix(inputs.labels, predictions, num_classes)
            if own:
                own.add(inputs.labels, predictions)
    sum_over_ranks(total, world_size)
    return total.cpu()


class OwnFigure:
    """Adds up the counts of an own metric over the batches of a rank, and then over all ranks."""

    def __init__(self, name: PartName, metric: MetricPart, num_classes: int, device: torch.device) -> None:
        self._name, self._metric = name, metric
        # A rank may have no batch, and must know the shape.
        nothing = torch.full((1, 1, 1), IGNORE, dtype=torch.uint8, device=device)
        self._num_classes = num_classes
        self._total = torch.zeros_like(self._count(nothing, torch.zeros_like(nothing, dtype=torch.int64)))

    def add(self, labels: Tensor, predictions: Tensor) -> None:
        self._total += self._count(labels, predictions)

    def score(self, world_size: int = 1) -> dict[str, float]:
        """The figure by its name."""
        sum_over_ranks(self._total, world_size)
        return {self._name: score_own(self._name, self._metric, self._total.cpu())}

    def _count(self, labels: Tensor, predictions: Tensor) -> Tensor:
        return count_own(self._metric, labels, predictions, self._num_classes)


def count_own(metric: MetricPart, labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """The counts of an own metric, float64. It gets int64: sums of bytes would overflow."""
    return metric.count(labels.long(), predictions.long(), num_classes).to(torch.float64)


def score_own(name: PartName, metric: MetricPart, counts: Tensor) -> float:
    """The figure of summed counts, float64 on the CPU. Raises UserError where it fails or is not finite."""
    try:
        figure = float(metric.score(counts))
    except Exception as error:
        raise UserError(f"metric {name}: score() fails ({type(error).__name__}: {one_line(error)})") from None
    if not math.isfinite(figure):
        raise UserError(f"metric {name}: is {figure} for a whole set; it must be in [0, 1]")
    return figure


def _run_epoch(
    state: TrainState,
    stream: Iterator[Batch],
    sampler: SystemSampler,
    loaders: Loaders,
    loss: LossConfig,
    plan: Plan,
    moments: Moments,
) -> Generator[Moment, None, Report | None]:
    """Train, validate and report; None if told to end. Times are the largest over the ranks."""
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
            epoch = _Epoch(state, plan, loss)
            ended = yield from epoch.train(batches, moments, profiler)
        if ended:
            return None
        trained = time.monotonic()
        if state.step > first_step:  # else a checkpoint from the validation has them as averaged
            _average_batch_norm(state.model, plan.world_size)
        copy_buffers(state)
        own = OwnFigure(*plan.own_metric, len(plan.classes), plan.device) if plan.own_metric else None
        with plan.kernels.chosen(one_size=False):
            confusion = evaluate(
                state.evaluated,
                takewhile(lambda _: not plan.notice(), loaders.validation()),
                plan.kernels,
                num_classes=len(plan.classes),
                world_size=plan.world_size,
                own=own,
            )
        if moments.ends():  # the counts may lack images
            epoch.keep()
            yield Moment.END
            return None
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
    number = state.step // plan.steps_per_epoch
    result = scores(confusion, plan.classes, plan.groups)
    own_figure = own.score(plan.world_size) if own else {}
    shown = loaders.shown() if number in shown_epochs(plan.epochs) else ()
    maps = label_maps(state.evaluated, shown, plan.kernels)
    train_metrics, points = epoch.figures()
    return Report(
        epoch=number,
        step=state.step,
        seconds=time.monotonic() - started,
        metrics={**result.to_metrics(), **own_figure, **train_metrics, **costs},
        class_iou=result.class_iou,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        points=(*points, *system),
        label_maps=maps,
        texts=epoch.texts() | ({"profile.txt": profile_table(profiler, plan.device)} if profiler else {}),
    )


def _epoch(state: TrainState, plan: Plan) -> int:
    """The number, from 1, of the epoch that is being trained or comes next."""
    return (state.step - (1 if state.parts else 0)) // plan.steps_per_epoch + 1


def _memory(system: list[Point], device: torch.device) -> dict[str, float]:
    """The most memory that this rank took in an epoch; 0 where nothing measures it."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "memory/process_megabytes": max(
            (point.values.get(PROCESS_MEMORY, 0.0) for point in system), default=0
        ),
        "memory/gpu_peak_megabytes": peak / 1e6,
    }


class _Epoch:
    """The steps of one epoch and what they add up to; it may begin in the middle, from `state.parts`."""

    def __init__(self, state: TrainState, plan: Plan, loss: LossConfig) -> None:
        self._state, self._plan, self._loss = state, plan, loss
        self._number = _epoch(state, plan)
        self._last_step = self._number * plan.steps_per_epoch
        self._curve = EpochSums(plan.steps_per_epoch)
        # An epoch without any step that counts has no figures.
        limit = min(plan.max_skipped_steps, plan.steps_per_epoch - 1)
        self._health = Health(state.model, limit, plan.device, plan.world_size)
        self._rate = math.nan

    def train(
        self, batches: Iterator[Batch], moments: Moments, profiler: profile | None
    ) -> Generator[Moment, None, bool]:
        """Train to the end of the epoch; returns whether the training was told to end before."""
        state, plan = self._state, self._plan
        state.network.train()
        # Dropout is keyed by (seed, step, rank), so a resumed epoch draws what the lost one drew.
        torch.manual_seed(hash((plan.seed, state.step, plan.rank)) % 2**63)
        self._take_up()
        inputs = feed(batches, plan.device, channels_last=plan.kernels.channels_last)
        while state.step < self._last_step:
            self._rate = _set_rate(state, plan)
            batch = next(inputs)
            try:
                terms, norm = train_step(state, batch, self._loss, plan)
            except RuntimeError as error:
                if plan.kernels.deterministic and "deterministic" in str(error):
                    raise TrainingError(f"train.deterministic: {one_line(first_line(error))}") from None
                raise
            state.step += 1
            state.samples_seen += plan.global_batch_size
            self._curve.add(terms, norm, step=state.step, lr=self._rate)
            self._health.judge(norm, state.step, batch.ids)
            if profiler:
                profiler.step()
            is_last = state.step == self._last_step
            moment = None if is_last else moments.after(state.step)
            self._check(now=is_last or moment is not None)
            if moment:
                self.keep()
                yield moment
                state.parts = ()
                if moment is Moment.END:
                    return True
        return False

    def keep(self) -> None:
        """Put what the ranks have of this epoch into the state, for a checkpoint."""
        plan, model = self._plan, self._state.model
        part: dict[str, Any] = {
            "sums": self._curve.to_part(),
            "health": self._health.to_part(),
            "rng": torch.get_rng_state(),
            # Without SyncBatchNorm each rank has its own until the epoch ends.
            "buffers": {
                name: buffer.to("cpu", copy=True)
                for name, buffer in model.named_buffers()
                if plan.world_size > 1
            },
        }
        if plan.device.type == "cuda":
            part["device_rng"] = torch.cuda.get_rng_state(plan.device)
        parts: list[Any] = [part]
        if plan.world_size > 1:
            parts = [None] * plan.world_size
            dist.all_gather_object(parts, part)
        self._state.parts = tuple(parts)

    def figures(self) -> tuple[dict[str, float], tuple[Point, ...]]:
        """The means over all ranks for the epoch, and for its parts."""
        means = self._curve.means(term_weights(self._loss), self._plan.world_size)
        skipped = {"train/skipped_steps": float(self._health.num_skipped)} if self._health.num_skipped else {}
        return {**means.metrics, **skipped, "lr": self._rate}, means.points

    def texts(self) -> dict[str, str]:
        """The samples of the steps that were skipped, if any were."""
        lines = self._health.describe()
        return {f"skipped_steps_epoch_{self._number}.txt": lines} if lines else {}

    def _check(self, *, now: bool) -> None:
        if why := self._health.read(self._state.step, now=now):
            raise TrainingError(
                f"{why} (lr={format_param(self._rate)}, se_weight={format_param(self._loss.se_weight)}); try "
                "a smaller optim.lr or optim.clip_norm"
            )

    def _take_up(self) -> None:
        """Go on inside the epoch from a checkpoint; on another number of ranks the first takes all sums."""
        parts, plan = self._state.parts, self._plan
        self._state.parts = ()
        if not parts:
            return
        if len(parts) == plan.world_size:
            part = parts[plan.rank]
            self._curve.take_up([part["sums"]], plan.device)
            self._state.model.load_state_dict(part["buffers"], strict=False)
            torch.set_rng_state(part["rng"])
            if "device_rng" in part and plan.device.type == "cuda":
                torch.cuda.set_rng_state(part["device_rng"], plan.device)
        else:
            part = parts[0]
            self._curve.take_up([part["sums"] for part in parts], plan.device)
            averages = _average_buffers([part["buffers"] for part in parts])
            self._state.model.load_state_dict(averages, strict=False)
            lines = [line for part in parts for line in part["health"]["lines"]]
            part = {**part, "health": {**part["health"], "lines": lines if plan.rank == 0 else []}}
            if plan.rank > 0:
                self._curve.clear()
        self._health.take_up(part["health"])
        self._rate = self._curve.last_rate


def _average_buffers(of_ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The means of the ranks' statistics; counts are the same on all."""
    return {
        name: torch.stack([buffers[name] for buffers in of_ranks]).mean(dim=0)
        if first.is_floating_point()
        else first
        for name, first in of_ranks[0].items()
    }


def _set_rate(state: TrainState, plan: Plan) -> float:
    """Set every group's learning rate for this step; returns the first group's, the backbone's."""
    factor = rate_factor(state.step, plan.total_steps, plan.optim, plan.own_schedule)
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
