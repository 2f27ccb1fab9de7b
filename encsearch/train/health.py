"""Steps whose gradient is not finite: they change nothing, are counted, and end a training beyond a limit.

A step is judged by the global norm of its gradient, which is the same on every rank: a loss that is not
finite on one rank makes it so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from encsearch.text import format_list

# On a GPU the count is read back only this often, so that a single step never waits.
STEPS_PER_READ = 20
MAX_SHOWN_IDS = 4


class Health:
    """The skipped steps of one epoch. `limit` is how many there may be."""

    def __init__(self, model: nn.Module, limit: int, device: torch.device, world_size: int) -> None:
        self._limit, self._world_size = limit, world_size
        self._reads_each = device.type == "cpu"
        self._num_skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._known = 0
        self._recent: list[tuple[int, Sequence[str], Tensor]] = []
        self._lines: list[str] = []
        # Running statistics of batch norm change in the forward pass, before the gradient is known.
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]

    @property
    def num_skipped(self) -> int:
        """As it was last read."""
        return self._known

    def describe(self) -> str:
        """One line for each skipped step and rank, with the samples; every rank must ask."""
        return "".join(f"{line}\n" for line in self._of_all_ranks(self._lines)) if self._known else ""

    def judge(self, norm: Tensor, step: int, ids: Sequence[str]) -> None:
        """Note a step by its gradient's norm; `ids` are this rank's samples."""
        is_bad = ~torch.isfinite(norm)
        self._num_skipped += is_bad
        self._recent.append((step, ids, is_bad))

    def read(self, step: int, *, now: bool = False) -> str | None:
        """Read the count if it is time to or `now`, and return why the training must end, if it must.

        All ranks must call it at the same steps, and get the same answer.
        """
        if not (now or self._reads_each or step % STEPS_PER_READ == 0):
            return None
        found = int(self._num_skipped)
        if found == self._known:
            _copy(self._kept, self._buffers)
            self._recent.clear()
            return None
        _copy(self._buffers, self._kept)
        bad = [(number, ids) for number, ids, is_bad in self._recent if is_bad]
        self._lines += [f"step {number}: {', '.join(ids)}" for number, ids in bad]
        self._known = found
        self._recent.clear()
        if found <= self._limit:
            return None
        last, ids = bad[-1]
        steps = f"{found} steps" if found > 1 else "the step"
        return (
            f"non-finite gradient in {steps} of this epoch up to step {last}, whose samples are "
            f"{format_list(self._all_ids(ids))}"
        )

    def to_part(self) -> dict[str, Any]:
        """What a checkpoint inside the epoch keeps."""
        return {"skipped": self._known, "lines": list(self._lines)}

    def take_up(self, part: Mapping[str, Any]) -> None:
        """Go on from `to_part` of the same rank."""
        self._known = int(part["skipped"])
        self._num_skipped.fill_(self._known)
        self._lines = list(part["lines"])
        _copy(self._kept, self._buffers)

    def _of_all_ranks(self, texts: Sequence[str]) -> list[str]:
        of_ranks: list[Any] = [list(texts)]
        if self._world_size > 1:
            of_ranks = [None] * self._world_size
            dist.all_gather_object(of_ranks, list(texts))
        return [text for of_rank in of_ranks for text in of_rank]

    def _all_ids(self, ids: Sequence[str]) -> list[str]:
        names = self._of_all_ranks(ids)
        more = len(names) - MAX_SHOWN_IDS
        return names[:MAX_SHOWN_IDS] + ([f"{more} more"] if more > 0 else [])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """All at once; a network without batch norm has none."""
    if targets:
        torch._foreach_copy_(targets, sources)
