"""A batch that goes through in parts trains as the whole one, batch norm and dropout apart."""

from typing import Any

import pytest
import torch
from torch import nn

from encsearch.config import Config, with_values
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.model.encnet import EncNet
from encsearch.reports import Report
from encsearch.train import step
from encsearch.train.experiment import build, new_state
from encsearch.train.loop import fit
from encsearch.train.memory import training_gib
from encsearch.workflow.calibration import calibrate


@pytest.fixture
def config(toy_config: Config) -> Config:
    return with_values(toy_config, {"model.dropout": 0, "train.precision": "fp32", "loss.dice_weight": 0.5})


def train(config: Config) -> tuple[list[Report], EncNet]:
    """A training without batch norm, whose statistics are those of a part."""
    e = build(config)
    torch.manual_seed(0)
    model = EncNet.from_config(config.model, num_classes=3)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    events = fit(new_state(model, config), e.loaders, e.loss, e.plan)
    return [event for event in events if isinstance(event, Report)], model


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5])
def test_losses_and_weights_are_those_of_the_whole_batch(config: Config, micro_batch_size: int) -> None:
    whole, one = train(config)
    in_parts, other = train(with_values(config, {"train.micro_batch_size": micro_batch_size}))

    for report, expected in zip(in_parts, whole, strict=True):
        for name, value in expected.metrics.items():
            if name.startswith("train/"):
                assert report.metrics[name] == pytest.approx(value, rel=1e-4), name
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "parts"), [(1, 8), (3, 3), (4, 2), (8, 1), (99, 1), (None, 1)])
def test_a_worker_takes_no_more_images_at_once(
    config: Config, monkeypatch: pytest.MonkeyPatch, size: int | None, parts: int
) -> None:
    seen = []
    loss_sums = step.loss_sums

    def counted(output: Any, labels: torch.Tensor, **options: Any) -> Any:
        seen.append(len(labels))
        return loss_sums(output, labels, **options)

    monkeypatch.setattr(step, "loss_sums", counted)
    one_step = {"train.epochs": 1, "train.steps_per_epoch": 1, "train.micro_batch_size": size}
    e = build(with_values(config, one_step))
    list(fit(e.state, e.loaders, e.loss, e.plan))

    assert len(seen) == parts
    assert sum(seen) == 8
    assert max(seen) <= (size or 8)


def test_it_takes_less_memory(config: Config) -> None:
    store = Store(config.data.store)
    config = with_values(config, {"augment.crop": 64})
    whole, in_parts = (
        training_gib(with_values(config, {"train.micro_batch_size": size}), store) for size in (None, 2)
    )
    assert in_parts < 0.5 * whole


def test_ohem_beside_it_is_refused_with_both_numbers(config: Config) -> None:
    values = {"train.micro_batch_size": 4, "loss.ohem_threshold": 0.7}
    with pytest.raises(UserError, match=r"micro_batch_size=4 and loss\.ohem_threshold=0\.7 do not go toget"):
        with_values(config, values)


def test_one_image_at_once_is_refused_where_batch_norm_has_one_value(config: Config) -> None:
    values = {"train.micro_batch_size": 1, "model.head": "pspnet"}
    with pytest.raises(UserError, match=r"pools an image to one value.*try train\.micro_batch_size=2"):
        with_values(config, values)


def test_it_can_be_searched(config: Config) -> None:
    space = {"train.micro_batch_size": {"choice": [2, 4]}}
    assert with_values(config, {"search": {"space": space}}).search is not None


def test_one_process_trains_the_whole_batch_of_several_workers(config: Config) -> None:
    """A smaller part is asked for, or what an elastic training's workers take."""

    def part(values: dict[str, Any]) -> int | None:
        return build(with_values(config, {"scaling.num_workers": 2, **values})).plan.micro_batch_size

    assert part({}) is None
    assert part({"scaling.min_workers": 1}) == 4
    assert part({"train.micro_batch_size": 3}) == 3


def test_a_calibration_takes_one_workers_part(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    loss_sums = step.loss_sums

    def counted(output: Any, labels: torch.Tensor, **options: Any) -> Any:
        seen.add(len(labels))
        return loss_sums(output, labels, **options)

    monkeypatch.setattr(step, "loss_sums", counted)
    for values in ({}, {"scaling.min_workers": 1}, {"train.micro_batch_size": 2}):
        calibrate(with_values(config, {"scaling.num_workers": 4, **values}), "cpu", num_train=24, num_val=10)
    assert seen == {2}
