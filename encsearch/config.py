"""The experiment as one frozen tree of values, and the one path language that names its leaves.

`optim.lr` is the key in YAML, the override on the command line, the dimension of a sweep, the Optuna
parameter and the MLflow param. Every default lives in this file.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from encsearch.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Head = Literal["fcn", "pspnet", "deeplabv3", "deeplabv3plus", "unet", "refinenet"]
Context = Literal["encoding", "gate", "none"]

# Here and not beside the networks, so that a recipe is checked without torch; timm's names only timm knows.
TORCHVISION_BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
# Of 64, 64, 128 channels in the authors' networks (s), of 32, 32, 64 in mmsegmentation's and timm's (c).
DEEP_STEM_BACKBONES = ("resnet50s", "resnet101s", "resnet152s", "resnet50c", "resnet101c", "resnet152c")
BACKBONES = ("tiny", *TORCHVISION_BACKBONES, *DEEP_STEM_BACKBONES)
TIMM_PREFIX = "timm:"
IMAGENET = "imagenet"  # the value of model.weights that means published weights

# Of an integer range in a search space, so many values are tried when a recipe is loaded.
MAX_EXAMPLES = 16

# Mappings whose keys people choose; `flatten` takes each as one leaf.
AS_TEXT = ("search.space", "loss.class_weights", "ablate.rows")


class Section(BaseModel):
    """A part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the samples come from; splits are named in the store."""

    store: str = Field(description="folder of the Parquet store that `encsearch data` wrote")
    train_split: str = "train"
    val_split: str = "val"
    threads: Positive = Field(2, description="decoding threads a worker")


class AugmentConfig(Section):
    """Random changes of a training image; one affine warp and one colour matrix carry them out."""

    crop: int | None = Field(None, ge=8, le=8192, description="side of the square crop, px; null: image size")
    flip: Probability = 0.5
    scale: tuple[float, float] = Field((1.0, 1.0), description="range of the zoom factor")
    rotate_deg: float = Field(0.0, ge=0, le=180, description="largest rotation either way")
    jitter: float = Field(
        0.0, ge=0, le=0.9, description="largest relative change of brightness, contrast, saturation"
    )

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "AugmentConfig":
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale needs 0 < low <= high, but got (low={low:g}, high={high:g})")
        return self


# Where the paper, the authors' published code and mmsegmentation's EncHead differ.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "aggregate": "sum",
        "scaling": "multiply",
        "encoding_conv": False,
        "auxiliary": "se",
        "lateral": False,
        "align_corners": False,
    },
    "reference": {
        "aggregate": "mean",
        "scaling": "residual",
        "encoding_conv": True,
        "auxiliary": "fcn",
        "lateral": True,
        "align_corners": True,
    },
    "mmseg": {
        "aggregate": "mean",
        "scaling": "residual",
        "encoding_conv": True,
        "auxiliary": "fcn",
        "lateral": False,
        "align_corners": False,
    },
}


class ModelConfig(Section):
    """EncNet and what it is compared with; the paper's symbol is named where it has one.

    A value that `preset` names takes the preset's unless it is given.
    """

    backbone: str = Field(
        "resnet50",
        pattern=r"^(timm:)?[A-Za-z0-9_.]+$",
        max_length=80,
        description="tiny, a ResNet, ResNeXt or Wide ResNet, resnet50s (deep stem), timm:NAME",
    )
    weights: str | None = Field(
        None,
        description="state-dict file of the backbone (.safetensors or .pth), or imagenet for published ones",
    )
    output_stride: Literal[4, 8, 16, 32] = Field(8, description="8, 16 or 32; tiny: 4 or 8")
    head: Head = Field("fcn", description="what makes the features that are classified")
    context: Context = Field(
        "encoding", description="above the head: encoding (EncNet), gate (average pooling), none"
    )
    preset: Literal["paper", "reference", "mmseg"] = Field(
        "paper", description="whose EncNet: the paper's, the authors' code's, mmsegmentation's"
    )
    num_codewords: int = Field(32, ge=1, le=1024, description="K")
    codeword_init: Literal["published", "unit"] = Field(
        "published", description="unit: features and codewords of length 1, smoothing factors begin at 10"
    )
    channels: int = Field(512, ge=1, le=16384, description="channels of the features that are encoded, C")
    rescale_encoding: bool = Field(
        True, description="to the number of pixels in training, so that the image size does not matter"
    )
    aggregate: Literal["sum", "mean"] = Field("sum", description="over K")
    scaling: Literal["multiply", "residual"] = Field(
        "multiply", description="multiply: x*gamma; residual: relu(x + x*gamma)"
    )
    encoding_conv: bool = Field(False, description="conv1x1-BN-ReLU before the encoding")
    auxiliary: Literal["fcn", "se", "none"] = Field(
        "se",
        description="on stage 3: FCN head; se: a second context module for its SE-loss, if context is on",
    )
    lateral: bool = Field(False, description="whether the fcn head joins the features of stages 2 and 3")
    align_corners: bool = Field(False, description="of the upsampled logits")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _take_preset(self) -> "ModelConfig":
        values = {name: v for name, v in PRESETS[self.preset].items() if name not in self.model_fields_set}
        # Not by assignment: the values are not set, so that another preset replaces them.
        self.__dict__.update(values)
        return self

    @model_validator(mode="after")
    def _backbone_exists(self) -> "ModelConfig":
        name = self.backbone
        if not name.startswith(TIMM_PREFIX) and name not in BACKBONES:
            near = difflib.get_close_matches(name, BACKBONES, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"try {', '.join(BACKBONES)} or timm:NAME"
            )
            raise ValueError(f"there is no backbone {name}; {hint}")
        return self

    @model_validator(mode="after")
    def _weights_exist(self) -> "ModelConfig":
        if self.weights == IMAGENET and self.backbone in ("tiny", *DEEP_STEM_BACKBONES):
            way_out = "try null" if self.backbone == "tiny" else f"give a file of {self.backbone} instead"
            raise ValueError(f"weights=imagenet: torchvision has no weights of {self.backbone}; {way_out}")
        return self

    @model_validator(mode="after")
    def _stride_exists(self) -> "ModelConfig":
        # Which of the three a network of timm has is known when it is built.
        allowed = (4, 8) if self.backbone == "tiny" else (8, 16, 32)
        if self.output_stride not in allowed:
            raise ValueError(
                f"output_stride={self.output_stride} does not exist for {self.backbone}; try {allowed}"
            )
        return self


class LossConfig(Section):
    """Pixel cross-entropy plus the weighted terms; a weight of 0 switches a term off."""

    se_weight: float = Field(0.2, ge=0, le=10, description="weight of each SE-loss (alpha)")
    aux_weight: float = Field(0.4, ge=0, le=10, description="weight of the auxiliary FCN head's loss")
    dice_weight: float = Field(0.0, ge=0, le=10, description="weight of the soft Dice loss")
    class_weights: Literal["none", "median_frequency"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        "none", description="of the cross-entropies: none, median_frequency, or a weight by class name"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ohem_threshold: float | None = Field(
        None, gt=0, lt=1, description="online hard example mining: pixels under this probability; null: all"
    )
    ohem_min_share: float = Field(
        1 / 16, gt=0, le=1, description="least share of an image's pixels that OHEM keeps"
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights_are_weights(cls, given: Any) -> Any:
        """In words of its own: a union reports each of its branches."""
        if given in ("none", "median_frequency"):
            return given
        if not isinstance(given, dict):
            raise ValueError(f"is none, median_frequency or a weight by class name, but got {given!r}")
        weights = {name: _number(weight) for name, weight in given.items()}
        for name, weight in weights.items():
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise ValueError(f"a weight is a number of 0 or more, but got {name}: {weight!r}")
        if not any(weights.values()):
            raise ValueError("needs a class with a weight above 0, or there is nothing to learn from")
        return weights


class EvalConfig(Section):
    """How a trained model is scored and predicts; training validates whole images at scale 1."""

    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field(
        (1.0,), min_length=1, description="zoom factors whose probabilities are averaged"
    )
    flip: bool = Field(False, description="average with the mirrored image")
    window: int | None = Field(None, ge=8, le=8192, description="side of the sliding window, px; null: whole")
    overlap: float = Field(1 / 3, ge=0, lt=1, description="share of a window that the next one covers again")
    background: str | None = Field(None, description="class left out of foreground/mIoU")
    object_sizes: tuple[float, float] = Field(
        (1 / 300, 0.03),
        description="shares of the image where medium and large objects begin; COCO's, on 640x480 px",
    )

    @model_validator(mode="after")
    def _sizes_ascend(self) -> "EvalConfig":
        medium, large = self.object_sizes
        if not 0 < medium < large < 1:
            raise ValueError(
                f"0 < medium < large < 1 must hold, but got (medium={medium:g}, large={large:g})"
            )
        return self


class OptimConfig(Section):
    """SGD with the poly schedule lr * (1 - progress) ** power, for the global batch size."""

    lr: float = Field(0.01, gt=0, le=10, description="of the backbone; heads take head_lr_factor times it")
    head_lr_factor: float = Field(10.0, gt=0, le=1000)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, le=1)
    poly_power: float = Field(0.9, ge=0, le=10)
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null: no clipping")


class TrainConfig(Section):
    """How long, how much at once, and from which seed."""

    epochs: Positive = 50
    steps_per_epoch: Positive | None = Field(None, description="optimizer steps a report; null: one pass")
    global_batch_size: Positive = Field(16, description="over all workers; each takes an equal part")
    val_batch_size: Positive = Field(8, description="images a worker and step in validation")
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    sync_bn: Literal["auto", "off"] = Field(
        "auto", description="auto: SyncBatchNorm with several GPU workers"
    )


class ScalingConfig(Section):
    """Workers of one training."""

    num_workers: Positive = 1
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(2, ge=0, description="worker failures to recover from")


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
        return [_number(value) for value in values] if isinstance(values, list) else values

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
            {path: _number(value) for path, value in point.items()} if isinstance(point, dict) else point
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
            name: {path: _number(value) for path, value in row.items()} if isinstance(row, dict) else row
            for name, row in rows.items()
        }

    @model_validator(mode="after")
    def _no_training_twice(self) -> "AblateConfig":
        for name in ("seeds", "epochs", "heads", "codewords", "se_weights"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} names a training twice; it tells nothing new")
        return self


class PromoteConfig(Section):
    """Name in the model registry, and what a candidate must gain over the champion."""

    model_name: str = Field("encnet", pattern=r"^[A-Za-z0-9_.-]+$", max_length=200)
    alias: str = Field("champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=200)
    margin: float = Field(0.0, ge=0, le=1, description="mIoU that the candidate must be ahead by")

    @model_validator(mode="after")
    def _alias_is_free(self) -> "PromoteConfig":
        alias = self.alias.lower()
        if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()):
            raise ValueError(f"alias={self.alias} is reserved by MLflow; try champion")
        return self


class Config(Section):
    """One experiment."""

    name: str = Field("encnet", pattern=r"^[\w.-]+$", max_length=80)
    metric: str = Field("mIoU", description="the figure that is maximised: mIoU, pixAcc or mIoU/GROUP")
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    scaling: ScalingConfig = ScalingConfig()
    search: SearchConfig | None = None
    promote: PromoteConfig = PromoteConfig()
    eval: EvalConfig = EvalConfig()
    ablate: AblateConfig = AblateConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> "Config":
        for workers in _worker_counts(self):
            size = self.train.global_batch_size
            if size % workers:
                below, above = size // workers * workers, (size // workers + 1) * workers
                fits = " or ".join(str(n) for n in (below, above) if n)
                raise ValueError(
                    f"global_batch_size={size} is not divisible by num_workers={workers}; try {fits}"
                )
        return self

    @model_validator(mode="after")
    def _batch_norm_has_values(self) -> "Config":
        crop, stride, head = self.augment.crop, self.model.output_stride, self.model.head
        synchronised = self.scaling.gpus_per_worker > 0 and self.train.sync_bn == "auto"
        lonely = 1 if synchronised else max(_worker_counts(self))
        if self.train.global_batch_size > lonely:
            return self
        if crop and crop <= stride:
            raise ValueError(
                f"augment.crop={crop} at output_stride={stride} with one image a worker leaves batch norm a "
                f"single value; try a crop over {stride} or a larger global_batch_size"
            )
        if head in ("pspnet", "deeplabv3", "deeplabv3plus"):
            raise ValueError(
                f"model.head={head} pools an image to one value, and batch norm needs two: with one image a "
                f"worker it cannot train; try global_batch_size={2 * self.train.global_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _space_fits(self) -> "Config":
        """Every point of the space must be a valid configuration, for a trial and for a finalist."""
        if not self.search:
            return self
        space = self.search.space
        for path in space:
            _check_searchable(path)
        first = {path: dimension.examples[0] for path, dimension in space.items()}
        # What makes a configuration invalid is one value, or two that do not go together.
        for pair in combinations(space, min(2, len(space))):
            for values in product(*(space[path].examples for path in pair)):
                _check_point(self, {**first, **dict(zip(pair, values, strict=True))})
        for number, point in enumerate(self.search.enqueue):
            for path, value in point.items():
                if path not in space:
                    raise ValueError(f"search.enqueue[{number}] names {path}, which is not in search.space")
                if not space[path].holds(value):
                    raise ValueError(f"search.enqueue[{number}]: {path}={value!r} is outside search.space")
            _check_point(self, {**first, **point})
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe and apply `path=value` overrides, the later one winning.

    Raises UserError with one line that names the path, the value and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}); see jobs/recipes/") from None
    # YAML raises a plain ValueError for a date that is none, such as 2026-13-01.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, but this is {type(tree).__name__}")
    for item in overrides:
        key, value = _parse_override(item)
        _check_path(key)
        _set_leaf(tree, key, value)
    return _validate(tree, where=str(path))


def model_config(**values: Any) -> ModelConfig:
    """ModelConfig(**values); raises UserError with one line that names the field and what is allowed."""
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The same configuration with the leaves named by `values` (path -> value) replaced."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    for path, value in values.items():
        _check_path(path)
        _set_leaf(tree, path, value)
    return _validate(tree, where="override")


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The same configuration with `path=value` overrides applied, the later one winning."""
    return with_values(config, dict(map(_parse_override, overrides)))


