"""The parts of a GPU that trainings share, on a described card; benchmarks/gpu.py has a real one."""

from types import SimpleNamespace

import pytest
import torch

from encsearch.config import Config, ScalingConfig, with_values
from encsearch.data.store import Store
from encsearch.errors import PreflightError, TrainingError
from encsearch.runner import hardware
from encsearch.train.gpu_memory import (
    CONTEXT_BYTES,
    LIBRARY_BYTES,
    describe_fit,
    keep_to_part,
    part_bytes,
    telling_full_gpu,
)
from encsearch.train.memory import training_gib
from encsearch.workflow.check import check

GIB = 2**30
CARD = SimpleNamespace(name="a card", total_memory=80 * GIB, major=9, minor=0)


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fractions that this process was limited to, on a card of 80 GiB."""
    asked = [1.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: CARD)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append(share)
    )
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: asked[-1])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 19 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, CARD.total_memory))
    return asked


def test_parts_and_what_cuda_needs_beside_them_fill_the_card(fractions: list[float]) -> None:
    keep_to_part(ScalingConfig(gpus_per_worker=0.25), "cuda:0")

    assert 4 * (fractions[-1] * CARD.total_memory + CONTEXT_BYTES) == pytest.approx(CARD.total_memory)


@pytest.mark.parametrize(("gpus", "device"), [(1, "cuda:0"), (2, "cuda:0"), (0, "cpu"), (0.5, "cpu")])
def test_a_whole_gpu_and_a_cpu_have_no_limit(gpus: float, device: str, fractions: list[float]) -> None:
    keep_to_part(ScalingConfig(gpus_per_worker=gpus), device)

    assert fractions == [1.0]


def test_a_full_part_is_too_many_trials_a_gpu(fractions: list[float]) -> None:
    keep_to_part(ScalingConfig(gpus_per_worker=0.25), "cuda:0")

    with pytest.raises(TrainingError) as told, telling_full_gpu(torch.device("cuda:0")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB ...")

    assert "may hold 19.1 GiB of the 80 GiB of a card" in str(told.value)
    assert "41 GiB of it in use by CUDA and other processes" in str(told.value)
    assert "too many trials a GPU; raise scaling.gpus_per_worker" in str(told.value)


def test_a_full_card_is_told_without_trials(fractions: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"holds 19 GiB of the 80 GiB .* lower") as told:  # noqa: SIM117
        with telling_full_gpu(torch.device("cuda:0")):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert "too many trials" not in str(told.value)


def test_other_errors_pass(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="other"), telling_full_gpu(torch.device("cuda:0")):
        raise ValueError("other")


def test_as_many_as_are_named_fit(fractions: list[float]) -> None:
    told = describe_fit(5.0, "cuda:0")

    assert told == (
        "a worker needs about 6.88 GiB of it, so that 11 fit at once by memory (scaling.gpus_per_worker=0.09)"
    )
    assert CARD.total_memory >= 11 * (5.75 * GIB + LIBRARY_BYTES + CONTEXT_BYTES)
    assert part_bytes(ScalingConfig(gpus_per_worker=0.09), "cuda:0") > 5.75 * GIB
    assert "at once" not in describe_fit(50.0, "cuda:0")


def test_check_refuses_a_part_that_holds_no_network(
    toy_config: Config, fractions: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr("encsearch.workflow.check.describe_gpu", lambda device: "a card")
    config = with_values(toy_config, {"scaling.gpus_per_worker": 0.01})
    needed = training_gib(config, Store(config.data.store))

    with pytest.raises(PreflightError, match=r"may hold 0 bytes, .*or raise scaling.gpus_per_worker"):
        check(config, tmp_path, measure=False, trials_at_once=None)  # type: ignore[arg-type]
    whole = with_values(config, {"scaling.gpus_per_worker": 1})
    assert hardware.local_device(whole.scaling) == "cuda:0"
    found = check(whole, tmp_path, measure=False, trials_at_once=None)  # type: ignore[arg-type]
    assert found.gpu == f"a card; {describe_fit(needed, 'cuda:0')}"
