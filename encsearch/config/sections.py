"""The sections of a recipe except the search: model, data, training, evaluation, promotion."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from encsearch.parts import Kind, PartName, find_part, is_part
from encsearch.text import format_given, format_list

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
LEAST_SIDE, LARGEST_SIDE = 8, 8192  # of a crop, px
Side = Annotated[int, Field(ge=LEAST_SIDE, le=LARGEST_SIDE)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Head = Literal["fcn", "pspnet", "deeplabv3", "deeplabv3plus", "unet", "refinenet"]
Context = Literal["encoding", "gate", "none"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["poly", "cosine", "wsd", "constant"]
Args = dict[str, dict[str, Any]]  # of own parts, by their name

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
# Stems of 64, 64, 128 channels in the authors' networks (s); 32, 32, 64 in mmsegmentation's and timm's (c).
DEEP_STEM_BACKBONES = ("resnet50s", "resnet101s", "resnet152s", "resnet50c", "resnet101c", "resnet152c")
BACKBONES = ("tiny", *TORCHVISION_BACKBONES, *DEEP_STEM_BACKBONES)
TIMM_PREFIX = "timm:"
IMAGENET = "imagenet"  # the value of model.weights that means published weights
# In the model registry: the alias of the previous champion, and the model whose versions are the decisions.
PREVIOUS_SUFFIX = "-previous"
DECISIONS_SUFFIX = ".decisions"


class Section(BaseModel):
    """A part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def one_of(kind: Kind, words: Any) -> BeforeValidator:
    """A value is one of the literals `words`, or a part of this kind, whose name is written out."""
    known = get_args(words)

    def check(given: Any) -> Any:
        if given in known:
            return given
        part = find_part(kind, given) if isinstance(given, str) else None
        if part is None:
            listed = format_list([*map(repr, known), "module:Object"], "or")
            raise PydanticKnownError("literal_error", {"expected": listed})
        return part

    return BeforeValidator(check)


