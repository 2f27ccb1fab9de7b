"""Own parts in a training: the loss over ranks and parts, decoding processes, resumes, averages, bundles."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from encsearch.config import AugmentConfig, Config, LossConfig, with_values
from encsearch.data.datasets import Sample
from encsearch.data.store import Store
from encsearch.data.transforms import OwnTransforms
from encsearch.inference.bundle import checkpoint_model, read_bundle, write_bundle
from encsearch.inference.evaluation import score_bundle
from encsearch.model.encnet import EncNetOutput
from encsearch.parts import PartName, code_from, make_part
from encsearch.reports import MemoryRecorder, Report
from encsearch.runner.local import run_local
from encsearch.train import loop
from encsearch.train.checkpoint_files import find_weights, intact
from encsearch.train.experiment import build
from encsearch.train.loop import OwnFigure, fit
from encsearch.train.loss import label_divisors, loss_sums, own_losses, weighted_loss

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUNDARY = PartName("my_parts:boundary")
ALL_PARTS: dict[str, Any] = {
    "code": str(EXAMPLES),
    "metric": "my_parts:ImageMIoU",
    "augment.extra": ["my_parts:Cutout"],
    "augment.args": {"my_parts:Cutout": {"side": 6}},
    "model.backbone": "my_parts:Backbone",
    "model.args": {"my_parts:Backbone": {"width": 4}},
    "model.output_stride": 8,
    "model.head": "my_parts:Head",
    "model.context": "my_parts:Context",
    "loss.terms": {BOUNDARY: 0.5},
    "loss.args": {BOUNDARY: {"radius": 2}},
    "optim.name": "my_parts:SignSGD",
    "optim.schedule": "my_parts:halving",
    "optim.lr": 0.002,
    "train.precision": "fp32",
}


@pytest.fixture
def config(toy_config: Config) -> Config:
    return with_values(toy_config, ALL_PARTS)


@pytest.fixture(autouse=True)
def from_examples() -> Iterator[None]:
    with code_from(EXAMPLES):
        yield


def reports(config: Config) -> list[Report]:
    e = build(config)
    return [event for event in fit(e.state, e.loaders, e.loss, e.plan) if isinstance(event, Report)]


def figures(report: Report) -> dict[str, float]:
    moment = ("time/", "throughput/", "memory/")
    return {name: value for name, value in report.metrics.items() if not name.startswith(moment)}


def outputs(number: int = 6) -> tuple[Tensor, Tensor]:
    """Logits, and labels in patches; the second image has none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (number, 4, 4), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[1] = 255
    labels[0, :3] = 255
    return torch.randn(number, 3, 16, 16, generator=generator, requires_grad=True), labels


def test_it_trains_with_all_parts_and_reports_their_figures(config: Config) -> None:
    first, last = reports(config)
    assert {"my_parts:ImageMIoU", f"train/{BOUNDARY}"} <= first.metrics.keys()
    assert 0 <= last.metrics["my_parts:ImageMIoU"] <= 1
    assert first.metrics["train/loss"] == pytest.approx(
        sum(
            weight * first.metrics[f"train/{name}"]
            for name, weight in (("pixel_loss", 1), ("se_loss", 0.2), ("aux_se_loss", 0.2), (BOUNDARY, 0.5))
        )
    )
    assert last.metrics["lr"] == pytest.approx(0.002 * 0.5**3), "halved three times in six steps"


