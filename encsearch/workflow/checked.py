"""What `encsearch check` finds out, and how it is told; a sweep's driver, which has no torch, reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from encsearch.config import Config, SearchConfig
from encsearch.search.budget.forecast import Interval
from encsearch.text import (
    format_bytes,
    format_cost,
    format_count,
    format_duration,
    format_params,
    format_price,
)
from encsearch.train.preflight import PaddedImages, Preflight


@dataclass(frozen=True)
class Calibration:
    """One worker's seconds to build an experiment, for a step, a validation batch and a whole epoch."""

    build_s: float
    step_s: float
    validation_batch_s: float
    epoch_s: float


@dataclass(frozen=True)
class CheckedNetwork:
    """A network of the space, by the values that determine its size; `refused` is a limit that it exceeds."""

    values: Mapping[str, Any]
    parameters: int
    memory_gib: float
    refused: str | None


@dataclass(frozen=True)
class CheckedSearch:
    """The expected cost of a sweep.

    `calibrations` were made on `device`, for the networks that need the least memory and the most, in this
    order. If nothing was measured there are none, and no times.
    """

    networks: tuple[CheckedNetwork, ...]
    first_points: tuple[Mapping[str, Any], ...]
    disk_bytes: int
    free_bytes: int
    trials_at_once: int
    device: str
    calibrations: tuple[Calibration, ...]
    trials: Interval
    epochs: Interval
    wall_s: Interval | None
    device_s: Interval | None
    price: float | None


@dataclass(frozen=True)
class Checked:
    """`search` is None for a recipe without a search block.

    `gpu` describes this machine's GPU, or says why there is none; None for a recipe that books none.
    """

    preflight: Preflight
    gpu: str | None
    search: CheckedSearch | None


def describe_check(config: Config, checked: Checked) -> list[str]:
    """Describe the results for people."""
    found = checked.preflight
    text = [
        f"{config.data.store}: {format_count(found.num_train)} training and {format_count(found.num_val)} "
        f"validation samples, {format_count(found.num_classes, 'class')}, fingerprint "
        f"{found.fingerprint[:12]}",
        f"{config.model.backbone} with context {config.model.context}: "
        f"{format_count(found.num_parameters, 'parameter')}",
        f"{format_count(config.train.epochs, 'epoch')} of {format_count(found.steps_per_epoch, 'step')}, "
        f"global batch size {config.train.global_batch_size}",
    ]
    text += found.facts
    if found.padded:
        text.append(_describe_padded(found.padded, found.num_train))
    if checked.gpu:
        text.append(checked.gpu)
    if config.search and checked.search:
        text += _describe_search(config.search, checked.search, config.train.epochs)
    return text


def _describe_padded(padded: PaddedImages, num_train: int) -> str:
    """A warning when it is most of the images."""
    height, width = padded.crop
    smaller = (
        f"{format_count(padded.num_images)} of {format_count(num_train, 'training image')} are smaller than "
        f"the crop of {width}x{height} px and padded with pixels that are ignored"
    )
    if 2 * padded.num_images <= num_train:
        return smaller
    return f"warning: {smaller}; try a smaller crop, as [height, width], or a larger augment.shorter_side"


def _describe_search(search: SearchConfig, checked: CheckedSearch, num_epochs: int) -> list[str]:
    text = [
        f"up to {format_count(search.budget.trials, 'trial')} over {', '.join(search.space)}, "
        f"{checked.trials_at_once} at once"
    ]
    text += [
        f"  {format_params(network.values) or 'every network'}: "
        f"{format_count(network.parameters, 'parameter')}, "
        f"{format_bytes(network.memory_gib * 2**30)} of memory a worker"
        + (f"; refused: {network.refused}" if network.refused else "")
        for network in checked.networks
    ]
    text += [
        "first trials, if each begins before another has ended:",
        *(f"  {format_params(point)}" for point in checked.first_points),
    ]
    needed, free = format_bytes(checked.disk_bytes), format_bytes(checked.free_bytes)
    text.append(f"disk: {needed} needed at most, {free} free")
    return text + _describe_time(checked, num_epochs)


def _describe_time(checked: CheckedSearch, num_epochs: int) -> list[str]:
    trained = f"{_range(checked.trials)} trials of {_range(checked.epochs)} epochs together"
    if not checked.wall_s or not checked.device_s:
        return [f"{trained}; how long that takes was not measured on this machine ({checked.device})"]
    low, high, middle = (
        format_duration(s) for s in (checked.wall_s.low, checked.wall_s.high, checked.wall_s.median)
    )
    unit = "GPU" if checked.device.startswith("cuda") else "CPU"
    epochs = dict.fromkeys(format_duration(calibration.epoch_s) for calibration in checked.calibrations)
    one = sorted(num_epochs * calibration.epoch_s for calibration in checked.calibrations)
    training = " to ".join(dict.fromkeys(map(format_duration, one)))
    return [
        f"one training of {format_count(num_epochs, 'epoch')}, as by `encsearch train`: {training}",
        f"expected: {low} to {high}, confirmation included (80 % interval, median {middle}); "
        f"{format_cost(checked.device_s.median, unit)}{format_price(checked.price)}; {trained}",
        f"by epochs of {' to '.join(epochs)}, measured now on one device of this machine ({checked.device}); "
        "a cluster takes as long only if its devices are alike",
    ]


def _range(interval: Interval) -> str:
    low, high = format_count(round(interval.low)), format_count(round(interval.high))
    return low if low == high else f"{low} to {high}"