def write_out(kinds: Sequence[Kind]) -> BeforeValidator:
    """A mapping by parts of these kinds: names that packages give are written out."""

    def check(given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        found: dict[Any, Any] = {}
        for name, value in given.items():
            part = next(filter(None, (find_part(kind, name) for kind in kinds)), None)
            if part is None:
                raise ValueError(f"{name!r} is no own part; name it as module:Object")
            both = isinstance(value, dict) and isinstance(found.get(part), dict)
            found[part] = {**found[part], **value} if both else value  # its short name and its own
        return found

    return BeforeValidator(check)


class DataConfig(Section):
    """Where the samples come from; splits are named in the store."""

    store: str = Field(
        description="the store that `encsearch data` wrote: a folder, or s3://bucket/folder; or a data set "
        "of your own, as module:Object"
    )
    args: Annotated[Args, write_out(["dataset"])] = Field(
        {}, description="of an own data set: module:Object: {name: value}"
    )
    train_split: str = Field("train", description="the split whose samples are trained on")
    val_split: str = Field("val", description="the split that scores every epoch")
    threads: Positive = Field(2, description="decoding threads a worker")
    processes: int = Field(
        0, ge=0, le=256, description="processes a worker that decode training images instead; for fast GPUs"
    )

    @field_validator("store")
    @classmethod
    def _write_out_store(cls, given: str) -> str:
        # A folder's name is no part's; entry points are looked up for a plain word alone.
        return (find_part("dataset", given) if is_part(given) or given.isidentifier() else None) or given


class AugmentConfig(Section):
    """Random changes of a training image: one affine warp, a blur and one colour matrix (docs/encnet.md)."""

    crop: Side | tuple[Side, Side] | None = Field(
        None, description="side of a square, or [height, width], px; smaller images are padded; null: whole"
    )
    shorter_side: Side | None = Field(
        None, description="px that each image's shorter side is zoomed to before scale; null: as stored"
    )
    flip: Probability = Field(0.5, description="probability of mirroring")
    scale: tuple[float, float] = Field((1.0, 1.0), description="range of the zoom factor")
    rotate_deg: float = Field(0.0, ge=0, le=180, description="largest rotation either way")
    jitter: float = Field(
        0.0, ge=0, le=0.9, description="largest relative change of brightness, contrast, saturation"
    )
    blur: Probability = Field(
        0.0, description="probability of a Gaussian blur with a standard deviation of 0 to 1 px"
    )
    class_uniform: Probability = Field(
        0.0, description="probability that the crop must show a pixel of a class drawn from the image's own"
    )
    extra: tuple[Annotated[PartName, one_of("transform", Literal[()])], ...] = Field(
        (), description="own transforms of the crop, as module:Object, in this order"
    )
    args: Annotated[Args, write_out(["transform"])] = Field(
        {}, description="of own transforms: module:Object: {name: value}"
    )

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width of the crop; None: whole images."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the training images that are made of an image of `height` and `width`."""
        if self.crop_size:
            return self.crop_size
        zoom = self.base_zoom(height, width)
        return round(zoom * height), round(zoom * width)

    def base_zoom(self, height: int, width: int) -> float:
        """The zoom before the random one of `scale`."""
        return self.shorter_side / min(height, width) if self.shorter_side else 1.0

    @field_validator("crop", mode="before")
    @classmethod
    def _crop_is_a_size(cls, given: Any) -> Any:
        """Checked here, since pydantic reports one error for each branch of the union."""
        sides = given if isinstance(given, list | tuple) else [given]
        if given is None or (len(sides) == (2 if sides is given else 1) and all(map(_is_side, sides))):
            return tuple(given) if isinstance(given, list) else given  # strict pydantic asks here for a tuple
        raise ValueError(
            f"is a side of {LEAST_SIDE} to {LARGEST_SIDE} px, [height, width] or null, but got {given!r}"
        )

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "AugmentConfig":
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(
                f"scale needs 0 < low <= high, but got (low={format_given(low)}, high={format_given(high)})"
            )
        return self


# Where the paper, the authors' published code and mmsegmentation's EncHead differ. `codeword_init: unit` is
# ours; it stands with the paper's preset because that is the default (docs/codewords.md).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "codeword_init": "unit",
        "aggregate": "sum",
        "scaling": "multiply",
        "encoding_conv": False,
        "auxiliary": "se",
        "lateral": False,
        "align_corners": False,
    },
    "reference": {
        "codeword_init": "published",
        "aggregate": "mean",
        "scaling": "residual",
        "encoding_conv": True,
        "auxiliary": "fcn",
        "lateral": True,
        "align_corners": True,
    },
    "mmseg": {
        "codeword_init": "published",
        "aggregate": "mean",
        "scaling": "residual",
        "encoding_conv": True,
        "auxiliary": "fcn",
        "lateral": False,
        "align_corners": False,
    },
}


