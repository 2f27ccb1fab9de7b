"""The sections of a sweep and of an ablation: which values are tried, and how they are compared."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from encsearch.config.sections import Args, Head, Positive, Section, Seed, one_of, write_out
from encsearch.parts import PartName, is_part
from encsearch.text import format_given

# Values of an integer range that are checked when a recipe is loaded.
MAX_EXAMPLES = 16

KINDS = ("choice", "uniform", "loguniform", "integer", "loginteger")

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class Dimension(Section):
    """One searched path: exactly one of a choice or a range with inclusive end points.

    With `when` it is searched only if the paths named there have one of the given values; otherwise the
    recipe's own value holds.
    """

    choice: tuple[bool | int | float | str, ...] | None = Field(None, min_length=1, description="the values")
    uniform: tuple[float, float] | None = Field(None, description="[low, high]")
    loguniform: tuple[float, float] | None = Field(None, description="[low, high], even in the logarithm")
    integer: tuple[int, int] | None = Field(None, description="[low, high], whole numbers")
    loginteger: tuple[int, int] | None = Field(
        None, description="[low, high], whole numbers, even in the logarithm"
    )
    when: dict[str, Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]] = Field(
        {}, description="path: values"
    )

    @field_validator("choice", mode="before")
    @classmethod
    def _no_lists(cls, values: Any) -> Any:
        for value in values if isinstance(values, list) else ():
            if isinstance(value, list):
                raise ValueError(f"{value} is a list and not searchable; compare lists in ablate.rows")
        return tuple(values) if isinstance(values, list) else values  # strict pydantic asks here for a tuple

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        given = self.model_fields_set - {"when"}
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}, but got {sorted(given)}")
        if self.kind != "choice":
            low, high = self.values
            if not low < high:
                ends = f"(low={format_given(low)}, high={format_given(high)})"
                raise ValueError(f"`low < high` must hold, but got {ends}")
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"{self.kind} needs low > 0, but got {format_given(low)}")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set - {"when"}))

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or (low, high)."""
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that represent all: every choice, or both ends of a range and some in between."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        if not self.kind.endswith("integer"):
            return (low, high, low + 0.381966 * (high - low))  # the third is not a whole number
        count = min(high - low, MAX_EXAMPLES - 1)
        return tuple(low + (high - low) * step // count for step in range(count + 1))

    @property
    def is_ordered(self) -> bool:
        """Whether values lie on a line: a range, or a choice of numbers."""
        return self.kind != "choice" or all(_is_number(value) for value in self.values)

    def spans(self, value: Any) -> bool:
        """Whether `value` may be the centre of a belief about an ordered path, or is one of a choice."""
        if not self.is_ordered:
            return value in self.values
        return _is_number(value) and min(self.values) <= value <= max(self.values)

    def holds(self, value: Any) -> bool:
        """Whether the sampler could draw `value`."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        whole = self.kind in ("uniform", "loguniform") or isinstance(value, int)
        return isinstance(value, int | float) and whole and low <= value <= high


def find_active(space: Mapping[str, Dimension], values: Mapping[str, Any]) -> list[str]:
    """The paths of `space` that are searched when the other paths have `values`."""
    return [
        path
        for path, dimension in space.items()
        if all(values.get(other) in allowed for other, allowed in dimension.when.items())
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class AshaConfig(Section):
    """The rungs of `asha`, `asha_stop` and `hyperband`, at grace_epochs * reduction_factor ** n epochs.

    Earlier rungs save more but predict less: on `scenes` the ranking of trials after 1, 3, 6 and 9 of 27
    epochs has a rank correlation of 0.49, 0.67, 0.84 and 0.91 with the ranking by their best figures.
    """

    grace_epochs: Positive | None = Field(None, description="the first rung; null: a ninth of train.epochs")
    reduction_factor: int = Field(4, ge=2, description="one in so many goes on at a rung")

    def first_rung(self, epochs: int) -> int:
        """The first rung, in epochs, for trials of `epochs`."""
        return self.grace_epochs or max(1, epochs // 9)


class Belief(Section):
    """Where good values of a searched path lie: a Gaussian on the path's own scale.

    For a choice of words, half of the weight is on `at`; width does not matter.
    """

    at: bool | int | float | str | None = Field(None, description="null: the recipe's own value")
    width: float = Field(0.25, gt=0, le=10, description="standard deviation, as a share of the path's range")


class PriorConfig(Section):
    """Proposals around the recipe's own values, or around `paths`, beside those of the sampler."""

    share: float = Field(0.5, ge=0, lt=1, description="of the proposals; falls while they do worse")
    paths: dict[str, Belief] = Field({}, description="path: {at, width}; may stand beside share")

    @model_validator(mode="before")
    @classmethod
    def _paths_beside_share(cls, given: Any) -> Any:
        if given is False or given == "off":
            return {"share": 0}
        if not isinstance(given, dict) or not isinstance(given.get("paths", {}), dict):
            return given
        paths = {path: belief for path, belief in given.items() if path not in ("share", "paths")}
        kept = {name: value for name, value in given.items() if name not in paths}
        return {**kept, "paths": {**kept.get("paths", {}), **paths}} if paths else kept


class MedianConfig(Section):
    """The median stopping rule."""

    grace_epochs: Positive = Field(1, description="no trial is stopped before this epoch")
    min_trials: Positive = Field(4, description="number of other trials that must have come as far")


class BudgetConfig(Section):
    """What a sweep and the confirmation of its finalists may cost; the first limit reached ends the sweep."""

    trials: Positive = Field(20, description="trainings of the search, stopped ones included")
    gpu_hours: float | None = Field(None, gt=0, description="of all workers together; null: no limit")
    wall: float | None = Field(None, gt=0, description="seconds, or text like 2h30m; null: no limit")
    max_failed: Positive = Field(3, description="so many failures in a row with one reason end the sweep")

    @field_validator("wall", mode="before")
    @classmethod
    def _parse_duration(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        parts = DURATION.fullmatch(given.strip())
        if not parts or not any(parts.groups()):
            first, colon, second = given.strip().partition(":")
            if colon and first.isdigit() and second.isdigit():
                raise ValueError(f"{given} may mean {first}h{second}m or {first}m{second}s; write which")
            raise ValueError(f"{given!r} is not a duration; try 90m, 2h30m, or a number of seconds")
        hours, minutes, seconds = (float(part or 0) for part in parts.groups())
        return 3600 * hours + 60 * minutes + seconds


class LimitsConfig(Section):
    """Upper limits for a trial's network; a proposal beyond them is refused before it is trained."""

    parameters: Positive | None = Field(None, description="number of the network's weights")
    memory_gib: float | None = Field(None, gt=0, description="estimate of one worker's training step")
    latency_ms: float | None = Field(None, gt=0, description="one validation image, measured by the trial")


class ConfirmConfig(Section):
    """The best configurations are trained again from scratch before one is named the winner."""

    finalists: Positive = Field(1, description="configurations, the best of the search first")
    seeds: tuple[Seed, ...] = Field((1,), min_length=1, description="a training of each finalist with each")
    num_workers: Positive | None = Field(
        None, description="of a finalist's training; null: scaling.num_workers"
    )
    epochs: Positive | None = Field(None, description="of a finalist's training; null: train.epochs")
    baselines: tuple[Literal["none", "gate"], ...] = Field(
        (), description="values of model.context to train beside the winner, everything else as it has it"
    )

    @property
    def num_trainings(self) -> int:
        return (self.finalists + len(self.baselines)) * len(self.seeds)

    @model_validator(mode="after")
    def _no_training_twice(self) -> "ConfirmConfig":
        for name in ("seeds", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names a training twice; list each value once")
        return self


Sampler = Literal["tpe", "gp", "cmaes", "random", "grid", "qmc"]
Scheduler = Literal["asha", "asha_stop", "hyperband", "median", "none"]
Minimized = Literal["parameters", "latency_ms"]


class SearchConfig(Section):
    """A sweep: which paths, which sampler and scheduler, what it may cost."""

    space: dict[str, Dimension] = Field(min_length=1, description="path: its values; see Dimension")
    budget: BudgetConfig = BudgetConfig()
    max_concurrent: Positive | None = Field(None, description="trials at once; null: what the cluster holds")
    sampler: Annotated[Sampler | PartName, one_of("sampler", Sampler)] = Field(
        "tpe", description="what proposes the next trial (docs/search.md), or your own, as module:Object"
    )
    args: Annotated[Args, write_out(["sampler"])] = Field(
        {}, description="of an own sampler: module:Object: {name: value}"
    )
    startup_trials: Positive = Field(10, description="random trials before TPE, GP and CMA-ES begin to model")
    uniform: float = Field(0.25, ge=0, lt=1, description="share of these samplers' proposals that is uniform")
    prior: PriorConfig = PriorConfig()
    repeats: Literal["none", "seeds"] = Field(
        "none", description="a configuration that has run: not again, or with the next seed"
    )
    seed: Seed = Field(0, description="of the proposals")
    scheduler: Scheduler = Field("asha", description="what pauses or stops a trial early (docs/search.md)")
    asha: AshaConfig = AshaConfig()
    disk_gib: float = Field(20.0, ge=0, description="of paused trials' checkpoints; the worst go first")
    median: MedianConfig = MedianConfig()
    minimize: Minimized | None = Field(None, description="a second objective beside the metric")
    limits: LimitsConfig = LimitsConfig()
    flagged: Literal["exclude", "rerun", "keep"] = Field(
        "exclude", description="trials that ran on other hardware or another number of workers"
    )
    enqueue: tuple[dict[str, Any], ...] = Field(
        (), description="points to try first, as path: value; the paper's comes before them"
    )
    confirm: ConfirmConfig = ConfirmConfig()

    @model_validator(mode="after")
    def _sampler_suits_the_space(self) -> "SearchConfig":
        kinds = {path: dimension.kind for path, dimension in self.space.items()}
        conditional = [path for path, dimension in self.space.items() if dimension.when]
        if conditional and self.sampler not in ("tpe", "random") and not is_part(self.sampler):
            raise ValueError(
                f"sampler={self.sampler} cannot search {conditional[0]}, which has `when`; try tpe or random"
            )
        ranges = [path for path, kind in kinds.items() if kind != "choice"]
        choices = [path for path, dimension in self.space.items() if not dimension.is_ordered]
        if is_part(self.sampler):
            return self
        match self.sampler:
            case "grid":
                if ranges:
                    raise ValueError(
                        f"sampler=grid needs a choice, but {ranges[0]} is a range; list its values"
                    )
            case "cmaes":
                if choices or len(kinds) < 2:
                    problem = f"{choices[0]} is one" if choices else "there is only one path"
                    raise ValueError(
                        f"sampler=cmaes needs two paths or more, no choice of words, but {problem}; try tpe"
                    )
            case "tpe" | "gp" | "random" | "qmc":
                pass
        return self

    @model_validator(mode="after")
    def _two_objectives_have_no_early_stopping(self) -> "SearchConfig":
        if not self.minimize:
            return self
        if self.scheduler != "none":
            raise ValueError(
                f"minimize={self.minimize}: early stopping compares one figure and does not apply to two "
                f"objectives, but scheduler={self.scheduler}; set search.scheduler=none"
            )
        if self.sampler == "cmaes":
            raise ValueError(f"minimize={self.minimize}: cmaes has one objective; try tpe or gp")
        return self

    @model_validator(mode="after")
    def _conditions_exist(self) -> "SearchConfig":
        for path, dimension in self.space.items():
            for other, allowed in dimension.when.items():
                parent = self.space.get(other)
                if parent is None or parent.when or other == path:
                    raise ValueError(
                        f"space.{path}: when names {other}, which must be another searched path without when"
                    )
                for value in allowed:
                    if not parent.holds(value):
                        raise ValueError(f"space.{path}: when {other}={value!r} never holds in search.space")
        return self


class AblateConfig(Section):
    """The ablation of the paper: what is trained with each seed and budget, and compared."""

    seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="a training with each")
    epochs: tuple[Positive, ...] = Field((), description="budgets; empty: train.epochs alone")
    heads: tuple[Head, ...] = Field(
        ("pspnet", "deeplabv3", "deeplabv3plus", "unet", "refinenet"),
        description="heads to compare with, without a context module",
    )
    codewords: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16, 32, 64), description="K of the curve, which shows K=0 too"
    )
    se_weights: tuple[float, ...] = Field((0.0, 0.1, 0.2, 0.4, 0.8), description="alpha of the curve")
    curve_epochs: Positive | None = Field(
        None, description="budget of both curves; null: the shortest of epochs"
    )
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        description="for the multi-scale row, with flip; empty: no such row",
    )
    words: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        (256,), description="sizes of the dictionaries of visual words that predict presence"
    )
    scene_pattern: str | None = Field(
        None, description="regular expression whose group is the scene in a sample's id; null: not scored"
    )
    rows: dict[Annotated[str, Field(pattern=r"^[\w .,()=+-]+$", max_length=60)], dict[str, Any]] = Field(
        {}, description="further rows by name, as path: value"
    )

    @field_validator("scene_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{pattern} is no regular expression ({error})") from None
            if groups != 1:
                raise ValueError(f"{pattern} has {groups} groups; put the scene in one, as in -(\\w+)$")
        return pattern

    @model_validator(mode="after")
    def _no_training_twice(self) -> "AblateConfig":
        for name in ("seeds", "epochs", "heads", "codewords", "se_weights", "words"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names a training twice; list each value once")
        return self
