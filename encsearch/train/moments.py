"""When a training stops for a moment between two steps to save its state, the same on every rank."""

import time
from collections.abc import Callable
from enum import Enum

import torch
import torch.distributed as dist

AGREE_S = 1.0  # how often ranks exchange what only one of them knows: the time, and a notice


def no_notice() -> bool:
    """For a training that nobody tells to end."""
    return False


class Moment(Enum):
    """The state between two steps is to be saved; after END the training goes no further."""

    SAVE = "save"
    END = "end"


class Moments:
    """Asked after each step from `first_step` on; nothing that it answers changes what is trained on a CPU.

    On a GPU a step that is skipped puts batch norm's statistics back to those of the last moment at most.
    `every_steps` counts from the first step of the training, `every_minutes` from the last saved state by the
    clock of any rank; None: never. `notice` says whether this rank was told to end, `preempted` whether the
    state is to be saved at once.
    """

    def __init__(
        self,
        *,
        first_step: int,
        every_steps: int | None,
        every_minutes: float | None,
        notice: Callable[[], bool],
        preempted: Callable[[], bool],
        device: torch.device,
        world_size: int,
    ) -> None:
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._notice, self._preempted = notice, preempted
        self._device, self._world_size = device, world_size
        self._saved_s = self._agreed_s = time.monotonic()
        self._agreed_step = self._next_step = first_step

    def saved(self) -> None:
        """The state was saved otherwise, at the end of an epoch."""
        self._saved_s = time.monotonic()

    def after(self, step: int) -> Moment | None:
        """What to do after step number `step`; every rank asks, and gets the same answer."""
        moment = Moment.SAVE if self._every_steps and step % self._every_steps == 0 else None
        # With one rank there is nobody to agree with, so a notice is seen at once.
        if step >= self._next_step or (self._world_size == 1 and self._notice()):
            moment = self._agree(step) or moment
        if moment:
            self.saved()
        return moment

    def ends(self) -> bool:
        """Whether a rank was told to end; every rank asks at the same place."""
        return self._exchange(float(self._notice()))[0] > 0

    def _agree(self, step: int) -> Moment | None:
        now_s = time.monotonic()
        is_due = self._preempted()
        if self._every_minutes is not None:
            is_due |= now_s - self._saved_s >= 60 * self._every_minutes
        step_s = (now_s - self._agreed_s) / max(1, step - self._agreed_step)
        ends, due, slowest_s = self._exchange(float(self._notice()), float(is_due), step_s)
        # From the slowest rank's time: all come to the same next step. Steps may become slow, so the way
        # to the next agreement at most doubles.
        longest = 2 * max(1, step - self._agreed_step)
        self._next_step = step + min(max(1, int(AGREE_S / max(slowest_s, 1e-6))), longest)
        self._agreed_s, self._agreed_step = now_s, step
        if ends:
            return Moment.END
        return Moment.SAVE if due else None

    def _exchange(self, *values: float) -> list[float]:
        """The largest of each value over the ranks."""
        if self._world_size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [float(value) for value in largest.tolist()]
