"""Two gloo processes against one: the same sums, the same gradients, every validation sample once."""

import socket
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from encsearch.config import Config, from_json, to_json, with_values
from encsearch.errors import TrainingError, UserError
from encsearch.model.encnet import EncNet
from encsearch.reports import Report, SpoolReader
from encsearch.runner.rank import RankTraining
from encsearch.train import loop
from encsearch.train.checkpoint_files import intact
from encsearch.train.experiment import build, new_state
from encsearch.train.loop import fit
from encsearch.train.state import TrainState

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


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory, toy_store: Path) -> Path:
    """Folders of trainings by two ranks: one that nothing disturbs, one that is killed twice, and others."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "damaged").mkdir()
    (out / "damaged" / "reports.jsonl").write_text("damaged\n")
    (out / "unwritable").mkdir()
    (out / "unwritable" / "best").write_text("in the place of a folder")
    rendezvous = f"tcp://127.0.0.1:{_free_port()}"
    torch.multiprocessing.spawn(_train_all, (2, rendezvous, str(toy_store), out), nprocs=2, join=True)
    return out


@pytest.mark.parametrize("number", range(len(LOSSES)))
def test_a_batch_in_parts_has_the_gradient_of_the_whole(toy_config: Config, number: int) -> None:
    """Without batch norm, and unequal parts: 8 images by 3 at most. OHEM is never in parts."""
    values = {**LOSSES[number], "model.dropout": 0, "train.precision": "fp32", "loss.se_weight": 0.2}
    config = with_values(toy_config, {**values, "train.epochs": 1, "train.steps_per_epoch": 1})
    experiment = build(config)
    found = []
    for micro_batch_size in (None, 3):
        torch.manual_seed(0)
        plain = _without_batch_norm(EncNet.from_config(config.model, num_classes=3))
        state = new_state(plain, config)
        plan = replace(experiment.plan, micro_batch_size=micro_batch_size)
        (report,) = fit(state, experiment.loaders, experiment.loss, plan)
        found.append((report, plain.state_dict()))
    (whole, weights), (in_parts, others) = found
    assert in_parts.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"], rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_two_ranks_that_are_killed_inside_an_epoch_go_on_bit_for_bit(of_two_ranks: Path) -> None:
    folders = [of_two_ranks / name for name in ("whole", "killed")]
    newest = [next(intact(folder)) for folder in folders]
    assert [content.step for _, content in newest] == [10, 10]
    for file in ("model.safetensors", "raw.safetensors"):
        one, other = (load_file(place / file) for place, _ in newest)
        assert all(torch.equal(one[name], other[name]) for name in one)
    reports = [SpoolReader(folder / "reports.jsonl").new_reports() for folder in folders]
    for whole, killed in zip(*reports, strict=True):
        assert whole.confusion == killed.confusion
        assert whole.metrics["train/loss"] == killed.metrics["train/loss"]
        assert [p.values for p in whole.points if "step/loss" in p.values] == [
            p.values for p in killed.points if "step/loss" in p.values
        ]
    assert [report.metrics.get("resumed_from_step") for report in reports[1]] == [2, 6]


def test_two_ranks_end_at_the_same_report_also_after_a_kill(of_two_ranks: Path) -> None:
    for rank in (0, 1):
        told = (of_two_ranks / "ends" / f"ends-{rank}").read_text()
        assert told.startswith("4 train.early_stop: 3 reports without a rise of lr above")
    assert len(SpoolReader(of_two_ranks / "ends" / "reports.jsonl").new_reports()) == 4


def test_a_training_goes_on_inside_an_epoch_with_fewer_ranks(of_two_ranks: Path, toy_store: Path) -> None:
    _train_in(of_two_ranks / "fewer", _inside_epochs(toy_store), None)
    report, _ = SpoolReader(of_two_ranks / "fewer" / "reports.jsonl").new_reports()
    assert report.metrics["resumed_from_step"] == 2
    assert report.metrics["world_size"] == 1
    assert [p.step for p in report.points if "step/loss" in p.values] == [1, 2, 3, 4, 5]
    assert all(p.values["step/loss"] > 0 for p in report.points if "step/loss" in p.values)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("damaged", "reports.jsonl: line 1 is damaged"), ("unwritable", "a checkpoint cannot be written")],
)
def test_what_fails_on_rank_0_alone_ends_all_with_its_reason(
    of_two_ranks: Path, name: str, reason: str
) -> None:
    told = [(of_two_ranks / name / f"failure-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert reason in told[0]


def _inside_epochs(store: Path) -> Config:
    """With batch norm, whose statistics differ over the ranks, dropout and augmentation."""
    return Config.model_validate(
        {
            "name": "toy",
            "data": {"store": str(store)},
            "augment": {"flip": 0.5},
            "model": {
                "backbone": "tiny",
                "output_stride": 4,
                "num_codewords": 4,
                "channels": 16,
                "dropout": 0.3,
            },
            "optim": {"lr": 0.02, "head_lr_factor": 2},
            "train": {
                "epochs": 2,
                "global_batch_size": 8,
                "steps_per_epoch": 5,
                "val_batch_size": 4,
                "checkpoint_every": {"steps": 2},
                "ema": 0.5,
            },
        }
    )


def _train_all(rank: int, world_size: int, rendezvous: str, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    kills = {"whole": [None], "killed": [4, 8, None], "fewer": [4], "damaged": [None], "unwritable": [None]}
    for name, ends in kills.items():
        for end in ends:
            _train_in(out / name, _inside_epochs(Path(store)), end, rank, world_size)
    ending = with_values(
        _inside_epochs(Path(store)), {"train.epochs": 6, "train.early_stop.patience": 3}
    ).model_copy(update={"metric": "lr"})
    for end in (13, None, None):  # in the third epoch; to its end; once more after it
        _train_in(out / "ends", ending, end, rank, world_size)
    dist.destroy_process_group()


def _train_in(folder: Path, config: Config, kill: int | None, rank: int = 0, world_size: int = 1) -> None:
    """Train in a folder to the end, or to the step before `kill` on every rank."""
    folder.mkdir(exist_ok=True)
    experiment = build(config, rank=rank, world_size=world_size)
    train_step = loop.train_step

    def killed(state: TrainState, *arguments: Any) -> Any:
        if state.step + 1 == kill:
            raise KeyboardInterrupt
        return train_step(state, *arguments)

    training = RankTraining(experiment, folder, config.metric)
    loop.train_step = killed
    try:
        reports = [*training.begin(), *training.reports()]
        last = next((report for report in reversed(reports) if report.ends), None)
        if last:
            (folder / f"ends-{rank}").write_text(f"{last.epoch} {last.ends}")
    except KeyboardInterrupt:
        pass
    except (TrainingError, UserError) as error:
        (folder / f"failure-{rank}").write_text(str(error))
    finally:
        loop.train_step = train_step


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
