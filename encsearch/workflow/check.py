"""`encsearch check`: whether a recipe can run, and what its search costs. Ray is not started."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encsearch.config import Config, LimitsConfig, SearchConfig, find_active, trial_config
from encsearch.data.store import Store
from encsearch.errors import PreflightError
from encsearch.runner.hardware import describe_gpu, local_device
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.budget.forecast import Forecast, Interval, forecast
from encsearch.search.budget.rules import Pace
from encsearch.search.ledger import Network, find_excess
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study, known_points
from encsearch.text import (
    format_bytes,
    format_cost,
    format_count,
    format_duration,
    format_params,
    format_price,
)
from encsearch.tracking.uris import resolve_uri
from encsearch.train.experiment import (
    PaddedImages,
    Preflight,
    count_parameters,
    existing_folder,
    open_store,
    preflight,
)
from encsearch.train.memory import sweep_bytes, training_gib
from encsearch.workflow.calibration import Calibration, calibrate, pace_of_calibrations
from encsearch.workflow.sweep.folder import named_database

# Paths that change a training step's cost, in addition to those below `model.`.
SIZING_PATHS = ("augment.crop", "augment.shorter_side", "train.global_batch_size", "train.precision")
FIRST_POINTS = 5
# One epoch is one unit of time if nothing was measured.
UNIT_PACE = Pace((1.0,), startup_s=0.0, doubt=0.0, confirm_doubt=0.0)


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
    """The opened store and the results; `search` is None for a recipe without a search block.

    `gpu` describes this machine's GPU, or says why there is none; None for a recipe that books none.
    """

    store: Store
    preflight: Preflight
    gpu: str | None
    search: CheckedSearch | None


def check(config: Config, out: Path, *, measure: bool, trials_at_once: int | None) -> Checked:
    """Check a recipe without training it, except for a calibration of some seconds with `measure`.

    `trials_at_once` is the number that fits on the cluster; None: search.max_concurrent, or else the number
    that fits on this machine. Raises PreflightError (exit code 3) for the first problem, also in the stores
    that the environment names; they are not opened, which would create them. Raises UserError for an `out`
    that cannot be written.
    """
    store = open_store(config)
    found = preflight(config, store, out)
    resolve_uri(None)
    search = config.search
    if search is None:
        gpu = _check_gpu(config, training_gib(config, store)) if config.scaling.gpus_per_worker else None
        return Checked(store, found, gpu, None)
    named_database()
    networks = _networks(config, search, store)
    gpu = _check_gpu(config, min(n.memory_gib for n in networks)) if config.scaling.gpus_per_worker else None
    at_once = trials_at_once or search.max_concurrent or _count_places(config)
    disk_bytes = sweep_bytes(search, max(n.parameters for n in networks), at_once)
    free_bytes = _enough_free_bytes(out, disk_bytes)
    device = "cuda:0" if config.scaling.gpus_per_worker else "cpu"
    has_device = device == "cpu" or torch.cuda.is_available()
    calibrations = _calibrations(config, networks, found, device) if measure and has_device else ()
    left = _forecast(config, search, calibrations, at_once)
    searched = CheckedSearch(
        networks=networks,
        first_points=_first_points(config, search),
        disk_bytes=disk_bytes,
        free_bytes=free_bytes,
        trials_at_once=at_once,
        device=device,
        calibrations=calibrations,
        trials=left.trials,
        epochs=left.epochs,
        wall_s=left.wall_s if calibrations else None,
        device_s=left.device_s if calibrations else None,
        price=config.scaling.price(left.device_s.median) if calibrations else None,
    )
    return Checked(store, found, gpu, searched)


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
    if found.padded:
        text.append(_describe_padded(found.padded, found.num_train))
    if checked.gpu:
        text.append(checked.gpu)
    if config.search and checked.search:
        text += _describe_search(config.search, checked.search)
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


def _describe_search(search: SearchConfig, checked: CheckedSearch) -> list[str]:
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
    text += ["first trials:", *(f"  {format_params(point)}" for point in checked.first_points)]
    needed, free = format_bytes(checked.disk_bytes), format_bytes(checked.free_bytes)
    text.append(f"disk: {needed} needed at most, {free} free")
    return text + _describe_time(checked)


def _describe_time(checked: CheckedSearch) -> list[str]:
    trained = f"{_range(checked.trials)} trials of {_range(checked.epochs)} epochs together"
    if not checked.wall_s or not checked.device_s:
        return [f"{trained}; how long that takes was not measured on this machine ({checked.device})"]
    low, high, middle = (
        format_duration(s) for s in (checked.wall_s.low, checked.wall_s.high, checked.wall_s.median)
    )
    unit = "GPU" if checked.device.startswith("cuda") else "CPU"
    epochs = dict.fromkeys(format_duration(calibration.epoch_s) for calibration in checked.calibrations)
    return [
        f"expected: {low} to {high}, confirmation included (80 % interval, median {middle}); "
        f"{format_cost(checked.device_s.median, unit)}{format_price(checked.price)}; {trained}",
        f"by epochs of {' to '.join(epochs)}, measured now on one device of this machine ({checked.device}); "
        "a cluster takes as long only if its devices are alike",
    ]


def _check_gpu(config: Config, needed_gib: float) -> str:
    """Describe this machine's GPU; raises PreflightError if a worker's tensors alone exceed its share."""
    try:
        device = local_device(config.scaling)
    except PreflightError as error:
        return f"not checked for a GPU: {error}"
    share = min(1.0, config.scaling.gpus_per_worker)
    present = share * torch.cuda.get_device_properties(device).total_memory
    if needed_gib * 2**30 > present:
        raise PreflightError(
            f"{describe_gpu(device)}: a worker has {format_bytes(present)}, but its tensors alone need "
            f"{format_bytes(needed_gib * 2**30)}; lower train.global_batch_size or augment.crop"
        )
    return describe_gpu(device)


def _networks(config: Config, search: SearchConfig, store: Store) -> tuple[CheckedNetwork, ...]:
    """Networks for each value, or end of a range, that changes the size; other values as in the recipe.

    The last two networks combine the values of each path that need the least memory, and the most.
    """
    space = search.space
    networks: list[CheckedNetwork] = []
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for path, dimension in space.items():
        if not path.startswith("model.") and path not in SIZING_PATHS:
            continue
        conditions = {other: allowed[0] for other, allowed in dimension.when.items()}
        points = [{**conditions, path: value} for value in dimension.values]
        sized = [_network(config, search.limits, point, store) for point in points]
        sized.sort(key=_size)
        least[path], most[path] = sized[0].values[path], sized[-1].values[path]
        networks += sized
    for values in (least, most):
        values = {path: values[path] for path in find_active(space, values) if path in values}
        if all(values != network.values for network in networks):
            networks.append(_network(config, search.limits, values, store))
    return tuple(networks)


def _network(config: Config, limits: LimitsConfig, values: Mapping[str, Any], store: Store) -> CheckedNetwork:
    trial = trial_config(config, values)
    num_parameters = count_parameters(trial.model, len(store.info.classes))
    network = Network(num_parameters, training_gib(trial, store))
    beyond = find_excess(limits, network)
    assert network.memory_gib is not None
    return CheckedNetwork(values, network.parameters, network.memory_gib, beyond.reason if beyond else None)


def _size(network: CheckedNetwork) -> tuple[float, int]:
    return network.memory_gib, network.parameters


def _calibrations(
    config: Config, networks: Sequence[CheckedNetwork], found: Preflight, device: str
) -> tuple[Calibration, ...]:
    """Calibrate the smallest network and the largest."""
    least, most = min(networks, key=_size), max(networks, key=_size)
    trials = [trial_config(config, n.values) for n in ([least, most] if least != most else [most])]
    return tuple(calibrate(t, device, num_train=found.num_train, num_val=found.num_val) for t in trials)


def _first_points(config: Config, search: SearchConfig) -> tuple[Mapping[str, Any], ...]:
    """The values of the first trials, if all are proposed before one has ended."""
    study = Study(MEMORY, "check", search, config.train.epochs)
    study.queue(known_points(config, search)[: search.budget.trials])
    return study.would_ask(min(FIRST_POINTS, search.budget.trials))


def _forecast(
    config: Config, search: SearchConfig, calibrations: Sequence[Calibration], at_once: int
) -> Forecast:
    epochs = config.train.epochs
    if calibrations:
        pace = pace_of_calibrations(calibrations)
        return forecast(search, config.scaling, epochs, (), pace, elapsed_s=0, at_once=at_once)
    untimed = search.model_copy(
        update={"budget": search.budget.model_copy(update={"wall": None, "gpu_hours": None})}
    )
    return forecast(untimed, config.scaling, epochs, (), UNIT_PACE, elapsed_s=0, at_once=at_once)


def _count_places(config: Config) -> int:
    """Count the trials that fit on this machine at once, as a local Ray would."""
    return trainings_at_once(config.scaling, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()})


def _enough_free_bytes(out: Path, needed: int) -> int:
    """Free bytes below `out`; raises PreflightError if they are fewer than needed."""
    folder = existing_folder(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreflightError(
            f"{folder}: {format_bytes(free)} are free, but the sweep needs up to {format_bytes(needed)}; "
            "free some space or choose another folder with --out"
        )
    return free


def _range(interval: Interval) -> str:
    low, high = format_count(round(interval.low)), format_count(round(interval.high))
    return low if low == high else f"{low} to {high}"
