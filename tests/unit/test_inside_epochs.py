"""A training that ends between any two steps, by a kill or a notice, goes on as if nothing had happened."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from encsearch.config import Config, with_values
from encsearch.errors import NoticeError, TrainingError
from encsearch.reports import MemoryRecorder, Report, SpoolReader
from encsearch.runner.local import run_local
from encsearch.train import loop, moments
from encsearch.train.checkpoint import load_checkpoint
from encsearch.train.checkpoint_files import intact
from encsearch.train.experiment import Experiment, build
from encsearch.train.moments import Moment, Moments, no_notice

# Of the process and the moment, not of what was trained.
OF_THE_PROCESS = ("time/", "throughput/", "memory/", "resumed_from_step")
EPOCHS, STEPS = 3, 5


@pytest.fixture
def config(toy_config: Config) -> Config:
    """Everything that draws random numbers or adds up over an epoch."""
    return with_values(
        toy_config,
        {
            "train.epochs": EPOCHS,
            "train.steps_per_epoch": STEPS,
            "train.checkpoint_every.steps": 2,
            "model.dropout": 0.3,
            "augment.flip": 0.5,
            "augment.jitter": 0.2,
        },
    )


def trained(report: Report) -> Mapping[str, Any]:
    """What a report says that follows from the state and the plan."""
    figures = {k: v for k, v in report.metrics.items() if not k.startswith(OF_THE_PROCESS)}
    points = [(p.step, p.values) for p in report.points if "step/loss" in p.values]
    return {"metrics": figures, "points": points, "confusion": report.confusion, "maps": report.label_maps}


def assert_same(one: Path, other: Path) -> None:
    """The newest checkpoints have the same weights, momenta and position, the spools the same reports."""
    first, second = (next(intact(folder)) for folder in (one, other))
    assert first[1].step == second[1].step == EPOCHS * STEPS
    weights = [load_file(place / "model.safetensors") for place, _ in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    momenta = [
        torch.load(place / "optimizer.pt", weights_only=True)["optimizer"]["state"]
        for place, _ in (first, second)
    ]
    for number, slot in momenta[0].items():
        assert torch.equal(slot["momentum_buffer"], momenta[1][number]["momentum_buffer"])
    reports = [SpoolReader(folder / "reports.jsonl").new_reports() for folder in (one, other)]
    assert [trained(report) for report in reports[0]] == [trained(report) for report in reports[1]]


@pytest.fixture
def whole(config: Config, tmp_path: Path) -> Path:
    run_local(config, tmp_path / "whole", MemoryRecorder())
    return tmp_path / "whole"


@pytest.mark.parametrize("steps", [(1,), (5,), (7, 8, 13), (3, 3, 3)])
def test_killed_after_any_steps_it_is_the_training_that_was_not(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    for step in steps:
        with monkeypatch.context() as patched:
            patched.setattr(loop, "train_step", killed_at(step))
            with pytest.raises(KeyboardInterrupt):
                run_local(config, tmp_path / "killed", MemoryRecorder())
    recorder = MemoryRecorder()
    run_local(config, tmp_path / "killed", recorder)

    assert_same(tmp_path / "killed", whole)
    assert [report.epoch for report in recorder.reports] == list(range(1, EPOCHS + 1))
    lost = steps[-1] - 1 - recorder.reports[-1].metrics.get("resumed_from_step", 0)
    assert 0 <= lost <= 2, "no more than train.checkpoint_every"


@pytest.mark.parametrize("polls", [1, 4, 6, 8, 13, 23])
def test_after_a_notice_nothing_is_lost(config: Config, whole: Path, tmp_path: Path, polls: int) -> None:
    """At any moment: an epoch asks after four of its steps, and in its validation."""
    config = with_values(config, {"train.checkpoint_every.steps": None})
    asked = []

    def notice() -> bool:
        asked.append(None)
        return len(asked) >= polls

    with pytest.raises(NoticeError, match="saved at step "):
        run_local(config, tmp_path / "noticed", MemoryRecorder(), notice)
    run_local(config, tmp_path / "noticed", MemoryRecorder())
    assert_same(tmp_path / "noticed", whole)


def test_without_steps_it_is_saved_by_the_clock(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"train.checkpoint_every.steps": None, "train.checkpoint_every.minutes": 1e-9}
    found = build(with_values(config, every))
    events = loop.fit(found.state, found.loaders, found.loss, found.plan)
    assert next(events) is Moment.SAVE
    assert found.state.step == 1
    never = build(
        with_values(config, {"train.checkpoint_every.steps": None, "train.checkpoint_every.minutes": None})
    )
    assert isinstance(next(loop.fit(never.state, never.loaders, never.loss, never.plan)), Report)


def of_two_ranks(first_step: int) -> Moments:
    return Moments(
        first_step=first_step,
        every_steps=None,
        every_minutes=None,
        notice=no_notice,
        preempted=no_notice,
        device=torch.device("cpu"),
        world_size=2,
    )


def test_ranks_agree_when_to_look_up_from_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of which one is slower and alone gets the notice; the exchange is the largest value."""
    clock = [0.0]
    monkeypatch.setattr(moments.time, "monotonic", lambda: clock[0])
    seen = []

    def exchange(self: Moments, *values: float) -> list[float]:
        seen.append(values)
        return [
            max(value, other) for value, other in zip(values, (float(clock[0] > 5), 0.0, 0.5), strict=True)
        ]

    monkeypatch.setattr(Moments, "_exchange", exchange)
    one = of_two_ranks(first_step=5000)  # of a training that goes on
    ends = []
    for step in range(5001, 5060):
        clock[0] += 0.1
        if one.after(step) is Moment.END:
            ends.append(step)
            break
    assert ends == [5051], "the first time that the ranks spoke after the notice at 5 s"
    assert len(seen) == 26, "every other step: once a second by the slower rank's half second"