class ModelConfig(Section):
    """EncNet and the networks it is compared with; a description gives the paper's symbol where there is one.

    A field that `preset` names takes the preset's value unless the recipe gives one.
    """

    backbone: str = Field(
        "resnet50",
        pattern=r"^([A-Za-z_][\w.]*:)?[A-Za-z0-9_.-]+$",
        max_length=80,
        description="tiny, a ResNet, ResNeXt or Wide ResNet, resnet50s (deep stem), timm:NAME, or your own, "
        "as module:Object",
    )
    weights: str | None = Field(
        None,
        description="state-dict file of the backbone (.safetensors or .pth), or imagenet for published ones",
    )
    output_stride: Literal[4, 8, 16, 32] = Field(8, description="8, 16 or 32; tiny: 4 or 8")
    head: Annotated[Head | PartName, one_of("head", Head)] = Field(
        "fcn", description="the layers between backbone and classifier, or your own, as module:Object"
    )
    context: Annotated[Context | PartName, one_of("context", Context)] = Field(
        "encoding",
        description="above the head: encoding (EncNet), gate (average pooling), none, or your own, as "
        "module:Object",
    )
    preset: Literal["paper", "reference", "mmseg"] = Field(
        "paper", description="whose EncNet: the paper's, the authors' code's, mmsegmentation's"
    )
    num_codewords: int = Field(32, ge=1, le=1024, description="K")
    codeword_init: Literal["published", "unit"] = Field(
        "unit", description="unit: features and codewords of length 1, smoothing factors begin at 10"
    )
    channels: int = Field(512, ge=1, le=16384, description="channels of the features that are encoded, C")
    rescale_encoding: bool = Field(
        True, description="to the number of pixels in training, so that the image size does not matter"
    )
    aggregate: Literal["sum", "mean"] = Field("sum", description="over K")
    scaling: Literal["multiply", "residual"] = Field(
        "multiply", description="multiply: x*gamma; residual: relu(x + x*gamma)"
    )
    attention: Literal["features", "classes", "both"] = Field(
        "features",
        description="what the context scales: features, the logits by the presence of their class, or both",
    )
    attention_stages: tuple[int, ...] = Field(
        (4,), description="[3, 4]: a second context module scales the features of stage 3"
    )
    encoding_conv: bool = Field(False, description="conv1x1-BN-ReLU before the encoding")
    auxiliary: Literal["fcn", "se", "none"] = Field(
        "se",
        description="on stage 3: FCN head; se: a second context module for its SE-loss, if context is on",
    )
    lateral: bool = Field(False, description="whether the fcn head joins the features of stages 2 and 3")
    align_corners: bool = Field(False, description="of the upsampled logits")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the channels before the classifier")
    args: Annotated[Args, write_out(["backbone", "head", "context"])] = Field(
        {}, description="of own backbones, heads and context modules: module:Object: {name: value}"
    )

    @model_validator(mode="after")
    def _take_preset(self) -> "ModelConfig":
        values = {name: v for name, v in PRESETS[self.preset].items() if name not in self.model_fields_set}
        # Written to __dict__, so that pydantic does not count them as set and another preset replaces them.
        self.__dict__.update(values)
        return self

    @field_validator("attention_stages")
    @classmethod
    def _stages_are_known(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if stages not in ((4,), (3, 4)):
            raise ValueError(f"is [4] or [3, 4], but got {list(stages)}")
        return stages

    @field_validator("backbone", mode="before")
    @classmethod
    def _write_out_backbone(cls, given: Any) -> Any:
        is_other = isinstance(given, str) and given not in BACKBONES and not given.startswith(TIMM_PREFIX)
        return find_part("backbone", given) or given if is_other else given

    @model_validator(mode="after")
    def _backbone_exists(self) -> "ModelConfig":
        name = self.backbone
        if not (name.startswith(TIMM_PREFIX) or name in BACKBONES or is_part(name)):
            near = difflib.get_close_matches(name, BACKBONES, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"try {', '.join(BACKBONES)}, timm:NAME or your own, as module:Object"
            )
            raise ValueError(f"there is no backbone {name}; {hint}")
        return self

    @model_validator(mode="after")
    def _weights_exist(self) -> "ModelConfig":
        if self.weights == IMAGENET and is_part(self.backbone):
            raise ValueError(f"weights=imagenet: {self.backbone} is your own; give a file of it instead")
        if self.weights == IMAGENET and self.backbone in ("tiny", *DEEP_STEM_BACKBONES):
            way_out = "try null" if self.backbone == "tiny" else f"give a file of {self.backbone} instead"
            raise ValueError(f"weights=imagenet: torchvision has no weights of {self.backbone}; {way_out}")
        return self

    @model_validator(mode="after")
    def _stride_exists(self) -> "ModelConfig":
        # A timm network may lack some of the three strides, which shows when it is built.
        allowed = (4, 8) if self.backbone == "tiny" else (8, 16, 32)
        if self.output_stride not in allowed and not is_part(self.backbone):
            fits = format_list([str(stride) for stride in allowed], "or")
            raise ValueError(
                f"output_stride={self.output_stride} does not exist for {self.backbone}; try {fits}"
            )
        return self


class LossConfig(Section):
    """The weighted terms; a weight of 0 switches a term off. Pixels need cross-entropy, Dice or both."""

    ce_weight: float = Field(1.0, ge=0, le=10, description="weight of the pixel cross-entropy")
    se_weight: float = Field(0.2, ge=0, le=10, description="weight of each SE-loss (alpha)")
    aux_weight: float = Field(0.4, ge=0, le=10, description="weight of the auxiliary FCN head's loss")
    dice_weight: float = Field(0.0, ge=0, le=10, description="weight of the soft Dice loss")
    terms: Annotated[dict[str, Annotated[float, Field(ge=0, le=10)]], write_out(["loss"])] = Field(
        {}, description="further losses of the pixels, your own: module:Object: weight"
    )
    args: Annotated[Args, write_out(["loss"])] = Field(
        {}, description="of own losses: module:Object: {name: value}"
    )
    class_weights: Literal["none", "median_frequency"] | dict[str, Annotated[float, Field(ge=0)]] = Field(
        "none", description="of the cross-entropies: none, median_frequency, or a weight by class name"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that goes to all classes, in the cross-entropies"
    )
    ohem_threshold: float | None = Field(
        None, gt=0, lt=1, description="online hard example mining: pixels under this probability; null: all"
    )
    ohem_min_share: float = Field(
        1 / 16, gt=0, le=1, description="least share of an image's pixels that OHEM keeps"
    )

    @model_validator(mode="after")
    def _pixels_have_a_loss(self) -> "LossConfig":
        if self.ce_weight == self.dice_weight == 0 and not any(self.terms.values()):
            raise ValueError("ce_weight=0 and dice_weight=0 leave no loss of the pixels; try dice_weight=1")
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights_are_weights(cls, given: Any) -> Any:
        """Checked here, since pydantic reports one error for each branch of the union."""
        if given in ("none", "median_frequency"):
            return given
        if not isinstance(given, dict):
            raise ValueError(f"is none, median_frequency or a weight by class name, but got {given!r}")
        for name, weight in given.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (is_number and 0 <= weight < math.inf):
                raise ValueError(f"a weight is a number of 0 or more, but got {name}: {weight!r}")
        if not any(given.values()):
            raise ValueError("needs a class with a weight above 0, or there is nothing to learn from")
        return given


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
    args: Annotated[Args, write_out(["metric"])] = Field(
        {}, description="of an own `metric`: module:Object: {name: value}"
    )

    @model_validator(mode="after")
    def _sizes_ascend(self) -> "EvalConfig":
        medium, large = self.object_sizes
        if not 0 < medium < large < 1:
            raise ValueError(
                "0 < medium < large < 1 must hold, but got "
                f"(medium={format_given(medium)}, large={format_given(large)})"
            )
        return self


class OptimConfig(Section):
    """The optimizer and its learning rate over the steps of a training, for the global batch size.

    `sgd` and `adamw` are PyTorch's. AdamW divides each step by the size of the gradient, so its rates are
    far lower than those of SGD. `lr` is the highest rate; `schedule` says how it falls after the warm-up.
    Neither `warmup` nor `decay` takes more than half of the steps, so any two of them go together.
    """

    name: Annotated[Optimizer | PartName, one_of("optimizer", Optimizer)] = Field(
        "sgd", description="sgd, adamw (Loshchilov and Hutter, ICLR 2019), or your own, as module:Object"
    )
    lr: float = Field(0.01, gt=0, le=10, description="of the backbone; heads take head_lr_factor times it")
    head_lr_factor: float = Field(10.0, gt=0, le=1000, description="rate of all but the backbone, over lr")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="share of the last step that the next one keeps; adamw: beta1"
    )
    beta2: float = Field(
        0.999, ge=0, lt=1, description="adamw alone: share of the mean squared gradient that a step keeps"
    )
    weight_decay: float = Field(
        1e-4,
        ge=0,
        le=1,
        description="sgd: L2 penalty that is added to the gradient; adamw: times the rate, off the weights",
    )
    schedule: Annotated[Schedule | PartName, one_of("schedule", Schedule)] = Field(
        "poly", description="how the rate falls: poly, cosine, wsd, constant, or your own, as module:Object"
    )
    warmup: float = Field(
        0.0, ge=0, le=0.5, description="share of all steps, the first ones, in which the rate rises to lr"
    )
    poly_power: float = Field(0.9, ge=0, le=10, description="poly alone: its exponent; 0: a constant rate")
    decay: float = Field(
        0.2, gt=0, le=0.5, description="wsd alone: share of all steps, the last ones, in which the rate falls"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null: no clipping")
    args: Annotated[Args, write_out(["optimizer", "schedule"])] = Field(
        {}, description="of an own optimizer and schedule: module:Object: {name: value}"
    )


class CheckpointEvery(Section):
    """How often the state is saved inside an epoch; it is saved at the end of each in any case."""

    steps: Positive | None = Field(None, description="optimizer steps; null: by time alone")
    minutes: float | None = Field(10, gt=0, description="null: by steps alone")


class EarlyStop(Section):
    """Ends a training whose metric no longer rises. It counts as finished, as a trial of a sweep too."""

    patience: int = Field(
        0, ge=0, description="reports in a row without a rise of the metric that end it; 0: never"
    )
    min_delta: float = Field(
        0.0, ge=0, lt=1, description="what a rise must exceed, of a metric in [0, 1]: 0.01 is one point"
    )


class TrainConfig(Section):
    """How long, how much at once, and from which seed."""

    epochs: Positive = Field(50, description="reports of one training, each after steps_per_epoch")
    steps_per_epoch: Positive | None = Field(
        None, description="optimizer steps between two validations, each of which is a report; null: one pass"
    )
    early_stop: EarlyStop = EarlyStop()
    global_batch_size: Positive = Field(16, description="over all workers; each takes an equal part")
    micro_batch_size: Positive | None = Field(
        None,
        description="images that a worker takes at once; a larger part of the batch goes through in parts, "
        "whose gradients add up; null: all of its part",
    )
    val_batch_size: Positive = Field(8, description="images a worker and step in validation")
    seed: Seed = Field(0, description="of weights, order and augmentation")
    init_from: str | None = Field(
        None,
        description="a trained model to begin with, whose classes may be others: its folder or weights",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is validated and kept as the model; "
        "0: none",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto", description="of the network; auto: bf16 where the device has it, else fp32"
    )
    channels_last: bool = Field(True, description="order of features in memory: channels innermost")
    matmul_precision: Literal["highest", "high"] = Field(
        "high", description="of float32 products on GPUs; high: TF32, 10 bits of mantissa"
    )
    cudnn_benchmark: bool = Field(False, description="on GPUs, with a crop: try kernels, keep the fastest")
    fused_optimizer: bool = Field(True, description="on GPUs: one kernel updates all weights")
    compile: bool = Field(
        False, description="torch.compile the network in training; worth it from some minutes on"
    )
    deterministic: bool = Field(False, description="on GPUs: the same bits again, as CPUs always give")
    sync_bn: Literal["auto", "off"] = Field(
        "auto", description="auto: SyncBatchNorm with several GPU workers"
    )
    checkpoint_every: CheckpointEvery = CheckpointEvery()
    max_skipped_steps: int = Field(
        10, ge=0, description="steps of an epoch that may have a non-finite gradient; they change nothing"
    )
    profile_steps: int = Field(
        0, ge=0, le=100, description="steps of the first epoch to profile, in profile.txt; 0: none"
    )


class ScalingConfig(Section):
    """Workers of one training; `num_workers: {min: 1, max: 4}` is short for the first two."""

    num_workers: Positive = Field(1, description="processes of one training, which share a batch")
    min_workers: Positive | None = Field(
        None,
        description="elastic: a training by Ray goes on with as few, and grows back; null: all or none",
    )
    cpus_per_worker: float = Field(1, gt=0, description="that Ray books for a worker")
    gpus_per_worker: float = Field(0, ge=0, description="that Ray books for a worker; 0: trains on CPUs")
    max_failures: int = Field(2, ge=0, description="worker failures to recover from")
    timeout_s: float = Field(120, ge=5, description="seconds until a worker that does not answer is given up")
    wait_s: float = Field(
        0,
        ge=0,
        description="that an autoscaler has to bring the nodes for a training, or for search.max_concurrent "
        "trials; 0: a job is refused or begins with what is there",
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="of one worker, in your currency; null: no cost in money is shown"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_range(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(given := values.get("num_workers"), Mapping):
            return values
        if given.keys() != {"min", "max"} or values.get("min_workers") is not None:
            raise ValueError("num_workers takes a number, or min and max without min_workers beside it")
        return {**values, "num_workers": given["max"], "min_workers": given["min"]}

    @model_validator(mode="after")
    def _range_is_one(self) -> "ScalingConfig":
        if self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self

    def price(self, device_s: float) -> float | None:
        """What booked seconds of GPUs cost, or of CPUs where no GPU is booked; None without a price."""
        if self.price_per_hour is None:
            return None
        worker_s = device_s / (self.gpus_per_worker or self.cpus_per_worker)
        return worker_s / 3600 * self.price_per_hour


class PromoteConfig(Section):
    """Name in the model registry, and the gate: what a candidate must show to take an alias."""

    model_name: str = Field(
        "encnet", pattern=r"^[A-Za-z0-9_.-]+$", max_length=200, description="in the model registry"
    )
    alias: str = Field(
        "champion",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        max_length=200,
        description="of the model's best version, which a promotion moves",
    )
    figure: Literal["mIoU", "metric"] = Field(
        "mIoU", description="what the gain and the floor are of; metric: the recipe's own metric"
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the figure; what the lower bound of the gain must reach",
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of that lower bound, one-sided")
    floor: Probability = Field(
        0.2, description="what a model must reach of the figure, where there is none to compare with"
    )
    min_class_share: Probability = Field(
        0.9, description="share of the classes that have training pixels and that the set must show"
    )
    min_images: int = Field(10, ge=2, description="labelled images that the set of the comparison must have")
    max_class_drop: Probability | None = Field(
        None, description="IoU that a class may lose against the champion; null: not checked"
    )
    min_class_images: Positive = Field(
        10, description="images that must show a class before its drop, or a floor for all, is checked"
    )
    class_floor: Probability | dict[str, Probability] = Field(
        {}, description="IoU that classes must reach: one number for all, or CLASS: IoU; {}: not checked"
    )
    latency_limit_ms: float | None = Field(
        None, gt=0, description="median time for one image of the set, measured there; null: not measured"
    )

    @field_validator("class_floor", mode="before")
    @classmethod
    def _floor_is_an_iou(cls, value: Any) -> Any:
        named = value if isinstance(value, dict) else {"all": value}
        for name, floor in named.items():
            if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1:
                raise ValueError(
                    f"{floor!r} for {name} is no IoU from 0 to 1; write class_floor: {{car: 0.3}} or a number"
                )
        return value

    @model_validator(mode="after")
    def _names_are_free(self) -> "PromoteConfig":
        alias = self.alias.lower()
        if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()):
            raise ValueError(f"alias={self.alias} is reserved by MLflow; try champion")
        if alias.endswith(PREVIOUS_SUFFIX):
            raise ValueError(f"alias={self.alias} is kept for the previous model; try champion")
        if self.model_name.endswith(DECISIONS_SUFFIX):
            name = self.model_name.removesuffix(DECISIONS_SUFFIX)
            raise ValueError(f"model_name={self.model_name} is kept for the decisions on {name}; try {name}")
        return self


def _is_side(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and LEAST_SIDE <= given <= LARGEST_SIDE
