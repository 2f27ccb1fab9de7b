"""What a training tells of itself beside its scores: points, times, memory, the machine, a profile."""

import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import torch

from encsearch.config import Config, with_values
from encsearch.reports import Report
from encsearch.train.curve import MAX_POINTS, EpochSums
from encsearch.train.experiment import build
from encsearch.train.loop import fit
from encsearch.train.loss import Term
from encsearch.train.telemetry import (
    PROCESS_MEMORY,
    SystemSampler,
    Window,
    _Utilization,
    describe_machine,
    largest_over_ranks,
    window,
)

CPU = torch.device("cpu")
WEIGHTS = {"pixel_loss": 1.0, "se_loss": 0.5}


def reports_of(config: Config, **values: Any) -> list[Report]:
    e = build(with_values(config, values))
    return list(fit(e.state, e.loaders, e.loss, e.plan))


def curve_of(num_steps: int, first: int = 1) -> EpochSums:
    """Step n adds n / 2 to the pixel loss and 4 / 4 to the SE-loss."""
    curve = EpochSums(num_steps)
    for step in range(first, first + num_steps):
        terms = {
            "pixel_loss": Term(torch.tensor(float(step)), torch.tensor(2.0)),
            "se_loss": Term(torch.tensor(4.0), torch.tensor(4)),
        }
        curve.add(terms, torch.tensor(3.0), step=step, lr=0.1 * step)
    return curve


def test_a_point_is_the_mean_of_the_steps_since_the_one_before() -> None:
    means = curve_of(100, first=101).means(WEIGHTS, world_size=1)

    assert [point.step for point in means.points] == list(range(104, 201, 4))
    first = means.points[0].values
    assert first == {
        "step/pixel_loss": pytest.approx((101 + 102 + 103 + 104) / 8),
        "step/se_loss": 1.0,
        "step/loss": pytest.approx(410 / 8 + 0.5),
        "step/grad_norm": 3.0,
        "step/lr": pytest.approx(10.4),
    }
    assert means.metrics["train/pixel_loss"] == pytest.approx(sum(range(101, 201)) / 200)
    assert set(means.metrics) == {"train/loss", "train/pixel_loss", "train/se_loss"}


@pytest.mark.parametrize("num_steps", [1, 7, 25, 26, 60, 1000])
def test_points_are_at_most_so_many_evenly_spaced_and_end_with_the_epoch(num_steps: int) -> None:
    steps = [point.step for point in curve_of(num_steps).means(WEIGHTS, world_size=1).points]

    assert len(steps) == min(MAX_POINTS, num_steps)
    assert steps[-1] == num_steps
    gaps = {after - before for before, after in zip([0, *steps], steps, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_an_epoch_tells_its_steps_its_times_and_its_machine(toy_config: Config) -> None:
    first, second = reports_of(toy_config)

    steps = [point for point in second.points if "step/loss" in point.values]
    assert [point.step for point in steps] == [4, 5, 6]
    assert steps[-1].values["step/lr"] == second.metrics["lr"]
    mean = sum(point.values["step/se_loss"] for point in steps) / 3
    assert mean == pytest.approx(second.metrics["train/se_loss"])  # all batches have as many images

    metrics = second.metrics
    assert 0 < metrics["time/data"] < metrics["time/train"] < second.seconds
    assert metrics["time/train"] + metrics["time/validation"] <= second.seconds
    assert metrics["throughput/images_per_s"] == pytest.approx(3 * 8 / metrics["time/train"])
    assert metrics["world_size"] == 1
    assert metrics["memory/process_megabytes"] > 10
    assert "memory/gpu_peak_megabytes" not in metrics

    (machine,) = first.texts.values()
    assert first.texts.keys() == {"lineage/machine_epoch_1.txt"}
    assert machine.startswith(describe_machine(CPU) + "precision: ")
    assert not second.texts
    assert Report.from_dict(second.to_dict()) == second


def test_a_profile_is_of_the_first_epoch_and_only_where_it_is_asked_for(toy_config: Config) -> None:
    first, second = reports_of(toy_config, **{"train.profile_steps": 2})

    assert "aten::convolution" in first.texts["profile.txt"]
    assert "profile.txt" not in second.texts


@pytest.mark.parametrize(
    ("num_steps", "asked", "expected"),
    [
        (100, 10, Window(skipped=5, warm_up=1, kept=10)),
        (12, 10, Window(skipped=1, warm_up=1, kept=10)),
        (4, 10, Window(skipped=0, warm_up=1, kept=3)),
        (1, 10, Window(skipped=0, warm_up=0, kept=1)),
    ],
)
def test_a_short_epoch_shortens_the_profile(num_steps: int, asked: int, expected: Window) -> None:
    assert window(num_steps, asked) == expected


def test_the_machine_is_sampled_while_the_block_runs_and_at_its_end() -> None:
    sampler = SystemSampler(CPU, interval_s=1e-3)
    step = iter(range(1_000_000))
    with sampler.running(lambda: next(step)) as points:
        while len(points) < 3:
            pass
    before = len(points)

    names = {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage", PROCESS_MEMORY}
    assert names <= set(points[-1].values)
    assert all(value >= 0 for point in points for value in point.values.values())
    assert [point.step for point in points] == list(range(before))
    with SystemSampler(CPU).running(lambda: 7) as once:
        assert not once
    assert [point.step for point in once] == [7]
    assert len(points) == before


def test_the_processor_is_measured_over_epochs_and_not_in_each_thread_apart() -> None:
    times = namedtuple("times", ("user", "idle"))
    read = iter([times(0.0, 0.0), times(3.0, 1.0), times(3.0, 1.0), times(3.0, 5.0)])
    utilization = _Utilization(lambda: next(read))
    with ThreadPoolExecutor(1) as other:
        assert [utilization(), other.submit(utilization).result(), utilization()] == [75, 75, 0]


def test_a_machine_without_network_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    with SystemSampler(CPU).running(lambda: 0) as points:
        pass
    assert not any("network" in name for name in points[-1].values)


def test_what_no_rank_measures_is_left_out() -> None:
    assert largest_over_ranks({"time/data": 0.5, "memory/gpu": 0.0}, CPU, 1) == {"time/data": 0.5}


def test_a_training_that_is_left_midway_leaves_no_thread(toy_config: Config) -> None:
    e = build(toy_config)
    list(islice(fit(e.state, e.loaders, e.loss, e.plan), 1))

    assert not [thread for thread in threading.enumerate() if thread.name == "system metrics"]
