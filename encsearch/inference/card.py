"""The model card: purpose, training data, scores and limits of a model.

Plain Markdown from recorded facts alone; a fact that was not recorded is shown as unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from encsearch.config import AugmentConfig, Config, Context, ModelConfig, OptimConfig, TrainConfig
from encsearch.data.datasets import DatasetInfo
from encsearch.parts import PartName, is_part
from encsearch.text import (
    format_count,
    format_names,
    format_param,
    format_params,
    format_percent,
    format_points,
    format_score,
    format_share,
    is_score,
)
from encsearch.train.checkpoint_files import MODEL_FILE
from encsearch.train.loss import TermName, term_weights

WEAK_IOU = 0.5
"""Below this IoU a class's correct pixels are fewer than its missed and false ones together."""

FEW_IMAGES = 100
"""With fewer validation images, one scene can move a class by several points."""


@dataclass(frozen=True)
class ModelFacts:
    """The facts that a card is made of.

    `metrics` are figures of all classes by name and `class_iou` the IoU by class, both on the validation
    split; a class that this split lacks has none. `num_images` counts the images of each split; `untrained`
    are the classes without a training pixel, `num_padded` counts the training images that were smaller than
    the crop; the weights are those of `epoch`, and `unfinished_at` is the last epoch of a training that had
    not finished. Empty mappings and None are facts that were not recorded, or do not hold.
    """

    config: Config
    info: DatasetInfo
    fingerprint: str
    weights_sha256: str
    num_parameters: int
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float]
    num_images: Mapping[str, int]
    untrained: Sequence[str] = ()
    num_padded: int = 0
    epoch: int | None = None
    unfinished_at: int | None = None


def model_card(facts: ModelFacts) -> str:
    """The card as Markdown; it begins with the model's name."""
    config, info = facts.config, facts.info
    parts = [
        f"# {config.name}",
        _describe_model(facts),
        "## Use and limits",
        _bullets(describe_limits(facts)),
        "## Scores",
        _scores(facts),
        "## Data",
        _bullets(_data(facts)),
        "## Classes",
        ", ".join(info.classes) + ".",
        *(f"Group {name}: {', '.join(members)}." for name, members in info.groups.items()),
        "## Network",
        _bullets(_describe_network(config.model)),
        "## Training",
        # A model without figures was imported, so its configuration does not describe its training.
        _bullets(_describe_training(facts)) if facts.metrics else "Not recorded.",
        "## Fingerprints",
        _bullets([f"data `{facts.fingerprint}`", f"weights (SHA-256) `{facts.weights_sha256}`"]),
    ]
    return "\n\n".join(parts) + "\n"


def describe_limits(facts: ModelFacts) -> list[str]:
    """What the figures mean for users of the model, in one or two sentences each."""
    info, split = facts.info, facts.config.data.val_split
    found = [
        f"For images like those of {info.name}. Each pixel gets one of the {len(info.classes)} classes, even "
        "where none of them is present."
    ]
    weak = {name: iou for name, iou in facts.class_iou.items() if iou < WEAK_IOU}
    if weak:
        named = [f"{name} ({format_score(iou)})" for name, iou in sorted(weak.items(), key=_value)]
        least = format_score(WEAK_IOU)
        found.append(f"Not to be relied on for classes with an IoU below {least}: {', '.join(named)}.")
    if facts.untrained:
        found.append(
            f"Never trained on {format_names(facts.untrained)}: without a pixel in the training split."
        )
    if facts.metrics and facts.config.data.val_split == facts.config.data.train_split:
        found.append(
            f"Scored on the split it was trained on, {split}: the figures show what it knows by heart."
        )
    unseen = [name for name in info.classes if name not in facts.class_iou]
    if facts.class_iou and unseen:
        found.append(
            f"Nothing is known about {', '.join(unseen)}: not in the {split} split, so mIoU is over "
            f"{len(facts.class_iou)} of {len(info.classes)} classes."
        )
    if not facts.class_iou:
        found.append("Nothing is known about single classes: no IoU by class was recorded.")
    num_images = facts.num_images.get(split)
    if num_images is not None and num_images < FEW_IMAGES:
        images = format_count(num_images, "image")
        found.append(f"The figures come from {images}: differences of a few points mean little.")
    crop = facts.config.augment.crop_size
    if facts.metrics and crop:
        height, width = crop
        found.append(f"Trained on crops of {width}x{height} px; objects of another scale were not seen.")
        num_train = facts.num_images.get(facts.config.data.train_split, 0)
        if 2 * facts.num_padded > num_train:
            images = format_count(num_train, "training image")
            found.append(f"{format_count(facts.num_padded)} of {images} were smaller than that, and padded.")
    if facts.config.model.context != "none" and not _has_presence(facts.config):
        found.append("Its predictions of class presence mean nothing: its SE-loss had weight 0.")
    if facts.metrics:
        chosen_by = facts.config.metric
        found.append(
            f"The checkpoint was chosen by {chosen_by} on the same split, so the figures flatter it."
        )
    return [*found, "Not for decisions about people or their safety without tests of your own."]


