"""Two gloo processes against one: the same sums, the same gradients, every validation sample once."""

import socket
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from encsearch.config import Config, from_json, to_json, with_values
from encsearch.model.encnet import EncNet
from encsearch.reports import Report
from encsearch.train.experiment import build, new_state
from encsearch.train.loop import fit

# Every combination of what may change a count or depend on the batch, one step each.
LOSSES: list[dict[str, Any]] = [
    {
        "model.preset": preset,
        "loss.class_weights": weights,
        "loss.label_smoothing": smoothing,
        "loss.ohem_threshold": threshold,
        "loss.dice_weight": dice_weight,
    }
    for preset, weights, smoothing, threshold, dice_weight in product(
        ("mmseg", "paper"), ("none", "median_frequency"), (0, 0.1), (None, 0.4), (0, 0.5)
    )
]


def test_two_ranks_train_as_one(toy_config: Config, tmp_path: Path) -> None:
    """Without batch norm (each rank's own on the CPU) weights and reports agree to rounding.

    The ranks' batches have unequal numbers of labelled pixels, so a mean of per-rank means would differ.
    """
    exact = {"model.dropout": 0, "loss.se_weight": 0.2, "train.precision": "fp32"}
    config = with_values(toy_config, exact)
    _train(0, 1, None, to_json(config), tmp_path)
    rendezvous = f"tcp://127.0.0.1:{_free_port()}"
    torch.multiprocessing.spawn(_train, (2, rendezvous, to_json(config), tmp_path), nprocs=2, join=True)

    one = torch.load(tmp_path / "0-of-1.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"{rank}-of-2.pt", weights_only=True) for rank in (0, 1)]
    for name, weight in one["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=1e-4, atol=1e-6, msg=name)
    assert ranks[0]["confusion"] == ranks[1]["confusion"]
    assert sum(map(sum, ranks[0]["confusion"])) == 32 * (10 * 32 - 36)  # the void bands do not count
    assert ranks[0]["loss"] == pytest.approx(one["loss"], rel=1e-4)
    # What is told of single steps is global too, but the pictures are rank 0's.
    assert ranks[0]["steps"] == ranks[1]["steps"] == pytest.approx(one["steps"], rel=1e-4)
    assert [found["shown"] for found in (one, *ranks)] == [4, 4, 0]
    assert [found["world_size"] for found in (one, *ranks)] == [1, 2, 2]
    for number, values in enumerate(LOSSES):
        torch.testing.assert_close(
            ranks[0]["losses"][number], one["losses"][number], rtol=1e-4, atol=1e-6, msg=str(values)
        )
    # With batch norm the ranks saw other statistics, but validate and save the same ones.
    for name, value in ranks[0]["with batch norm"].items():
        assert torch.equal(ranks[1]["with batch norm"][name], value), name


def test_a_backbone_with_weights_that_the_head_ignores_trains(toy_config: Config) -> None:
    """HRNet's last stage writes to all four resolutions; EncNet's head takes the coarsest alone."""
    model = {"model.backbone": "timm:hrnet_w18_small", "model.output_stride": 32}
    config = with_values(toy_config, model)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{_free_port()}", rank=0, world_size=1)
    try:
        state = new_state(EncNet.from_config(config.model, num_classes=3), config, world_size=2)
        for _ in range(2):  # what the first step lacks is an error of the second
            state.network(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    finally:
        dist.destroy_process_group()


def _train(rank: int, world_size: int, rendezvous: str | None, config_json: str, out: Path) -> None:
    torch.set_num_threads(1)
    config = from_json(config_json)
    if rendezvous:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    report, weights = _train_without_batch_norm(config, rank, world_size)
    short = with_values(config, {"train.epochs": 1, "train.steps_per_epoch": 1})
    losses = [_train_without_batch_norm(with_values(short, values), rank, world_size)[1] for values in LOSSES]
    experiment = build(config, rank=rank, world_size=world_size)
    list(fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan))
    torch.save(
        {
            "weights": weights,
            "losses": losses,
            "confusion": report.confusion,
            "loss": report.metrics["train/loss"],
            "steps": [p.values["step/loss"] for p in report.points if "step/loss" in p.values],
            "shown": len(report.label_maps),
            "world_size": report.metrics["world_size"],
            "with batch norm": experiment.state.model.state_dict(),
        },
        out / f"{rank}-of-{world_size}.pt",
    )
    if rendezvous:
        dist.destroy_process_group()


def _train_without_batch_norm(
    config: Config, rank: int, world_size: int
) -> tuple[Report, dict[str, torch.Tensor]]:
    """The last report and the weights."""
    experiment = build(config, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    plain = _without_batch_norm(EncNet.from_config(config.model, num_classes=3))
    state = new_state(plain, config, world_size=world_size)
    report = list(fit(state, experiment.loaders, experiment.loss, experiment.plan))[-1]
    return report, plain.state_dict()


def _without_batch_norm(module: EncNet) -> EncNet:
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    return module


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
