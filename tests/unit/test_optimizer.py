"""The optimizers and the schedules, against PyTorch's own and against the definition written out."""

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    SequentialLR,
)

from encsearch.config import Config, OptimConfig, with_values
from encsearch.errors import UserError
from encsearch.model.encnet import EncNet
from encsearch.reports import Report
from encsearch.train.experiment import build
from encsearch.train.loop import fit
from encsearch.train.state import new_optimizer, rate_factor

STEPS = 40


def pytorchs(schedule: str, optimizer: torch.optim.Optimizer, warmup: int) -> LRScheduler:
    """The phases of a schedule by PyTorch, one after the other."""
    left = STEPS - warmup
    phases: list[LRScheduler] = []
    starts = []
    if warmup:
        phases, starts = [LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)], [warmup]
    match schedule:
        case "poly":
            phases += [PolynomialLR(optimizer, total_iters=left, power=0.9)]
        case "cosine":
            phases += [CosineAnnealingLR(optimizer, T_max=left)]
        case "wsd":
            phases += [ConstantLR(optimizer, factor=1), LinearLR(optimizer, 1, 0, total_iters=10)]
            starts += [STEPS - 10]
        case _:
            phases += [ConstantLR(optimizer, factor=1)]
    return SequentialLR(optimizer, phases, milestones=starts)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "wsd", "constant"])
@pytest.mark.parametrize("warmup", [0, 8])
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_the_rate_is_that_of_pytorchs_schedule(schedule: str, warmup: int) -> None:
    optim = OptimConfig.model_validate({"schedule": schedule, "warmup": warmup / STEPS, "decay": 0.25})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = pytorchs(schedule, optimizer, warmup)

    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert [rate_factor(step, STEPS, optim) for step in range(STEPS)] == pytest.approx(expected, abs=1e-12)


def test_the_default_rate_is_the_papers_to_the_last_bit() -> None:
    assert [rate_factor(step, 7, OptimConfig()) for step in range(7)] == [
        (1 - step / 7) ** 0.9 for step in range(7)
    ]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", ["poly", "cosine", "wsd", "constant"])
@pytest.mark.parametrize(("warmup", "decay"), [(0.5, 0.01), (0.5, 0.5), (0, 0.01), (0, 0.5)])
def test_few_steps_have_a_rate_above_0(steps: int, schedule: str, warmup: float, decay: float) -> None:
    optim = OptimConfig.model_validate({"schedule": schedule, "warmup": warmup, "decay": decay})

    assert all(0 < rate_factor(step, steps, optim) <= 1 for step in range(steps))


def test_every_group_of_a_training_follows_the_schedule(toy_config: Config) -> None:
    config = with_values(toy_config, {"optim.schedule": "wsd", "optim.warmup": 0.5, "optim.decay": 0.34})
    e = build(config)
    reports = [event for event in fit(e.state, e.loaders, e.loss, e.plan) if isinstance(event, Report)]

    steps = [point.values for report in reports for point in report.points if "step/lr" in point.values]
    assert [values["step/lr"] for values in steps] == pytest.approx(
        [0.02 * f for f in (1 / 3, 2 / 3, 1, 1, 1, 0.5)]
    )
    assert [group["lr"] for group in e.state.optimizer.param_groups] == pytest.approx([0.01, 0.02])


def adamw_by_hand(
    weight: torch.Tensor, gradients: list[torch.Tensor], rate: float, optim: OptimConfig
) -> torch.Tensor:
    """Loshchilov and Hutter, ICLR 2019, algorithm 2, with PyTorch's epsilon and decay times the rate."""
    weight = weight.double()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for number, gradient in enumerate(gradients, start=1):
        mean = optim.momentum * mean + (1 - optim.momentum) * gradient.double()
        square = optim.beta2 * square + (1 - optim.beta2) * gradient.double() ** 2
        unbiased = mean / (1 - optim.momentum**number)
        scale = (square / (1 - optim.beta2**number)).sqrt() + 1e-8
        weight = weight - rate * (unbiased / scale + optim.weight_decay * weight)
    return weight


def test_adamw_is_the_papers_in_both_groups() -> None:
    optim = OptimConfig(name="adamw", lr=0.01, head_lr_factor=3, momentum=0.8, beta2=0.95, weight_decay=0.5)
    torch.manual_seed(0)
    model = EncNet("tiny", num_codewords=4, num_classes=3, channels=16, output_stride=4)
    optimizer = new_optimizer(model, optim)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [[torch.randn_like(value) for value in before] for _ in range(3)]

    for step in gradients:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    names = [name for name, _ in model.named_parameters()]
    for name, start, after, *of_weight in zip(names, before, model.parameters(), *gradients, strict=True):
        rate = 0.01 if name.startswith("backbone.") else 0.03
        expected = adamw_by_hand(start, of_weight, rate, optim)
        torch.testing.assert_close(after.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_training_with_adamw_learns(toy_config: Config) -> None:
    values = {"optim.name": "adamw", "optim.lr": 0.005, "train.epochs": 20, "optim.warmup": 0.1}
    e = build(with_values(toy_config, values))

    reports = [event for event in fit(e.state, e.loaders, e.loss, e.plan) if isinstance(event, Report)]

    assert reports[-1].metrics["mIoU"] > 0.8 > reports[0].metrics["mIoU"]


@pytest.mark.parametrize("path", ["optim.warmup", "optim.decay"])
def test_a_phase_over_half_of_the_steps_is_refused(toy_config: Config, path: str) -> None:
    with pytest.raises(UserError, match=rf"{path}.*0\.6.*0\.5|{path}.*0\.5.*0\.6"):
        with_values(toy_config, {path: 0.6})


def test_all_of_it_can_be_searched(toy_config: Config) -> None:
    space = {
        "optim.name": {"choice": ["sgd", "adamw"]},
        "optim.beta2": {"choice": [0.95, 0.999], "when": {"optim.name": ["adamw"]}},
        "optim.schedule": {"choice": ["poly", "cosine", "wsd", "constant"]},
        "optim.warmup": {"uniform": [0.0, 0.2]},
        "optim.decay": {"uniform": [0.1, 0.5]},
    }
    assert with_values(toy_config, {"search": {"space": space}}).search is not None