def name_term(term: TermName, model: ModelConfig) -> str | None:
    """The loss term in words; None where the network has no output for it."""
    if is_part(term):
        return f"the own loss `{term}`"
    match term:
        case "pixel_loss":
            return "pixel cross-entropy"
        case "se_loss":
            return None if model.context == "none" else "the SE-loss of the context module"
        case "aux_se_loss":
            is_there = model.context != "none" and model.auxiliary == "se"
            return "the SE-loss of the auxiliary context module" if is_there else None
        case "aux_loss":
            return "the cross-entropy of the auxiliary FCN head" if model.auxiliary == "fcn" else None
        case "dice_loss":
            return "the soft Dice loss"


def _describe_model(facts: ModelFacts) -> str:
    model, info = facts.config.model, facts.info
    sentences = [
        f"Semantic segmentation of RGB images of any size: each pixel gets one of {info.name}'s "
        f"{len(info.classes)} classes.",
        f"{_kind(model.context)}: backbone {model.backbone} at output stride {model.output_stride}, head "
        f"{model.head}; {format_count(facts.num_parameters, 'parameter')}.",
    ]
    if _has_presence(facts.config):
        sentences.append("It also predicts which classes are anywhere in the image.")
    return " ".join(sentences)


def _kind(context: Context | PartName) -> str:
    if is_part(context):
        return f"A network with an own context module, `{context}`, in place of the encoding"
    match context:
        case "encoding":
            return "EncNet (Zhang et al., CVPR 2018)"
        case "gate":
            return "A network with a pooled gate in place of the encoding"
        case "none":
            return "A network without a context module"


def _has_presence(config: Config) -> bool:
    """Whether the SE-loss has trained the logits of presence."""
    return bool(term_weights(config.loss)["se_loss"] and name_term("se_loss", config.model))


def _describe_network(model: ModelConfig) -> list[str]:
    """The details that the first paragraph leaves out."""
    head = f"head of {model.channels} channels"
    if model.lateral and model.head == "fcn":
        head += ", which the features of stages 2 and 3 join"
    lines = [f"{head}, dropout {format_param(model.dropout)} before the classifier"]
    factors = _describe_attention(model)
    if is_part(model.context):
        lines.append(f"context module: `{model.context}`; {factors}")
    else:
        match model.context:
            case "encoding":
                lines.append(f"context module: {', '.join(_describe_encoding(model))}; {factors}")
            case "gate":
                lines.append(f"context module: average pooling; {factors}")
            case "none":
                pass
    match model.auxiliary:
        case "fcn":
            lines.append("auxiliary FCN head on stage 3, only for training")
        case "se":
            if model.context != "none" and 3 not in model.attention_stages:
                lines.append("auxiliary context module on stage 3, only for training")
        case "none":
            pass
    if model.context != "none" and 3 in model.attention_stages:
        lines.append("the auxiliary context module scales the features of stage 3")
    corners = "aligned" if model.align_corners else "not aligned"
    return [*lines, f"logits upsampled bilinearly, corners {corners}"]


def _describe_attention(model: ModelConfig) -> str:
    match model.scaling:
        case "multiply":
            features = "its scaling factors multiply the features"
        case "residual":
            features = "the features times its scaling factors are added to the features"
    classes = "the logits are multiplied by the presence of their class"
    match model.attention:
        case "features":
            return features
        case "classes":
            return classes
        case "both":
            return f"{features}; {classes}"


def _describe_encoding(model: ModelConfig) -> Iterator[str]:
    yield f"encoding with {format_count(model.num_codewords, 'codeword')}"
    if model.encoding_conv:
        yield "after a 1x1 convolution"
    match model.codeword_init:
        case "published":
            yield "codewords as published"
        case "unit":
            yield "features and codewords scaled to length 1"
    match model.aggregate:
        case "sum":
            yield "summed over the codewords"
        case "mean":
            yield "averaged over the codewords"
    if model.rescale_encoding:
        yield "rescaled to the number of pixels in training"


