"""The moving average of the weights: its closed form, what is kept of it, and that a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from encsearch.config import Config, with_values
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.inference.bundle import checkpoint_model
from encsearch.reports import MemoryRecorder, Report
from encsearch.runner.local import run_local
from encsearch.train import loop
from encsearch.train.checkpoint import load_checkpoint, save_checkpoint
from encsearch.train.checkpoint_files import intact
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import evaluate, fit
from encsearch.train.state import new_optimizer
from encsearch.train.step import train_step

STEPS = 6


@pytest.fixture
def config(toy_config: Config) -> Config:
    return with_values(
        toy_config,
        {
            "train.ema": 0.25,
            "optim.name": "adamw",
            "optim.lr": 0.005,
            "model.dropout": 0.3,
            "optim.warmup": 0.3,
        },
    )


def run(e: Experiment) -> list[Report]:
    return [event for event in fit(e.state, e.loaders, e.loss, e.plan) if isinstance(event, Report)]


def weights_by_step(config: Config, patched: pytest.MonkeyPatch) -> tuple[Experiment, list[list[Tensor]]]:
    """A whole training, and its weights before the first step and after each."""
    e = build(config)
    found = [[value.detach().clone() for value in e.state.model.parameters()]]

    def recorded(*arguments: Any) -> Any:
        result = train_step(*arguments)
        found.append([value.detach().clone() for value in e.state.model.parameters()])
        return result

    patched.setattr(loop, "train_step", recorded)
    run(e)
    return e, found


def test_it_is_the_weighted_sum_of_the_weights_of_all_steps(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    e, by_step = weights_by_step(config, monkeypatch)

    # Unrolled: each step's weights count (1 - decay), times the decays of all later steps.
    decays = [min(0.25, (1 + n) / (10 + n)) for n in range(STEPS)]
    shares = [1.0, *(1 - decay for decay in decays)]
    for n, decay in enumerate(decays):
        shares[: n + 1] = [share * decay for share in shares[: n + 1]]
    assert sum(shares) == pytest.approx(1)
    assert 0.25 in decays
    assert decays[0] == 0.1
    assert e.state.average is not None
    for number, average in enumerate(e.state.average.parameters()):
        terms = [share * weights[number].double() for share, weights in zip(shares, by_step, strict=True)]
        torch.testing.assert_close(average.double(), torch.stack(terms).sum(dim=0), rtol=1e-5, atol=1e-7)


def test_the_training_itself_is_the_one_without_it(config: Config) -> None:
    with_it, without = build(config), build(with_values(config, {"train.ema": 0}))
    one, other = run(with_it), run(without)

    assert without.state.average is None
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            with_it.state.model.parameters(), without.state.model.parameters(), strict=True
        )
    )
    assert [r.metrics["train/loss"] for r in one] == [r.metrics["train/loss"] for r in other]
    assert one[-1].confusion != other[-1].confusion


def test_the_average_is_what_is_validated_and_becomes_the_model(config: Config, tmp_path: Path) -> None:
    result = run_local(config, tmp_path, MemoryRecorder())

    store = Store(config.data.store)
    model = checkpoint_model(config, store, result.best_checkpoint, result.best).model
    e = build(config)
    confusion = evaluate(model, e.loaders.validation(), e.plan.kernels, num_classes=3)
    assert tuple(map(tuple, confusion.tolist())) == result.best.confusion
    load_checkpoint(e.state, result.best_checkpoint)
    assert e.state.average is not None
    ours, kept = e.state.average.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], kept[name]) for name in kept)
    trained = e.state.model.state_dict()
    assert any(not torch.equal(trained[name], kept[name]) for name in kept)
    # Batch norm's statistics are those of the trained weights.
    assert all(torch.equal(trained[name], kept[name]) for name in kept if "running" in name)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_resumed_training_is_the_uninterrupted_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    config = with_values(config, {"train.checkpoint_every.steps": 1})
    run_local(config, tmp_path / "whole", MemoryRecorder())
    taken = 0

    def killed(*arguments: Any) -> Any:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return train_step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_local(config, tmp_path / "killed", MemoryRecorder())
    assert next(content.step for _, content in intact(tmp_path / "killed")) > 0

    run_local(config, tmp_path / "killed", MemoryRecorder())

    one, other = (next(place for place, _ in intact(tmp_path / name)) for name in ("whole", "killed"))
    assert one.name == other.name
    for name in ("model.safetensors", "raw.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (torch.load(place / "optimizer.pt")["optimizer"]["state"] for place in (one, other))
    assert all(torch.equal(first[n][key], second[n][key]) for n in first for key in first[n])


def test_a_checkpoint_with_another_setting_is_one_line(config: Config, tmp_path: Path) -> None:
    save_checkpoint(build(config).state, tmp_path)
    with pytest.raises(UserError, match=r"of a training with train\.ema"):
        load_checkpoint(build(with_values(config, {"train.ema": 0})).state, tmp_path)
    save_checkpoint(build(with_values(config, {"train.ema": 0})).state, tmp_path)
    with pytest.raises(UserError, match=r"of a training without train\.ema"):
        load_checkpoint(build(config).state, tmp_path)


def test_a_damaged_file_of_the_trained_weights_is_found(config: Config, tmp_path: Path) -> None:
    save_checkpoint(build(config).state, tmp_path)
    (tmp_path / "raw.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match=r"raw\.safetensors: damaged"):
        load_checkpoint(build(config).state, tmp_path)


def test_a_checkpoint_inside_an_epoch_has_the_statistics_of_its_step(config: Config, tmp_path: Path) -> None:
    e = build(with_values(config, {"train.checkpoint_every.steps": 2}))
    assert not isinstance(next(iter(fit(e.state, e.loaders, e.loss, e.plan))), Report)
    save_checkpoint(e.state, tmp_path)
    average, raw = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "raw.safetensors")
    statistics = [name for name, _ in e.state.model.named_buffers()]
    assert all(torch.equal(average[name], raw[name]) for name in statistics)
    assert not all(torch.equal(average[name], raw[name]) for name in average)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("was_fused", [False, True])
def test_a_training_goes_on_by_the_optimizer_of_the_new_device(
    config: Config, tmp_path: Path, optimizer: str, was_fused: bool
) -> None:
    """On a GPU one kernel updates all weights; the file may be from a CPU, or the other way round."""

    def one(fused: bool) -> Experiment:
        e = build(with_values(config, {"optim.name": optimizer}))
        e.state.optimizer = new_optimizer(e.state.model, e.plan.optim, fused=fused)
        return e

    before, after = one(was_fused), one(not was_fused)
    run(before)
    save_checkpoint(before.state, tmp_path)
    load_checkpoint(after.state, tmp_path)
    assert {group["fused"] for group in after.state.optimizer.param_groups} == {not was_fused}
    after.state.step = 0
    assert len(run(after)) == 2
