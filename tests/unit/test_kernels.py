"""What a GPU needs beside the arithmetic: formats, switches, nothing read back, one training at a time.

No GPU is needed: the switches are torch's own, and what would be read back is counted on the CPU.
"""

import gc
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from encsearch.config import Config, ScalingConfig, to_json, with_values
from encsearch.data.loading import Inputs, feed
from encsearch.data.store import Store
from encsearch.errors import PreflightError, UserError
from encsearch.inference.bundle import checkpoint_model, find_device
from encsearch.inference.evaluation import score_bundle
from encsearch.model.layers import _Upsample, most_likely
from encsearch.reports import MemoryRecorder
from encsearch.runner.hardware import local_device
from encsearch.runner.local import run_local
from encsearch.search.tune import worker as trial_worker
from encsearch.train import kernels
from encsearch.train.experiment import build
from encsearch.train.kernels import Kernels
from encsearch.train.state import new_optimizer
from encsearch.train.step import train_step

CPU, GPU = torch.device("cpu"), torch.device("cuda")
READ_BACKS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.unique_consecutive.default,
}


class ReadBacks(TorchDispatchMode):
    """Counts the operations whose result the host must know before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # An index of booleans asks for the number of true ones.
        by_mask = func is torch.ops.aten.index.Tensor and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        self.count += func in READ_BACKS or by_mask
        return func(*args, **(kwargs or {}))


def inputs_of(config: Config) -> Inputs:
    batches = build(config).loaders.train.batches(0)
    (inputs,) = feed([next(batches)], CPU)
    batches.close()
    return inputs


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.preset": "reference", "loss.class_weights": "median_frequency", "optim.clip_norm": 1.0},
        {"loss.ohem_threshold": 0.7, "loss.dice_weight": 0.5, "loss.label_smoothing": 0.1},
        {"train.precision": "fp32", "augment.jitter": 0.3, "model.context": "gate"},
    ],
)
def test_a_step_reads_nothing_back(toy_config: Config, values: dict[str, Any]) -> None:
    config = with_values(toy_config, values)
    inputs, experiment = inputs_of(config), build(config)
    experiment.state.network.train()
    # As on a GPU, where the optimizer skips a step by itself; the first one is read back.
    experiment.state.optimizer = new_optimizer(experiment.state.model, config.optim, fused=True)
    train_step(experiment.state, inputs, experiment.loss, experiment.plan)

    with ReadBacks() as reads:
        for _ in range(2):
            train_step(experiment.state, inputs, experiment.loss, experiment.plan)

    assert reads.count == 0


def test_what_is_read_back_is_counted() -> None:
    values = torch.arange(4.0)
    with ReadBacks() as reads:
        values.sum().item()
        values[values > 1]
        bool(values.max() > 2)
    assert reads.count >= 3


def test_the_precision_follows_the_device(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def uses_bf16(precision: str, device: torch.device, *, has: bool) -> bool:
        monkeypatch.setattr(kernels, "has_bf16", lambda _: has)
        train = with_values(toy_config, {"train.precision": precision}).train
        return Kernels.of(train, device).bf16

    monkeypatch.setattr(kernels, "device_name", lambda _: "Tesla T4")
    assert [uses_bf16("auto", GPU, has=has) for has in (True, False)] == [True, False]
    assert [uses_bf16("fp32", GPU, has=has) for has in (True, False)] == [False, False]
    assert uses_bf16("bf16", CPU, has=True)
    with pytest.raises(UserError, match=r"train\.precision=bf16: Tesla T4 does not .*; try auto or fp32"):
        uses_bf16("bf16", GPU, has=False)


def switches() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def test_the_switches_are_set_for_a_block_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()

    with Kernels(GPU, tf32=True, benchmark=True).chosen(one_size=True):
        assert switches() == (True, True, False, "high", False)
    with Kernels(GPU, benchmark=True).chosen(one_size=False):
        assert switches() == (False, False, False, "highest", False)
    with Kernels(GPU, benchmark=True, deterministic=True).chosen(one_size=True):
        assert switches() == (False, False, True, "highest", True)
    with suppress(ZeroDivisionError), Kernels(GPU, deterministic=True).chosen(one_size=True):
        raise ZeroDivisionError
    with Kernels(CPU, tf32=True, deterministic=True).chosen(one_size=True):
        assert switches() == before

    assert switches() == before


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(17, 23), (6, 40), (7, 5), (1, 1)])
def test_the_gradient_of_upsampling_is_that_of_interpolate(
    size: tuple[int, int], align_corners: bool
) -> None:
    logits = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    found: Tensor = _Upsample.apply(logits, size, align_corners)
    grad = torch.randn_like(expected)

    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(value, logits, grad)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_most_likely_class_is_that_of_argmax_also_among_equals_and_nan() -> None:
    logits = torch.randint(0, 3, (4, 7, 20, 20)).float()  # many equal ones
    logits[0, 2, :5] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(most_likely(logits.to(dtype)), logits.to(dtype).argmax(dim=1))
        last = logits.to(dtype).contiguous(memory_format=torch.channels_last)
        assert torch.equal(most_likely(last), last.argmax(dim=1))


@pytest.mark.parametrize("values", [{}, {"train.precision": "fp32", "train.channels_last": False}])
def test_eval_gives_what_the_validation_of_the_training_gave(
    toy_config: Config, tmp_path: Path, values: dict[str, Any]
) -> None:
    config = with_values(toy_config, values)
    result = run_local(config, tmp_path, MemoryRecorder())
    store = Store(config.data.store)

    found = score_bundle(checkpoint_model(config, store, result.best_checkpoint), store, "val")

    assert found.confusion == result.best.confusion


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(ScalingConfig()) == "cpu"
    assert find_device("auto") == CPU
    with pytest.raises(PreflightError, match=r"gpus_per_worker=1, but no GPU .*NVIDIA driver.*; try"):
        local_device(ScalingConfig(gpus_per_worker=1))


def test_a_worker_frees_its_training_before_it_builds_the_next(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = Store(toy_config.data.store).fingerprint
    worker = trial_worker.TrialWorker()
    assert worker.build(to_json(toy_config), fingerprint, tmp_path, False).failure is None
    worker.step()
    old = weakref.ref(worker._built().state.model)
    alive: list[bool] = []

    def build_then(*args: Any, **options: Any) -> Any:
        gc.collect()
        alive.append(old() is not None)
        return build(*args, **options)

    monkeypatch.setattr(trial_worker, "build", build_then)
    assert worker.build(to_json(toy_config), fingerprint, tmp_path, False).failure is None
    assert alive == [False]


def test_a_gpu_that_cannot_be_used_refuses_the_trial(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it")

    monkeypatch.setattr(trial_worker, "describe_hardware", fail)
    config = with_values(toy_config, {"scaling.gpus_per_worker": 1})
    fingerprint = Store(toy_config.data.store).fingerprint
    built = trial_worker.TrialWorker().build(to_json(config), fingerprint, tmp_path, False)
    assert built.failure is not None
    assert built.failure.startswith("cuda:0 cannot be used here: ")
    assert "driver on your system is too old" in built.failure
    assert "\n" not in built.failure