def _scores(facts: ModelFacts) -> str:
    scores = {name: value for name, value in facts.metrics.items() if is_score(name)}
    if not scores:
        return "None were recorded."
    rows = [("score", "%"), *((name, format_percent(value)) for name, value in scores.items())]
    parts = [f"On the {_split(facts, facts.config.data.val_split)}.", _table(rows)]
    if facts.class_iou:
        by_class = ((name, format_percent(facts.class_iou.get(name))) for name in facts.info.classes)
        parts.append(_table([("class", "IoU %"), *by_class]))
    return "\n\n".join(parts)


def _data(facts: ModelFacts) -> list[str]:
    data = facts.config.data
    splits = dict.fromkeys((data.train_split, data.val_split))
    return [facts.info.name, *(f"{_split(facts, name)}" for name in splits)]


def _split(facts: ModelFacts, name: str) -> str:
    number = facts.num_images.get(name)
    images = "an unknown number of images" if number is None else format_count(number, "image")
    return f"{name} split ({images})"


def _describe_training(facts: ModelFacts) -> list[str]:
    config = facts.config
    train, optim = config.train, config.optim
    steps = f" of {format_count(train.steps_per_epoch, 'step')}" if train.steps_per_epoch else ""
    return [
        f"{format_count(train.epochs, 'epoch')}{steps}, {format_count(train.global_batch_size, 'image')} a "
        f"step{_describe_parts(train)}{_describe_workers(config)}, seed {train.seed}, "
        f"{_describe_precision(train)}",
        *_describe_early_stop(config),
        _describe_optimizer(optim),
        *_describe_weights(facts),
        *_describe_average(train),
        *_describe_loss(config),
        *_describe_args(config),
        f"augmentation: {', '.join(_describe_augmentation(config.augment)) or 'none'}",
        _describe_start(config),
    ]


def _describe_start(config: Config) -> str:
    """Only the end of a path, which is specific to one machine: a file's name, or RUN/artifacts/bundle."""
    if config.train.init_from:
        source = "/".join(config.train.init_from.rstrip("/").removesuffix(f"/{MODEL_FILE}").split("/")[-3:])
        return f"initial weights: those of the model {source} that fit, the others random"
    return f"backbone's initial weights: {(config.model.weights or 'random').rpartition('/')[2]}"


def _describe_optimizer(optim: OptimConfig) -> str:
    momentum, decay = format_param(optim.momentum), format_param(optim.weight_decay)
    if is_part(optim.name):
        name, rest = f"the own optimizer `{optim.name}`", f"weight decay {decay}"
    else:
        match optim.name:
            case "sgd":
                name, rest = "SGD", f"momentum {momentum}, weight decay {decay}"
            case "adamw":
                betas = f"betas {momentum} and {format_param(optim.beta2)}"
                name, rest = "AdamW", f"{betas}, decoupled weight decay {decay}"
    warmup = f", after a linear warm-up in {format_share(optim.warmup)} of the steps" if optim.warmup else ""
    clipping = f", gradients clipped to norm {format_param(optim.clip_norm)}" if optim.clip_norm else ""
    return (
        f"{name}: learning rate {_describe_rate(optim)}{warmup}, {format_param(optim.head_lr_factor)} times "
        f"that for the heads, {rest}{clipping}"
    )


def _describe_rate(optim: OptimConfig) -> str:
    rate = format_param(optim.lr)
    if is_part(optim.schedule):
        return f"{rate} times the own schedule `{optim.schedule}`"
    match optim.schedule:
        case "poly":
            return f"`{rate} * (1 - progress) ** {format_param(optim.poly_power)}`"
        case "cosine":
            return f"`{rate} * (1 + cos(pi * progress)) / 2`"
        case "wsd":
            return f"{rate}, falling linearly to 0 in the last {format_share(optim.decay)} of the steps"
        case "constant":
            return f"{rate}, constant"


def _describe_weights(facts: ModelFacts) -> list[str]:
    if facts.epoch is None:
        return []
    of_all = f"the weights are those of epoch {facts.epoch}, the best by {facts.config.metric}"
    if facts.unfinished_at is None:
        return [of_all]
    come = f"{facts.unfinished_at} of {format_count(facts.config.train.epochs, 'epoch')}"
    return [f"**not finished**: it had come to {come}; {of_all}"]


def _describe_average(train: TrainConfig) -> list[str]:
    if not train.ema:
        return []
    decay = format_param(train.ema)
    return [f"the weights are a moving average of the trained ones, with a decay of {decay} a step"]


