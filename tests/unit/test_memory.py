"""The estimate of a training step's memory, against what the allocator of this machine hands out."""

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from encsearch.config import Config, SearchConfig, with_values
from encsearch.data.loading import Inputs
from encsearch.data.store import Store
from encsearch.model.encnet import count_parameters
from encsearch.train.checkpoint import save_checkpoint
from encsearch.train.experiment import build
from encsearch.train.loop import fit
from encsearch.train.memory import sweep_bytes, training_gib
from encsearch.train.preflight import checkpoint_bytes
from encsearch.train.step import train_step

MIB = 2**20


@pytest.mark.parametrize("values", [{}, {"optim.name": "adamw", "train.ema": 0.9}])
def test_the_estimate_is_what_the_allocator_hands_out(
    toy_config: Config, tmp_path: Path, values: dict[str, object]
) -> None:
    config = with_values(toy_config, {"augment.crop": 64, "model.num_codewords": 64, **values})

    estimate = training_gib(config, Store(config.data.store)) * 2**30

    assert estimate == pytest.approx(_measured_peak(config, tmp_path / "trace.json"), rel=0.002)


@pytest.mark.parametrize(
    ("changed", "grows"),
    [
        ({"model.num_codewords": 256}, True),
        ({"augment.crop": 96}, True),
        ({"scaling.num_workers": 4}, False),
    ],
)
def test_it_follows_what_sizes_a_step(toy_config: Config, changed: dict[str, object], grows: bool) -> None:
    base = with_values(toy_config, {"augment.crop": 64, "train.global_batch_size": 8})

    store = Store(base.data.store)
    before, after = training_gib(base, store), training_gib(with_values(base, changed), store)

    assert (after > 1.02 * before) == grows
    assert (after < 0.98 * before) != grows


def test_without_a_crop_the_largest_image_counts(toy_config: Config) -> None:
    whole = with_values(toy_config, {"augment.crop": None})
    image = with_values(toy_config, {"augment.crop": 32})  # the size of all of the store's

    store = Store(toy_config.data.store)
    assert training_gib(whole, store) == training_gib(image, store)
    doubled = with_values(whole, {"augment.shorter_side": 64})
    assert training_gib(doubled, store) == training_gib(with_values(image, {"augment.crop": 64}), store)


def test_a_crop_that_is_not_square_counts_as_its_area(toy_config: Config) -> None:
    store = Store(toy_config.data.store)
    wide, square = (
        training_gib(with_values(toy_config, {"augment.crop": crop}), store) for crop in ([32, 128], 64)
    )

    assert wide == pytest.approx(square, rel=0.01)


def test_nothing_is_allocated_or_left_behind(toy_config: Config) -> None:
    state = torch.get_rng_state()

    store = Store(toy_config.data.store)
    first, second = training_gib(toy_config, store), training_gib(toy_config, store)

    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert type(torch.zeros(1) + 1) is torch.Tensor  # no mode is left on


def test_a_sweep_needs_disk_for_running_trials_finalists_and_artifacts() -> None:
    search = SearchConfig(
        space={"optim.lr": {"uniform": [0.1, 0.2]}},
        budget={"trials": 10},
        confirm={"finalists": 2, "seeds": [1, 2, 3], "baselines": ["none"]},
    )

    checkpoints, bundle = 8 * 1000, 4 * 1000

    needed = sweep_bytes(search, 1000, checkpoints, trials_at_once=4)

    paused = 10 * checkpoints
    assert needed == 4 * 3 * checkpoints + paused + 9 * (bundle + 2 * checkpoints) + 19 * MIB
    assert sweep_bytes(search, 1000, checkpoints, trials_at_once=50) == needed + 6 * 3 * checkpoints
    little = search.model_copy(update={"disk_gib": 1000 / 2**30})
    assert sweep_bytes(little, 1000, checkpoints, trials_at_once=4) == needed - paused + 1000
    stopping = search.model_copy(update={"scheduler": "asha_stop"})
    assert sweep_bytes(stopping, 1000, checkpoints, trials_at_once=4) == needed - paused


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [0, 0.9])
def test_a_checkpoint_is_as_large_as_the_disk_is_checked_for(
    toy_config: Config, tmp_path: Path, name: str, ema: float
) -> None:
    config = with_values(
        toy_config, {"optim.name": name, "train.ema": ema, "train.epochs": 1, "model.channels": 256}
    )
    experiment = build(config)
    for _ in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        save_checkpoint(experiment.state, tmp_path)

    parameters = count_parameters(config.model, len(experiment.info.classes))
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written == pytest.approx(checkpoint_bytes(config, parameters), rel=0.05)
    assert checkpoint_bytes(config, parameters) == checkpoint_bytes(
        with_values(
            toy_config,
            {"search": {"space": {"optim.name": {"choice": [name]}, "train.ema": {"choice": [ema]}}}},
        ),
        parameters,
    )


def _measured_peak(config: Config, trace: Path) -> int:
    """Bytes of all tensors at the worst moment of two steps, by torch's profiler."""
    assert config.augment.crop
    size = (config.train.global_batch_size, config.augment.crop, config.augment.crop)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        experiment = build(config)
        for _ in range(2):
            inputs = Inputs(torch.zeros(size[0], 3, *size[1:]), torch.zeros(size, dtype=torch.uint8), ())
            train_step(experiment.state, inputs, config.loss, experiment.plan)
            del inputs
    profiled.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    memory = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - before
