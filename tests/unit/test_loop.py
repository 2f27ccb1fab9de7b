"""The training loop: what it reports, what it resumes to, when it gives up."""

import math
import shutil
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encsearch.config import Config, Context, with_values
from encsearch.data.loading import feed
from encsearch.errors import TrainingError, UserError
from encsearch.reports import MemoryRecorder, Point, Report, SpoolReader
from encsearch.runner.local import run_local
from encsearch.train.checkpoint import load_checkpoint, save_checkpoint
from encsearch.train.checkpoint_files import read_content
from encsearch.train.experiment import Experiment, build
from encsearch.train.kernels import has_bf16
from encsearch.train.loop import fit
from encsearch.train.loss import loss_sums, term_weights


def reports_of(experiment: Experiment, count: int | None = None) -> list[Report]:
    e = experiment
    return list(islice(fit(e.state, e.loaders, e.loss, e.plan), count))


def followed(report: Report) -> dict[str, float]:
    """The metrics that follow from state and plan, without those of the moment."""
    moment = ("time/", "throughput/", "memory/")
    return {name: value for name, value in report.metrics.items() if not name.startswith(moment)}


def steps(report: Report) -> list[Point]:
    return [point for point in report.points if "step/loss" in point.values]


def test_reports_every_epoch_with_the_figures_of_that_step(toy_config: Config) -> None:
    reports = reports_of(build(toy_config))

    assert [r.epoch for r in reports] == [1, 2]
    assert [r.step for r in reports] == [3, 6]
    assert {"mIoU", "pixAcc", "mIoU/objects", "train/loss", "train/se_loss", "lr"} <= set(reports[0].metrics)
    validation_pixels = 32 * (10 * 32 - 36)  # the void bands do not count
    assert sum(map(sum, reports[-1].confusion)) == validation_pixels


@pytest.mark.parametrize(
    ("values", "terms"),
    [
        ({"model.preset": "mmseg"}, {"pixel", "aux", "se"}),
        ({"model.preset": "paper", "loss.dice_weight": 0.5}, {"pixel", "se", "aux_se", "dice"}),
        ({"model.context": "none", "model.auxiliary": "none"}, {"pixel"}),
    ],
)
def test_reports_the_terms_that_are_on_and_their_weighted_sum(
    toy_config: Config, values: dict[str, object], terms: set[str]
) -> None:
    experiment = build(with_values(toy_config, {**values, "train.epochs": 1}))

    metrics = reports_of(experiment)[0].metrics

    reported = {name.removeprefix("train/"): value for name, value in metrics.items() if "_loss" in name}
    assert reported.keys() == {f"{term}_loss" for term in terms}
    weights = term_weights(experiment.loss)
    assert metrics["train/loss"] == pytest.approx(sum(weights[name] * reported[name] for name in reported))


def test_the_averages_are_over_all_that_an_epoch_counted(toy_config: Config) -> None:
    """With a rate that changes nothing the epoch can be counted again, batch by batch."""
    config = with_values(
        toy_config,
        {
            "train.precision": "fp32",
            "optim.lr": 1e-12,
            "model.dropout": 0,
            "train.epochs": 1,
            "loss.class_weights": "median_frequency",
            "loss.ohem_threshold": 0.4,
            "loss.dice_weight": 0.5,
        },
    )
    metrics = reports_of(build(config))[0].metrics

    again = build(config)
    model = again.state.model.train()
    batches = [
        loss_sums(model(batch.images), batch.labels, loss=again.loss, class_weights=again.plan.class_weights)
        for batch in islice(feed(again.loaders.train.batches(0), again.plan.device), 3)
    ]
    for name in batches[0]:
        value = sum(batch[name].sum.item() for batch in batches)
        divisor = sum(batch[name].divisor.item() for batch in batches)
        assert metrics[f"train/{name}"] == pytest.approx(value / divisor, rel=1e-5), name