def _describe_early_stop(config: Config) -> list[str]:
    rule = config.train.early_stop
    if not rule.patience:
        return []
    least = f" by more than {format_points(rule.min_delta)}" if rule.min_delta else ""
    reports = format_count(rule.patience, "validation")
    return [f"to end before that after {reports} in a row without a rise of {config.metric}{least}"]


def _describe_precision(train: TrainConfig) -> str:
    without = ", no TF32" if train.matmul_precision == "highest" else ""
    match train.precision:
        case "fp32" | "bf16":
            return f"precision {train.precision}{without}"
        case "auto":
            return f"precision auto (bf16 where the device has it, else fp32){without}"


def _describe_parts(train: TrainConfig) -> str:
    size = train.micro_batch_size
    return f" in parts of {format_count(size, 'image')} at most" if size else ""


def _describe_workers(config: Config) -> str:
    scaling = config.scaling
    if scaling.num_workers == 1:
        return ""
    synchronised = scaling.gpus_per_worker > 0 and config.train.sync_bn == "auto"
    norm = "over all together" if synchronised else "in each alone"
    fewest = f"{scaling.min_workers} to " if scaling.min_workers else ""
    return f" on {fewest}{format_count(scaling.num_workers, 'worker')}, batch norm {norm}"


def _describe_loss(config: Config) -> Iterator[str]:
    """The terms that the network has and whose weight is not 0, and what changes the cross-entropy."""
    loss = config.loss
    terms = [
        name if weight == 1 else f"{format_param(weight)} times {name}"
        for term, weight in term_weights(loss).items()
        if weight and (name := name_term(term, config.model))
    ]
    yield f"loss: {', plus '.join(terms)}"
    has_aux = loss.aux_weight and name_term("aux_loss", config.model)
    if not (loss.ce_weight or has_aux):
        return
    cross_entropy = "both cross-entropies" if loss.ce_weight and has_aux else "the cross-entropy"
    if loss.ohem_threshold is not None and loss.ce_weight:
        yield (
            "only hard pixels in the pixel cross-entropy (OHEM): those whose class has a probability below "
            f"{format_param(loss.ohem_threshold)}, and at least the hardest "
            f"{format_share(loss.ohem_min_share)} of an image"
        )
    if loss.class_weights == "median_frequency":
        yield f"classes weighted by median frequency in {cross_entropy}"
    elif loss.class_weights != "none":
        weighted = ", ".join(f"{name} {format_param(weight)}" for name, weight in loss.class_weights.items())
        yield f"class weights in {cross_entropy}: {weighted}"
    if loss.label_smoothing:
        yield f"label smoothing {format_param(loss.label_smoothing)} in {cross_entropy}"


def _describe_args(config: Config) -> Iterator[str]:
    """The arguments of own parts, as the recipe gives them."""
    for section in (config.augment, config.model, config.loss, config.optim, config.eval):
        for name, args in section.args.items():
            yield f"`{name}`: {format_params(args)}"


def _describe_augmentation(augment: AugmentConfig) -> Iterator[str]:
    """The augmentations that are switched on."""
    if augment.extra:
        yield f"own transforms {', '.join(f'`{name}`' for name in augment.extra)}"
    if augment.shorter_side:
        yield f"shorter side zoomed to {augment.shorter_side} px"
    if augment.crop_size:
        height, width = augment.crop_size
        yield f"crops of {width}x{height} px"
    if augment.class_uniform:
        yield (
            "placed on a pixel of a random class of the image with probability "
            f"{format_param(augment.class_uniform)}"
        )
    if augment.flip:
        yield f"mirrored with probability {format_param(augment.flip)}"
    if augment.scale != (1, 1):
        low, high = map(format_param, augment.scale)
        yield f"zoomed by {low} to {high}"
    if augment.rotate_deg:
        yield f"rotated by up to {format_param(augment.rotate_deg)} degrees either way"
    if augment.jitter:
        yield f"brightness, contrast and saturation changed by up to {format_share(augment.jitter)}"
    if augment.blur:
        yield f"blurred by up to 1 px with probability {format_param(augment.blur)}"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(left)} | {right} |" for left, right in rows]
    return "\n".join([lines[0], "|---|---:|", *lines[1:]])


def _cell(text: str) -> str:
    """Escape the sign that ends a cell: a class name may hold it."""
    return text.replace("|", "\\|")


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _value(item: tuple[str, float]) -> float:
    return item[1]
