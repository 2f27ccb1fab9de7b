"""The sections of a sweep and of an ablation: which values are tried, and how they are compared."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from encsearch.config.sections import Head, Positive, Section, Seed, as_number

# Of an integer range in a search space, so many values are tried when a recipe is loaded.
MAX_EXAMPLES = 16

KINDS = ("choice", "uniform", "loguniform", "integer", "loginteger")


class Dimension(Section):
    """One searched path: exactly one of a choice or a range with inclusive end points."""

    choice: tuple[bool | int | float | str, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    loginteger: tuple[int, int] | None = None

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        return [as_number(value) for value in values] if isinstance(values, list) else values

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        given = self.model_fields_set
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}, but got {sorted(given)}")
        if self.kind != "choice":
            low, high = self.values
            if not low < high:
                raise ValueError(f"`low < high` must hold, but got (low={low:g}, high={high:g})")
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"{self.kind} needs low > 0, but got {low:g}")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or (low, high)."""
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that stand for all: the choices; of a range both ends and some between."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        if not self.kind.endswith("integer"):
            return (low, high, low + 0.381966 * (high - low))  # the third is not a whole number
        count = min(high - low, MAX_EXAMPLES - 1)
        return tuple(low + (high - low) * step // count for step in range(count + 1))

    def holds(self, value: Any) -> bool:
        """Whether the sampler could draw `value`."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        whole = self.kind in ("uniform", "loguniform") or isinstance(value, int)
        return isinstance(value, int | float) and whole and low <= value <= high


class AshaConfig(Section):
    """Asynchronous successive halving over epochs."""

    grace_epochs: Positive = 1
    reduction_factor: int = Field(3, ge=2)


class ConfirmConfig(Section):
    """The best configurations are trained again from scratch before one is named the winner."""

    finalists: Positive = 1
    seeds: tuple[Seed, ...] = Field((1,), min_length=1)
    num_workers: Positive | None = Field(
        None, description="of a finalist's training; null: scaling.num_workers"
    )
    epochs: Positive | None = Field(None, description="of a finalist's training; null: train.epochs")
    baselines: tuple[Literal["none", "gate"], ...] = Field(
        (), description="values of model.context to train beside the winner, everything else as it has it"
    )

    @model_validator(mode="after")
    def _no_training_twice(self) -> "ConfirmConfig":
        for name in ("seeds", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names a training twice; it tells nothing new")
        return self


class SearchConfig(Section):
    """A sweep: which paths, how many trials, which sampler and scheduler."""

    space: dict[str, Dimension] = Field(min_length=1)
    num_trials: Positive = 20
    max_concurrent: Positive | None = Field(None, description="trials at once; null: what the cluster holds")
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: Positive = Field(10, description="random trials before TPE begins to model")
    seed: Seed = 0
    scheduler: Literal["asha", "none"] = "asha"
    asha: AshaConfig = AshaConfig()
    enqueue: tuple[dict[str, Any], ...] = Field((), description="points to try first, as path: value")
    confirm: ConfirmConfig = ConfirmConfig()

    @field_validator("enqueue", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, points: Any) -> Any:
        if not isinstance(points, list):
            return points
        return [
            {path: as_number(value) for path, value in point.items()} if isinstance(point, dict) else point
            for point in points
        ]


class AblateConfig(Section):
    """The ablation of the paper: what is trained with each seed and budget, and compared."""

    seeds: tuple[Seed, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    epochs: tuple[Positive, ...] = Field((), description="budgets; empty: train.epochs alone")
    heads: tuple[Head, ...] = Field(
        ("pspnet", "deeplabv3", "deeplabv3plus", "unet", "refinenet"),
        description="to compare with, no context",
    )
    codewords: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16, 32, 64), description="K of the curve, which shows K=0 too"
    )
    se_weights: tuple[float, ...] = Field((0.0, 0.1, 0.2, 0.4, 0.8), description="alpha of the curve")
    curve_epochs: Positive | None = Field(
        None, description="budget of both curves; null: the shortest of epochs"
    )
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), description="of the multi-scale row, with flip; empty: no such row"
    )
    rows: dict[Annotated[str, Field(pattern=r"^[\w .,()=+-]+$", max_length=60)], dict[str, Any]] = Field(
        {}, description="further rows by name, as path: value"
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, rows: Any) -> Any:
        if not isinstance(rows, dict):
            return rows
        return {
            name: {path: as_number(value) for path, value in row.items()} if isinstance(row, dict) else row
            for name, row in rows.items()
        }

    @model_validator(mode="after")
    def _no_training_twice(self) -> "AblateConfig":
        for name in ("seeds", "epochs", "heads", "codewords", "se_weights"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names a training twice; it tells nothing new")
        return self