def test_learns_the_toy_set(toy_config: Config) -> None:
    reports = reports_of(build(with_values(toy_config, {"train.epochs": 20})))

    assert reports[-1].metrics["mIoU"] > 0.8 > reports[0].metrics["mIoU"]


@pytest.mark.parametrize("context", get_args(Context))
def test_every_context_trains_with_any_loss_weight(toy_config: Config, context: str) -> None:
    config = with_values(toy_config, {"model.context": context, "loss.se_weight": 0, "train.epochs": 1})

    assert len(reports_of(build(config))) == 1


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="the processor has no bfloat16")
def test_bf16_trains(toy_config: Config) -> None:
    reports = reports_of(build(with_values(toy_config, {"train.precision": "bf16", "train.epochs": 1})))

    assert 0 < reports[0].metrics["train/loss"] < 10


def test_a_resumed_training_is_the_uninterrupted_one(toy_config: Config, tmp_path: Path) -> None:
    whole = build(toy_config)
    expected = reports_of(whole)

    first = build(toy_config)
    reports_of(first, 1)
    save_checkpoint(first.state, tmp_path)
    resumed = build(toy_config)
    load_checkpoint(resumed.state, tmp_path)
    (report,) = reports_of(resumed)

    assert followed(report) == followed(expected[1])
    assert [p.values for p in steps(report)] == [p.values for p in steps(expected[1])]
    for ours, theirs in zip(resumed.state.model.parameters(), whole.state.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_diverging_training_stops_with_the_step_and_the_rate(toy_config: Config) -> None:
    config = with_values(toy_config, {"optim.lr": 10, "optim.head_lr_factor": 1000, "train.epochs": 40})

    with pytest.raises(
        TrainingError, match=r"non-finite gradient in 3 steps of this epoch.* samples are .*\(lr="
    ):
        reports_of(build(config))


def test_the_rate_follows_the_poly_schedule(toy_config: Config) -> None:
    reports = reports_of(build(toy_config))

    assert reports[-1].metrics["lr"] == pytest.approx(0.02 * (1 - 5 / 6) ** 0.9)


def test_a_damaged_checkpoint_is_one_line(toy_config: Config, tmp_path: Path) -> None:
    state = build(toy_config).state
    save_checkpoint(state, tmp_path)
    for name in ("optimizer.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(UserError, match=rf"{name}: damaged, its SHA-256 is not the one"):
            load_checkpoint(state, tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file"):
            load_checkpoint(state, tmp_path)
        save_checkpoint(state, tmp_path)


def test_no_flipped_bit_of_a_checkpoint_is_taken(toy_config: Config, tmp_path: Path) -> None:
    state = build(toy_config).state
    save_checkpoint(state, tmp_path)
    rng = np.random.default_rng(0)
    for name in ("model.safetensors", "optimizer.pt", "checkpoint.json"):
        whole = (tmp_path / name).read_bytes()
        for place in rng.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(bytes(damaged))
            try:
                content = read_content(tmp_path)
            except UserError:
                continue
            assert name == "checkpoint.json"  # a digit of the step may have become another
            assert content.step >= 0
        (tmp_path / name).write_bytes(whole)
    load_checkpoint(state, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"step": -5, "samples_seen": 0, "sha256": {}}', "step -5"),
        ('{"step": 1.5, "samples_seen": 0, "sha256": {}}', r"step 1\.5"),
        ('{"samples_seen": 0, "sha256": {}}', "KeyError: 'step'"),
        ('{"step": 1, "samples_seen": 0, "sha256": []}', "TypeError"),
        ('{"step": 1, "samples_seen": 0, "sha256": {}}', "KeyError: 'model.safetensors'"),
        ("[]", "TypeError"),
        ("", "JSONDecodeError"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_one_line(
    toy_config: Config, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        load_checkpoint(build(toy_config).state, tmp_path)


def test_weights_that_are_not_finite_are_refused(toy_config: Config, tmp_path: Path) -> None:
    state = build(toy_config).state
    with torch.no_grad():
        next(state.model.parameters()).fill_(math.nan)
    save_checkpoint(state, tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: holds .* not finite.* smaller optim.lr"):
        load_checkpoint(state, tmp_path)


def test_a_local_training_goes_on_as_if_nothing_had_happened(toy_config: Config, tmp_path: Path) -> None:
    whole = run_local(toy_config, tmp_path / "whole", MemoryRecorder())

    class Killed(MemoryRecorder):
        def log(self, report: Report) -> None:
            super().log(report)
            if report.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(toy_config, tmp_path / "killed", Killed())
    recorder = MemoryRecorder()
    resumed = run_local(toy_config, tmp_path / "killed", recorder)
    assert [report.epoch for report in recorder.reports] == [report.epoch for report in whole.reports]
    assert resumed.best.metrics["mIoU"] == whole.best.metrics["mIoU"]
    one, other = (load_file(result.best_checkpoint / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def killed_after(config: Config, run_dir: Path, epoch: int) -> None:
    class Killed(MemoryRecorder):
        def log(self, report: Report) -> None:
            if report.epoch == epoch:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(config, run_dir, Killed())


@pytest.mark.parametrize(
    ("killed_at", "damaged", "start"),
    [
        (3, ["best/model.safetensors"], "the beginning"),
        (3, ["best/checkpoint.json"], "the beginning"),
        (3, ["best/optimizer.pt"], None),
        (3, ["checkpoint-epoch00003/model.safetensors"], None),
        (2, ["best/model.safetensors"], None),  # the second newest checkpoint has the weights too
        (2, ["best/model.safetensors", "checkpoint-epoch00001/model.safetensors"], "the beginning"),
        (3, ["best", "checkpoint-epoch00002", "checkpoint-epoch00003"], "the beginning"),
    ],
)
def test_best_weights_that_are_lost_are_trained_again(
    toy_config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    killed_at: int,
    damaged: list[str],
    start: str | None,
) -> None:
    # The rate falls, so that the first epoch is the best.
    config = with_values(toy_config, {"train.epochs": 4}).model_copy(update={"metric": "lr"})
    whole = run_local(config, tmp_path / "whole", MemoryRecorder())
    run_dir = tmp_path / "killed"
    killed_after(config, run_dir, killed_at)
    for name in damaged:
        if (run_dir / name).is_dir():
            shutil.rmtree(run_dir / name)
        else:
            (run_dir / name).write_bytes(b"?" + (run_dir / name).read_bytes())

    recorder = MemoryRecorder()
    resumed = run_local(config, run_dir, recorder)

    again = [line.rpartition("training again from ")[2] for line in caplog.messages if "again from" in line]
    passed_over = [line for line in caplog.messages if "this checkpoint is passed over" in line]
    assert len(passed_over) == sum("/" in name for name in damaged)
    assert again == ([start] if start else [])
    assert resumed.best.epoch == 1
    assert [report.epoch for report in recorder.reports] == [1, 2, 3, 4]
    assert [report.epoch for report in SpoolReader(run_dir / "reports.jsonl").new_reports()] == [1, 2, 3, 4]
    one, other = (load_file(result.best_checkpoint / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_local_runner_keeps_the_checkpoint_of_the_best_report(toy_config: Config, tmp_path: Path) -> None:
    recorder = MemoryRecorder()

    result = run_local(toy_config, tmp_path, recorder)

    assert recorder.reports == list(result.reports)
    assert result.best.metrics["mIoU"] == max(r.metrics["mIoU"] for r in result.reports)
    state = build(toy_config).state
    load_checkpoint(state, result.best_checkpoint)
    assert state.step == result.best.step
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        "checkpoint-epoch00001",
        "checkpoint-epoch00002",
        "reports.jsonl",
    ]
