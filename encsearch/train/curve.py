"""Figures of single steps, kept on the device: steps add to sums, which are read back once per epoch."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from encsearch.reports import Point
from encsearch.train.loss import Term, TermName, term_means

MAX_POINTS = 25  # per epoch: enough detail to see a jump, few enough for a tracking server


@dataclass(frozen=True)
class EpochMeans:
    """Means over an epoch's steps: `metrics` over all (`train/`), `points` over each part (`step/`)."""

    metrics: Mapping[str, float]
    points: tuple[Point, ...]


class EpochSums:
    """Adds up an epoch's loss terms in at most MAX_POINTS parts of equally many steps."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._num_parts = min(MAX_POINTS, num_steps)
        self._names: tuple[TermName, ...] = ()
        self._part = -1
        self._sums: list[Tensor] = []  # (T, 2) float64 each: sums and divisors
        self._ends: list[tuple[int, int, float]] = []  # per part: step, milliseconds since 1970, lr

    def add(self, terms: Mapping[TermName, Term], norm: Tensor, *, step: int, lr: float) -> None:
        """Add this rank's loss terms of a step, and the global gradient norm; nothing is read back.

        `step` is the number of optimizer steps after this one. A step whose norm is not finite counts in
        nothing.
        """
        self._names = tuple(terms)
        all_terms = (*terms.values(), Term(norm, torch.ones_like(norm)))
        sums = torch.stack([torch.stack(term) for term in all_terms]).detach().double()
        sums = torch.where(torch.isfinite(norm), sums, 0)
        end = (step, int(time.time() * 1000), lr)
        part = (step - 1) % self._num_steps * self._num_parts // self._num_steps
        if part == self._part:
            self._sums[-1] = self._sums[-1] + sums
            self._ends[-1] = end
        else:
            self._sums.append(sums)
            self._ends.append(end)
        self._part = part

    def to_part(self) -> dict[str, Any]:
        """What a checkpoint inside the epoch keeps of this rank."""
        return {
            "names": list(self._names),
            "last_part": self._part,
            "sums": torch.stack(self._sums).cpu(),
            "ends": [list(end) for end in self._ends],
        }

    def take_up(self, parts: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Go on from `to_part` of one rank, or of several, whose sums are added up."""
        first = parts[0]
        self._names = cast(tuple[TermName, ...], tuple(first["names"]))
        self._part = int(first["last_part"])
        sums = torch.stack([part["sums"] for part in parts]).sum(dim=0) if len(parts) > 1 else first["sums"]
        self._sums = list(sums.to(device).unbind())
        self._ends = [(int(step), int(time_ms), float(lr)) for step, time_ms, lr in first["ends"]]

    def clear(self) -> None:
        """Keep the places of the sums, and nothing in them: another rank has it all."""
        self._sums = [torch.zeros_like(sums) for sums in self._sums]

    @property
    def last_rate(self) -> float:
        """The learning rate of the newest step; NaN before the first."""
        return self._ends[-1][2] if self._ends else math.nan

    def means(self, weights: Mapping[TermName, float], world_size: int) -> EpochMeans:
        """Means over the steps of all ranks, each term divided by its global count; waits for the device.

        The points hold the weighted loss, its terms, the gradient norm and the rate.
        """
        sums = torch.stack(self._sums)  # (parts, T, 2)
        if world_size > 1:
            dist.all_reduce(sums)
        names = (*self._names, "grad_norm")
        whole = dict(zip(names, term_means(*sums.sum(dim=0).unbind(dim=1)).tolist(), strict=True))
        parts = [dict(zip(names, row, strict=True)) for row in term_means(*sums.unbind(dim=2)).tolist()]
        metrics = {f"train/{name}": whole[name] for name in self._names}
        points = tuple(
            Point(
                step,
                time_ms,
                {**_add_prefix("step/", part), "step/loss": self._loss(part, weights), "step/lr": lr},
            )
            for part, (step, time_ms, lr), steps in zip(
                parts, self._ends, sums[:, -1, 1].tolist(), strict=True
            )
            if steps
        )
        return EpochMeans({**metrics, "train/loss": self._loss(whole, weights)}, points)

    def _loss(self, means: Mapping[str, float], weights: Mapping[TermName, float]) -> float:
        return sum(weights[name] * means[name] for name in self._names)


def _add_prefix(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in figures.items()}