def flatten(config: Config) -> dict[str, Any]:
    """Every leaf by its path; sequences and the mappings of AS_TEXT as JSON text."""
    leaves: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and prefix not in AS_TEXT:
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            leaves[prefix] = json.dumps(value) if isinstance(value, list | dict) else value

    visit("", config.model_dump(mode="json"))
    return leaves


def to_json(config: Config) -> str:
    """The one string in which a configuration crosses to a worker; `from_json` validates it there.

    Relative file paths become absolute: a worker has a working directory of its own.
    """
    files = {"data.store": config.data.store}
    if config.model.weights and config.model.weights != IMAGENET:
        files["model.weights"] = config.model.weights
    absolute = {path: str(Path(file).absolute()) for path, file in files.items()}
    return with_values(config, absolute).model_dump_json(exclude_unset=True)


def from_json(text: str) -> Config:
    return Config.model_validate_json(text)


def to_yaml(config: Config) -> str:
    """The resolved configuration, every default written out."""
    text: str = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
    return text


def paths() -> list[str]:
    """Every path of the configuration, sections included."""
    found: list[str] = []

    def visit(section: type[BaseModel], prefix: str) -> None:
        for name, info in section.model_fields.items():
            found.append(prefix + name)
            child = _section_of(info.annotation)
            if child:
                visit(child, f"{prefix}{name}.")

    visit(Config, "")
    return found


