"""Where an epoch's time goes."""

import time
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from encsearch.data.loading import Batch


class TimedBatches(Iterator[Batch]):
    """Passes batches on and adds up in `waited_s` how long each was waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.waited_s = 0.0

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - started
        return batch


def largest_over_ranks(
    figures: Mapping[str, float], device: torch.device, world_size: int
) -> dict[str, float]:
    """Of each figure the largest of any rank, without those that are 0 on all.

    A collective: every rank calls it with the same names.
    """
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return {name: value for name, value in zip(figures, values.tolist(), strict=True) if value > 0}
