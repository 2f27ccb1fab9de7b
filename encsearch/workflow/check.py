"""`encsearch check`: whether a recipe can run, and what its search costs. Ray is not started."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from encsearch.config import Config, LimitsConfig, SearchConfig, find_active, trial_config
from encsearch.data.own import with_own_store
from encsearch.data.store import Store
from encsearch.errors import PreflightError
from encsearch.model.encnet import count_parameters
from encsearch.parts import code_from
from encsearch.runner.hardware import describe_gpu, local_device
from encsearch.runner.ray_session import trainings_at_once
from encsearch.search.budget.forecast import Forecast, forecast
from encsearch.search.budget.rules import Pace
from encsearch.search.ledger import Network, find_excess
from encsearch.search.study.samplers import check_sampler
from encsearch.search.study.storage import MEMORY
from encsearch.search.study.study import Study, known_points
from encsearch.text import format_bytes
from encsearch.tracking.uris import resolve_uri
from encsearch.train.gpu_memory import describe_fit, part_bytes
from encsearch.train.memory import sweep_bytes, training_gib
from encsearch.train.preflight import Preflight, checkpoint_bytes, existing_folder, open_store, preflight
from encsearch.workflow.calibration import calibrate, pace_of_calibrations
from encsearch.workflow.checked import Calibration, Checked, CheckedNetwork, CheckedSearch
from encsearch.workflow.sweep.folder import named_database

# Paths that change a training step's cost, in addition to those below `model.`.
SIZING_PATHS = (
    "augment.crop",
    "augment.shorter_side",
    "optim.name",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.precision",
    "train.ema",
)
FIRST_POINTS = 5
# One epoch is one unit of time if nothing was measured.
UNIT_PACE = Pace((1.0,), startup_s=0.0, doubt=0.0, confirm_doubt=0.0)


def check(config: Config, out: Path, *, measure: bool, trials_at_once: int | None) -> Checked:
    """Check a recipe without training it, except for a calibration of some seconds with `measure`.

    `trials_at_once` is the number that fits on the cluster; None: search.max_concurrent, or else the number
    that fits on this machine. Raises PreflightError (exit code 3) for the first problem, also in the stores
    that the environment names; they are not opened, which would create them. Raises UserError for an `out`
    that cannot be written.
    """
    config = with_own_store(config, out)
    store = open_store(config)
    found = preflight(config, store, out)
    resolve_uri(None)
    search = config.search
    if search:
        with code_from(config.code):
            check_sampler(search)
    if search is None:
        gpu = _check_gpu(config, [training_gib(config, store)]) if config.scaling.gpus_per_worker else None
        return Checked(found, gpu, None)
    named_database()
    networks = _networks(config, search, store)
    gpu = _check_gpu(config, [n.memory_gib for n in networks]) if config.scaling.gpus_per_worker else None
    at_once = trials_at_once or search.max_concurrent or _count_places(config)
    largest = max(n.parameters for n in networks)
    disk_bytes = sweep_bytes(search, largest, checkpoint_bytes(config, largest), at_once)
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
    return Checked(found, gpu, searched)


def _check_gpu(config: Config, sizes_gib: Sequence[float]) -> str:
    """Describe this machine's GPU, and how many workers of the largest network fit on it by memory.

    Raises PreflightError if the tensors of every network, `sizes_gib`, exceed a worker's part.
    """
    try:
        device = local_device(config.scaling)
    except PreflightError as error:
        return f"not checked for a GPU: {error}"
    gpu, part = describe_gpu(device), part_bytes(config.scaling, device)
    if min(sizes_gib) * 2**30 > part:
        raise PreflightError(
            f"{gpu}: a worker may hold {format_bytes(part)}, but its tensors alone need "
            f"{format_bytes(min(sizes_gib) * 2**30)}; lower train.global_batch_size or augment.crop"
            + ("" if config.scaling.gpus_per_worker >= 1 else ", or raise scaling.gpus_per_worker")
        )
    return f"{gpu}; {describe_fit(max(sizes_gib), device)}"


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
