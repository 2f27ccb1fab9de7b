"""A GPU's memory where several trainings share it: each keeps to its part, or says that it needs more."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from encsearch.config import ScalingConfig
from encsearch.errors import TrainingError
from encsearch.text import format_bytes, format_count, format_number

CONTEXT_BYTES = 900 * 2**20
"""What a process holds of a GPU beside PyTorch's allocator: CUDA's context, the libraries' kernels."""


ALLOCATOR_FACTOR, LIBRARY_BYTES = 1.15, 256 * 2**20
"""PyTorch's allocator holds at most this many times the tensors that `memory.training_gib` counts, and this
for the libraries' work space (five networks on an H200; `benchmarks.gpu`, part `memory`)."""


def part_bytes(scaling: ScalingConfig, device: str) -> int:
    """The memory for one worker's tensors: its part of the GPU as booked, less what CUDA itself needs."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    return max(0, int(min(1.0, scaling.gpus_per_worker) * total) - CONTEXT_BYTES)


def describe_fit(needed_gib: float, device: str) -> str:
    """How many workers with `needed_gib` of tensors fit on the GPU at once, and what each books."""
    total: int = torch.cuda.get_device_properties(device).total_memory
    each = ALLOCATOR_FACTOR * needed_gib * 2**30 + LIBRARY_BYTES + CONTEXT_BYTES
    fitting = int(total / each)
    if fitting < 2:
        return f"a worker needs about {format_bytes(each)} of it"
    part = format_number(math.floor(1000 / fitting) / 1000)
    return (
        f"a worker needs about {format_bytes(each)} of it, so that {format_count(fitting)} fit at once by "
        f"memory (scaling.gpus_per_worker={part})"
    )


def keep_to_part(scaling: ScalingConfig, device: str) -> None:
    """Limit this process to its part of a GPU that Ray gives to several; a whole one has no limit.

    What needs more fails by itself, instead of the trainings beside it.
    """
    if device == "cpu" or scaling.gpus_per_worker >= 1:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(part_bytes(scaling, device) / total, device)


@contextmanager
def telling_full_gpu(device: torch.device) -> Iterator[None]:
    """Turn PyTorch's error into a TrainingError: another attempt would need as much."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(_describe_full(device)) from None


def _describe_full(device: torch.device) -> str:
    share = torch.cuda.get_per_process_memory_fraction(device)
    facts = torch.cuda.get_device_properties(device)
    total, held = facts.total_memory, torch.cuda.memory_reserved(device)
    used = total - torch.cuda.mem_get_info(device)[0] - held
    beside = f"{format_bytes(max(0, used))} of it in use by CUDA and other processes"
    if share < 1:
        return (
            f"out of GPU memory: this training may hold {format_bytes(share * total)} of the "
            f"{format_bytes(total)} of {facts.name}, {beside}: too many trials a GPU; raise "
            "scaling.gpus_per_worker, or lower train.global_batch_size or augment.crop"
        )
    return (
        f"out of GPU memory: this training holds {format_bytes(held)} of the {format_bytes(total)} of "
        f"{facts.name}, {beside}; lower train.global_batch_size or augment.crop"
    )
