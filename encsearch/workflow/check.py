"""`encsearch check`: whether a recipe can run, what its search takes, and how long. Ray is not started."""

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
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.budget.forecast import Forecast, Interval, forecast
from encsearch.search.budget.rules import Pace
from encsearch.search.ledger import Network, excess
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study, known_points
from encsearch.text import format_bytes, format_cost, format_count, format_duration, format_params
from encsearch.tracking.uris import resolve_uri
from encsearch.train.experiment import Preflight, count_parameters, existing_folder, open_store, preflight
from encsearch.train.memory import sweep_bytes, training_gib
from encsearch.workflow.calibration import Calibration, calibrate, pace_of_calibrations
from encsearch.workflow.sweep.folder import named_database

# Beside those below `model.`, the paths that change what a training step takes.
SIZING_PATHS = ("augment.crop", "train.global_batch_size", "train.precision")
FIRST_POINTS = 5
# One epoch is one unit of time where nothing was measured.
UNIT_PACE = Pace((1.0,), startup_s=0.0, doubt=0.0, confirm_doubt=0.0)


@dataclass(frozen=True)
class CheckedNetwork:
    """A network of the space, by the values that size it; `refused` names a limit that it is beyond."""

    values: Mapping[str, Any]
    parameters: int
    memory_gib: float
    refused: str | None


@dataclass(frozen=True)
class CheckedSearch:
    """What a sweep takes.

    `calibrations` are those of the network that needs the least memory and of that which needs the most, in
    this order and on `device`. Where nothing was measured there are none, and no times.
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


@dataclass(frozen=True)
class Checked:
    """The store, opened, and what was found; `search` is None for a recipe without a search block."""

    store: Store
    preflight: Preflight
    search: CheckedSearch | None


def check(config: Config, out: Path, *, measure: bool, trials_at_once: int | None) -> Checked:
    """Check a recipe without training it, but for a calibration of some seconds with `measure`.

    `trials_at_once` is what the cluster will hold; None: search.max_concurrent, else what this machine holds.
    Raises PreflightError (exit code 3) with the first thing that is wrong, of the stores that the environment
    names too; they are not opened, which would create them. UserError for an `out` that cannot be written.
    """
    store = open_store(config)
    found = preflight(config, store, out)
    resolve_uri(None)
    search = config.search
    if search is None:
        return Checked(store, found, None)
    named_database()
    networks = _networks(config, search, store)
    at_once = trials_at_once or search.max_concurrent or _held_here(config)
    disk_bytes = sweep_bytes(search, max(n.parameters for n in networks), at_once)
    free_bytes = _enough_free_bytes(out, disk_bytes)
    device = "cuda:0" if config.scaling.gpus_per_worker else "cpu"
    has_device = device == "cpu" or torch.cuda.is_available()
    calibrations = _calibrations(config, networks, found, device) if measure and has_device else ()
    left = _left(config, search, calibrations, at_once)
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
    )
    return Checked(store, found, searched)


def lines(config: Config, checked: Checked) -> list[str]:
    """What was found, for people."""
    found = checked.preflight
    told = [
        f"{config.data.store}: {format_count(found.num_train)} training and {format_count(found.num_val)} "
        f"validation samples, {format_count(found.num_classes, 'class')}, fingerprint "
        f"{found.fingerprint[:12]}",
        f"{config.model.backbone} with context {config.model.context}: "
        f"{format_count(found.num_parameters, 'parameter')}",
        f"{format_count(config.train.epochs, 'epoch')} of {format_count(found.steps_per_epoch, 'step')}, "
        f"global batch size {config.train.global_batch_size}",
    ]
    if config.search and checked.search:
        told += _search_lines(config.search, checked.search)
    return told


def _search_lines(search: SearchConfig, checked: CheckedSearch) -> list[str]:
    told = [
        f"up to {format_count(search.budget.trials, 'trial')} over {', '.join(search.space)}, "
        f"{checked.trials_at_once} at once"
    ]
    told += [
        f"  {format_params(network.values) or 'every network'}: "
        f"{format_count(network.parameters, 'parameter')}, "
        f"{format_bytes(network.memory_gib * 2**30)} of memory a worker"
        + (f"; refused: {network.refused}" if network.refused else "")
        for network in checked.networks
    ]
    told += ["first trials:", *(f"  {format_params(point)}" for point in checked.first_points)]
    needed, free = format_bytes(checked.disk_bytes), format_bytes(checked.free_bytes)
    told.append(f"disk: {needed} needed at most, {free} free")
    return told + _time_lines(checked)


def _time_lines(checked: CheckedSearch) -> list[str]:
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
        f"{format_cost(checked.device_s.median, unit)}; {trained}",
        f"by epochs of {' to '.join(epochs)}, measured now on one device of this machine ({checked.device}); "
        "a cluster takes as long only if its devices are alike",
    ]


def _networks(config: Config, search: SearchConfig, store: Store) -> tuple[CheckedNetwork, ...]:
    """Of every searched value that sizes a network, or both ends of its range, the others as in the recipe.

    The last two have of each path the value that needs the least memory, and the most.
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
        of_path = [_network(config, search.limits, point, store) for point in points]
        of_path.sort(key=_size)
        least[path], most[path] = of_path[0].values[path], of_path[-1].values[path]
        networks += of_path
    for values in (least, most):
        values = {path: values[path] for path in find_active(space, values) if path in values}
        if all(values != network.values for network in networks):
            networks.append(_network(config, search.limits, values, store))
    return tuple(networks)


def _network(config: Config, limits: LimitsConfig, values: Mapping[str, Any], store: Store) -> CheckedNetwork:
    trial = trial_config(config, values)
    num_parameters = count_parameters(trial.model, len(store.info.classes))
    network = Network(num_parameters, training_gib(trial, store))
    beyond = excess(limits, network)
    assert network.memory_gib is not None
    return CheckedNetwork(values, network.parameters, network.memory_gib, beyond.reason if beyond else None)


def _size(network: CheckedNetwork) -> tuple[float, int]:
    return network.memory_gib, network.parameters


def _calibrations(
    config: Config, networks: Sequence[CheckedNetwork], found: Preflight, device: str
) -> tuple[Calibration, ...]:
    """Of the smallest network and of the largest."""
    least, most = min(networks, key=_size), max(networks, key=_size)
    trials = [trial_config(config, n.values) for n in ([least, most] if least != most else [most])]
    return tuple(calibrate(t, device, num_train=found.num_train, num_val=found.num_val) for t in trials)


def _first_points(config: Config, search: SearchConfig) -> tuple[Mapping[str, Any], ...]:
    """The values of the first trials, if each is asked for before one has ended."""
    study = Study(MEMORY, "check", search, config.train.epochs)
    study.queue(known_points(config, search)[: search.budget.trials])
    return study.would_ask(min(FIRST_POINTS, search.budget.trials))


def _left(
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


def _held_here(config: Config) -> int:
    """Trials at once on this machine, as a local Ray counts."""
    return trainings_at_once(config.scaling, {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()})


def _enough_free_bytes(out: Path, needed: int) -> int:
    """What is free below `out`; raises PreflightError where it is less than needed."""
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