def json_schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _section_of(annotation: Any) -> type[Section] | None:
    candidates = [annotation, *get_args(annotation)] if get_origin(annotation) is not dict else []
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _check_path(path: str) -> None:
    if path not in paths() and not path.startswith("search.space."):
        raise UserError(_unknown(path))


def _unknown(path: str) -> str:
    near = difflib.get_close_matches(path, paths(), n=1, cutoff=0.6)
    return f"unknown config path {path}; " + (
        f"did you mean {near[0]}?" if near else "`encsearch schema --paths` lists them"
    )


def _check_searchable(path: str) -> None:
    try:
        _check_path(path)
    except UserError as error:
        raise ValueError(f"search.space: {error}") from None
    if path in ("train.epochs", "train.seed"):
        raise ValueError(f"search.space: {path} is not searchable; trials must differ in neither")
    if path.split(".")[0] not in {"augment", "model", "loss", "optim", "train"}:
        raise ValueError(
            f"search.space: {path} is not searchable; only augment, model, loss, optim and train are"
        )


def _worker_counts(config: Config) -> list[int]:
    """Of every training that the recipe leads to: trials, or the one training, and finalists."""
    counts = {config.scaling.num_workers}
    if config.search and config.search.confirm.num_workers:
        counts.add(config.search.confirm.num_workers)
    return sorted(counts)