@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 5), (2, 1, 3)])
def test_an_own_loss_adds_up_over_ranks_to_that_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    loss = LossConfig(terms={BOUNDARY: 0.5}, args={BOUNDARY: {"radius": 2}})
    own = own_losses(loss)
    logits, labels = outputs()

    def sums(rows: slice) -> Any:
        output = EncNetOutput(logits=logits[rows], presence_logits=None, aux_logits=None)
        return loss_sums(output, labels[rows], loss=loss, own=own)

    ends = np.cumsum(sizes)
    parts = [sums(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    divisors = torch.stack(
        [torch.stack([term.divisor for term in part.values()]).double() for part in parts]
    ).sum(dim=0)
    total = torch.stack([weighted_loss(part, divisors, loss) for part in parts]).sum()

    values = own[BOUNDARY](logits, labels)
    labelled = (labels != 255).flatten(1).any(dim=1)
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    assert total.item() == pytest.approx((cross_entropy + 0.5 * values[labelled].mean()).item(), rel=1e-5)
    names = list(parts[0])
    by_labels = label_divisors(labels, 3, own=own)
    assert [by_labels[name].item() for name in names] == divisors.tolist(), "known before the outputs are"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_own_loss_may_compute_in_another_number_format(dtype: torch.dtype) -> None:
    logits, labels = outputs()
    loss = LossConfig(terms={"m:f": 1.0})
    output = EncNetOutput(logits=logits, presence_logits=None, aux_logits=None)

    def part(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.to(dtype).square().mean(dim=(1, 2, 3)) + 100

    terms = loss_sums(output, labels, loss=loss, own={PartName("m:f"): part})
    term = terms[PartName("m:f")]
    assert term.sum.dtype == torch.float32
    expected = part(logits, labels)[(labels != 255).flatten(1).any(dim=1)].float().sum()
    assert term.sum.item() == pytest.approx(expected.item())
    divisors = torch.stack([one.divisor for one in terms.values()]).double()
    weighted_loss(terms, divisors, loss).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_a_batch_in_parts_has_the_own_loss_of_the_whole(config: Config, micro_batch_size: int) -> None:
    """Batch norm and the others see the parts, so only what does not depend on it is compared: one step."""
    values = {"train.epochs": 1, "train.steps_per_epoch": 1, "model.backbone": "tiny", "model.dropout": 0}
    values |= {"model.output_stride": 4, "optim.lr": 1e-12, "loss.terms": {BOUNDARY: 1.0}}
    norms = {"augment.extra": [], "augment.args": {}}
    found = []
    for size in (None, micro_batch_size):
        e = build(with_values(config, {**values, **norms, "train.micro_batch_size": size}))
        for module in e.state.model.modules():  # frozen statistics, the same for any batch
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.train = lambda *_, module=module: module  # type: ignore[assignment, misc]
                module.training = False
        found.append(next(event for event in fit(e.state, e.loaders, e.loss, e.plan)))
    whole, in_parts = (event.metrics for event in found if isinstance(event, Report))
    assert in_parts[f"train/{BOUNDARY}"] == pytest.approx(whole[f"train/{BOUNDARY}"], rel=1e-4)


def test_a_decoding_process_imports_its_own_transforms(config: Config) -> None:
    threads = build(with_values(config, {"data.threads": 3})).loaders.train.batches(0)
    processes = build(with_values(config, {"data.processes": 1})).loaders.train.batches(0)
    plain = build(with_values(config, {"augment.extra": [], "augment.args": {}})).loaders.train.batches(0)
    try:
        for one, other, without in islice(zip(threads, processes, plain, strict=True), 3):
            assert one.ids == other.ids
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert not torch.equal(one.images, without.images)
            assert (one.labels == 255).sum() > (without.labels == 255).sum(), "the squares are ignored"
    finally:
        for batches in (threads, processes, plain):
            batches.close()


def test_threads_share_one_transform(tmp_path: Path) -> None:
    (tmp_path / "shared_by.py").write_text(
        "import threading\n"
        "made = []\n"
        "class Part:\n"
        "    def __init__(self): made.append(self)\n"
        "    def __call__(self, image, mask, rng): return image + rng.integers(9, dtype='uint8'), mask\n"
    )
    sample = Sample("x", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    with code_from(tmp_path):
        own = OwnTransforms.of(AugmentConfig(extra=("shared_by:Part",)))
    barrier = threading.Barrier(4)

    def one(seed: int) -> int:
        barrier.wait()
        return int(own(sample, np.random.default_rng(seed)).image[0, 0, 0])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(8)))
    assert found == [int(np.random.default_rng(seed).integers(9, dtype=np.uint8)) for seed in range(8)]


def test_a_transform_whose_file_was_changed_is_another(tmp_path: Path) -> None:
    sample = Sample("x", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
    found = []
    for number in (3, 4):
        (tmp_path / "changed_by.py").write_text(
            f"def part(image, mask, rng): return image + {number}, mask\n"
        )
        with code_from(tmp_path):
            own = OwnTransforms.of(AugmentConfig(extra=("changed_by:part",)))
        found.append(int(own(sample, np.random.default_rng(0)).image[0, 0, 0]))
    assert found == [3, 4]


OPTIMIZER: dict[str, Any] = {
    "optim.name": "torch.optim:Adam",
    "optim.args": {"torch.optim:Adam": {"betas": [0.8, 0.99]}},
    "train.ema": 0.5,
    "train.epochs": 3,
    "train.checkpoint_every.steps": 2,
    "model.dropout": 0.3,
}


def killed_at(step: int) -> Callable[..., Any]:
    count, train_step = iter(range(1, 1000)), loop.train_step

    def killed(*arguments: Any) -> Any:
        if next(count) == step:
            raise KeyboardInterrupt
        return train_step(*arguments)

    return killed


def test_a_killed_training_goes_on_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_values(config, OPTIMIZER)
    run_local(config, tmp_path / "whole", MemoryRecorder())
    for step in (2, 4, 3):
        with monkeypatch.context() as patched:
            patched.setattr(loop, "train_step", killed_at(step))
            with pytest.raises(KeyboardInterrupt):
                run_local(config, tmp_path / "killed", MemoryRecorder())
    recorder = MemoryRecorder()
    run_local(config, tmp_path / "killed", recorder)

    folders = [next(intact(tmp_path / name))[0] for name in ("whole", "killed")]
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [
        torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"] for folder in folders
    ]
    for number, slots in states[0].items():
        assert all(torch.equal(value, states[1][number][name]) for name, value in slots.items())
    assert len(recorder.reports) == 3


def test_a_model_keeps_its_code_and_scores_as_its_average_did(config: Config, tmp_path: Path) -> None:
    config = with_values(config, {"train.ema": 0.3})
    result = run_local(config, tmp_path / "run", MemoryRecorder())
    (place, _), *_ = [(p, c) for p, c in find_weights(tmp_path / "run") if c.step == result.best.step]
    store = Store(config.data.store)
    write_bundle(checkpoint_model(config, store, place, result.best), tmp_path / "bundle")

    with code_from(tmp_path):  # where there is no my_parts.py
        bundle = read_bundle(tmp_path / "bundle")
        found = score_bundle(bundle, store, "val")
    name = "my_parts:ImageMIoU"
    assert bundle.code
    assert bundle.code.files.keys() == {"my_parts.py"}
    assert found.own[name] == pytest.approx(result.best.metrics[name], abs=1e-6)
    assert found.mean_iou == pytest.approx(result.best.metrics["mIoU"])


def test_buffers_of_a_loss_are_where_the_model_is(tmp_path: Path) -> None:
    (tmp_path / "buffered_by.py").write_text(
        "import torch\n"
        "class Part(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('weights', torch.ones(3))\n"
        "    def forward(self, logits, labels):\n"
        "        return (logits * self.weights[:, None, None]).square().mean(dim=(1, 2, 3))\n"
    )
    name = PartName("buffered_by:Part")
    with code_from(tmp_path):
        part: Any = own_losses(LossConfig(terms={name: 1.0}), "meta")[name]
    assert part.weights.device.type == "meta"


def test_a_rank_without_images_and_images_without_labels_add_nothing() -> None:
    metric = make_part("metric", PartName("my_parts:ImageMIoU"), {})
    logits, labels = outputs()
    predictions = logits.argmax(dim=1)

    def figure(*rows: slice) -> dict[str, float]:
        own = OwnFigure(PartName("m:f"), metric, 3, torch.device("cpu"))
        for part in rows:
            own.add(labels[part].to(torch.uint8), predictions[part])
        return own.score()

    assert figure() == {"m:f": 0.0}
    whole = figure(slice(0, 6))
    assert whole == pytest.approx(figure(slice(0, 2), slice(2, 6)))
    assert whole == pytest.approx(figure(slice(0, 1), slice(2, 6))), "image 1 has no labels"


def test_labels_of_a_metric_do_not_overflow() -> None:
    """They are bytes in a batch: class 200 of 201 times 201 is none."""

    class Cells:
        def count(self, labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
            return (labels * num_classes + predictions).sum()[None]

        def score(self, counts: Tensor) -> float:
            return float(counts[0])

    own = OwnFigure(PartName("m:f"), Cells(), 201, torch.device("cpu"))
    own.add(torch.tensor([[[200]]], dtype=torch.uint8), torch.tensor([[[7]]]))
    assert own.score() == {"m:f": 200 * 201 + 7}
