"""The data of a report: `sweep.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from encsearch.config import CONFIG_FILE, Config, SearchConfig, from_yaml, require_search
from encsearch.search.budget.forecast import ForecastPoint
from encsearch.search.trials import Trial


@dataclass(frozen=True)
class FinalistSummary:
    """One training from scratch after the search; `trial` None is a baseline, which `label` names."""

    trial: int | None
    seed: int
    num_workers: int
    value: float
    epochs: int
    seconds: float
    class_iou: dict[str, float] = field(default_factory=dict)
    label: str = ""
    parameters: int | None = None

    @property
    def name(self) -> str:
        return self.label or f"trial {self.trial}"


@dataclass(frozen=True)
class SweepSummary:
    """The content of the report; `space` is path -> kind as in the recipe, `epochs` a full trial's length.

    `picture`, and `context`, the folder of the winner's context diagnostics, are relative to the report's
    folder, so that all can move together. `flags` is trial -> why it is not comparable with the others.
    `ended_by` is the limit that ended the search, None if all trials were run; `next_values` are the values
    that it would have tried next. `warm_started` is the sweep whose trials the sampler began with.
    """

    name: str
    metric: str
    space: dict[str, str]
    epochs: int
    trials: tuple[Trial, ...]
    finalists: tuple[FinalistSummary, ...]
    winner: int | None
    config_yaml: str
    mlflow: str = ""
    links: tuple[tuple[str, str], ...] = ()
    picture: Path | None = None
    wall_seconds: float | None = None
    context: Path | None = None
    flags: Mapping[int, str] = field(default_factory=dict)
    forecasts: tuple[ForecastPoint, ...] = ()
    ended_by: str | None = None
    next_values: tuple[Mapping[str, Any], ...] = ()
    warm_started: str | None = None
    cost_unit: Literal["GPU", "CPU"] = "CPU"

    @cached_property
    def config(self) -> Config:
        return from_yaml(self.config_yaml, CONFIG_FILE)

    @property
    def search(self) -> SearchConfig:
        return require_search(self.config)

    @property
    def excluded(self) -> Mapping[int, str]:
        """The flagged trials, which may not win unless the recipe keeps them."""
        return {} if self.search.flagged == "keep" else self.flags


def to_json(summary: SweepSummary) -> str:
    """The summary as JSON text; `from_json` is its inverse."""
    return json.dumps(asdict(summary), default=str, indent=2)


def from_json(text: str) -> SweepSummary:
    """Read the summary. Raises ValueError if the text, or the recipe in it, is not valid."""
    summary = TypeAdapter(SweepSummary).validate_json(text)
    if not summary.config.search:
        raise ValueError(f"the recipe of {summary.name} has no search block")
    return summary