def _check_point(config: Config, values: Mapping[str, Any]) -> None:
    """Refuse a point of the space that is no valid configuration of a trial or of a finalist."""
    for num_workers in _worker_counts(config):
        tree = config.model_dump(mode="json", exclude_unset=True, exclude={"search"})
        for path, value in {**values, "scaling.num_workers": num_workers}.items():
            _set_leaf(tree, path, value)
        try:
            Config.model_validate(tree)
        except ValidationError as error:
            problem = error.errors()[0]
            found = ".".join(map(str, problem["loc"]))
            named = {found: values[found]} if found in values else values
            point = ", ".join(f"{path}={value!r}" for path, value in named.items())
            message = problem["msg"].removeprefix("Value error, ")
            raise ValueError(f"search.space: {point} is not valid: {message}") from None


def _parse_override(item: str) -> tuple[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError(f"override {item!r} is not of the form path=value, as in optim.lr=0.02")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"override {item!r}: the value is not valid YAML") from None
    return key, _number(value)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a number was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set_leaf(tree: dict[str, Any], path: str, value: Any) -> None:
    if path.startswith("search.space."):
        parts = ["search", "space", path.removeprefix("search.space.")]
    else:
        parts = path.split(".")
    for part in parts[:-1]:
        child = tree.get(part)
        if not isinstance(child, dict):
            child = tree[part] = {}
        tree = child
    tree[parts[-1]] = value


def _validate(tree: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown(path)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    if problem["type"] == "missing":
        return f"{path} is missing; add it to the recipe or give {path}=VALUE"
    return f"{path}={problem['input']!r}: {message}"
