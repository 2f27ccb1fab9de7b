"""How torch computes a network: number formats, memory order and the choice of kernels, by `train.*`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Literal, Self

import torch

from encsearch.config import TrainConfig
from encsearch.errors import UserError
from encsearch.train.telemetry import device_name

_switching = RLock()  # of two threads each would set back what the other has set


@dataclass(frozen=True)
class Kernels:
    """What torch is to use on `device`; bf16 and channels_last are for every device, the others for GPUs.

    tf32           float32 products by tensor cores, with 10 bits of mantissa
    benchmark      try cuDNN's kernels for each new size and keep the fastest
    deterministic  only kernels that give the same bits again; RuntimeError where an operation has none
    """

    device: torch.device
    bf16: bool = False
    channels_last: bool = False
    tf32: bool = False
    benchmark: bool = False
    deterministic: bool = False

    @classmethod
    def of(cls, train: TrainConfig, device: torch.device) -> Self:
        """Raises UserError for `precision: bf16` on a device that has no bfloat16."""
        return cls(
            device,
            bf16=_uses_bf16(train.precision, device),
            channels_last=train.channels_last,
            tf32=train.matmul_precision == "high",
            benchmark=train.cudnn_benchmark,
            deterministic=train.deterministic,
        )

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def chosen(self, *, one_size: bool) -> Iterator[None]:
        """Set torch's switches for the block, which are the process's, and set them back.

        Without `one_size` the block computes on images of many sizes, for each of which a benchmark would
        take longer than it saves.
        """
        if self.device.type != "cuda":
            yield
            return
        with _switching:
            yield from self._switched(one_size)

    def _switched(self, one_size: bool) -> Iterator[None]:
        cudnn = torch.backends.cudnn
        before = (
            cudnn.allow_tf32,
            cudnn.benchmark,
            cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )
        if self.deterministic:
            # cuBLAS reads it when it is used first.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            _set(
                self.tf32,
                self.benchmark and one_size and not self.deterministic,
                self.deterministic,
                "high" if self.tf32 else "highest",
                self.deterministic,
            )
            yield
        finally:
            _set(*before)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _uses_bf16(precision: Literal["fp32", "bf16", "auto"], device: torch.device) -> bool:
    match precision:
        case "fp32":
            return False
        case "auto":
            return has_bf16(device)
        case "bf16":
            if not has_bf16(device):  # a CPU would take a hundred times as long
                raise UserError(
                    f"train.precision=bf16: {device_name(device)} does not compute in bfloat16; "
                    "try auto or fp32"
                )
            return True


def _set(tf32: bool, benchmark: bool, deterministic_cudnn: bool, matmul: str, deterministic: bool) -> None:
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic_cudnn
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(deterministic)