def test_steps_that_become_slow_do_not_silence_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(moments.time, "monotonic", lambda: clock[0])
    agreed = []
    monkeypatch.setattr(Moments, "_exchange", lambda self, *values: [agreed.append(values), *values][1:])
    one = of_two_ranks(first_step=0)
    for step in range(1, 200):
        clock[0] += 1e-5
        one.after(step)
    assert 6 <= len(agreed) <= 9, "after 1, 3, 7, 15, ... steps"


@pytest.fixture
def sick(config: Config) -> Callable[[set[int]], Experiment]:
    """A training whose gradient is not a number in some steps."""

    def build_sick(steps: set[int], limit: int = 10) -> Experiment:
        found = build(with_values(config, {"train.max_skipped_steps": limit}))

        def spoil(gradient: Tensor) -> Tensor:
            return gradient * math.nan if found.state.step + 1 in steps else gradient

        next(found.state.model.parameters()).register_hook(spoil)
        return found

    return build_sick


def run_to(found: Experiment, step: int) -> None:
    for _ in loop.fit(found.state, found.loaders, found.loss, found.plan):
        if found.state.step >= step:
            return


def test_a_step_without_a_finite_gradient_changes_nothing(
    sick: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sick({2})
    events = loop.fit(found.state, found.loaders, found.loss, found.plan)
    before: dict[str, Tensor] = {}
    train_step = loop.train_step

    def watched(state: Any, *arguments: Any) -> Any:
        if state.step == 1:
            before.update({name: value.clone() for name, value in state.model.state_dict().items()})
        return train_step(state, *arguments)

    monkeypatch.setattr(loop, "train_step", watched)
    assert next(events) is Moment.SAVE  # after the second step
    for name, value in found.state.model.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, before[name]), name
    (report,) = [event for event in events if isinstance(event, Report)][:1]
    assert report.metrics["train/skipped_steps"] == 1
    assert math.isfinite(report.metrics["train/loss"])
    ((file, text),) = [item for item in report.texts.items() if item[0].startswith("skipped")]
    assert file == "skipped_steps_epoch_1.txt"
    assert text.startswith("step 2: ")
    assert len(text.split(", ")) == 8
    assert all(math.isfinite(value) for point in report.points for value in point.values.values())


def test_beyond_the_limit_it_ends_with_the_step_and_its_samples(sick: Callable[..., Experiment]) -> None:
    found = sick({2, 4}, 1)
    expected = r"gradient in 2 steps of this epoch up to step 4, whose samples are \S+, .* and 4 more \(lr="
    with pytest.raises(TrainingError, match=expected):
        run_to(found, 5)


def test_an_epoch_is_not_made_of_skipped_steps_alone(sick: Callable[..., Experiment]) -> None:
    with pytest.raises(TrainingError, match="non-finite gradient in 5 steps"):
        run_to(sick({1, 2, 3, 4, 5}), 5)


def test_a_skipped_step_is_remembered_over_a_kill(sick: Callable[..., Experiment], tmp_path: Path) -> None:
    from encsearch.train.checkpoint import save_checkpoint

    found = sick({1}, 1)
    next(iter(loop.fit(found.state, found.loaders, found.loss, found.plan)))
    save_checkpoint(found.state, tmp_path)
    again = sick({3}, 1)
    load_checkpoint(again.state, tmp_path)
    with pytest.raises(TrainingError, match="in 2 steps of this epoch up to step 3"):
        run_to(again, 5)


def killed_at(step: int) -> Callable[..., Any]:
    """`train_step` that is interrupted as step number `step` begins."""
    train_step = loop.train_step

    def killed(state: Any, *arguments: Any) -> Any:
        if state.step + 1 == step:
            raise KeyboardInterrupt
        return train_step(state, *arguments)

    return killed
