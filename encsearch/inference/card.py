"""The model card: what a model is, what it was trained on, how good it is and what it is not for.

Plain Markdown, written from recorded facts alone: what nobody recorded is said to be unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from encsearch.config import Config, ModelConfig
from encsearch.data.datasets import DatasetInfo
from encsearch.text import format_count, format_param, format_percent, format_score, is_score

WEAK_IOU = 0.5
"""Below it a prediction of the class shares less with the truth than it misses or adds."""

FEW_IMAGES = 100
"""Of so few validation images one scene can move a class by several points."""


@dataclass(frozen=True)
class ModelFacts:
    """All that a card tells.

    `metrics` are figures of all classes by name and `class_iou` the IoU by class, both on the validation
    split; a class that this split lacks has none. `num_images` counts the images of each split. Empty
    mappings are facts that nobody recorded.
    """

    config: Config
    info: DatasetInfo
    fingerprint: str
    weights_sha256: str
    num_parameters: int
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float]
    num_images: Mapping[str, int]


def model_card(facts: ModelFacts) -> str:
    """The card as Markdown, which begins with the model's name."""
    config, info = facts.config, facts.info
    parts = [
        f"# {config.name}",
        _what_it_is(facts),
        "## Use and limits",
        _bullets(limits(facts)),
        "## Scores",
        _scores(facts),
        "## Data",
        _bullets(_data(facts)),
        "## Classes",
        ", ".join(info.classes) + ".",
        *(f"Group {name}: {', '.join(members)}." for name, members in info.groups.items()),
        "## Training",
        # A model without figures was imported, and its configuration says nothing of how it was trained.
        _bullets(_training(config)) if facts.metrics else "Not recorded.",
        "## Fingerprints",
        _bullets([f"data `{facts.fingerprint}`", f"weights (SHA-256) `{facts.weights_sha256}`"]),
    ]
    return "\n\n".join(parts) + "\n"


def limits(facts: ModelFacts) -> list[str]:
    """What follows from the figures for those who use the model, one sentence or two each."""
    info, split = facts.info, facts.config.data.val_split
    found = [
        f"For images like those of {info.name}. Each pixel gets one of the {len(info.classes)} classes, also "
        "where none of them is there."
    ]
    weak = {name: iou for name, iou in facts.class_iou.items() if iou < WEAK_IOU}
    if weak:
        named = [f"{name} ({format_score(iou)})" for name, iou in sorted(weak.items(), key=_value)]
        least = format_score(WEAK_IOU)
        found.append(f"Not to be relied on for classes with an IoU below {least}: {', '.join(named)}.")
    unseen = [name for name in info.classes if name not in facts.class_iou]
    if facts.class_iou and unseen:
        found.append(f"Nothing is known of {', '.join(unseen)}: not in the {split} split.")
    if not facts.class_iou:
        found.append("Nothing is known of single classes: no IoU by class was recorded.")
    num_images = facts.num_images.get(split)
    if num_images is not None and num_images < FEW_IMAGES:
        images = format_count(num_images, "image")
        found.append(f"The figures are of {images}: differences of a few points mean little.")
    crop = facts.config.augment.crop
    if facts.metrics and crop is not None:
        found.append(f"Trained on crops of {crop}x{crop} px; objects of another scale were not seen.")
    if facts.metrics:
        chosen_by = facts.config.metric
        found.append(
            f"The checkpoint was chosen by {chosen_by} on the same split, so the figures flatter it."
        )
    return [*found, "Not for decisions about people or their safety without tests of your own."]


def _what_it_is(facts: ModelFacts) -> str:
    return (
        f"Semantic segmentation of RGB images of any size: a class for every pixel, of {facts.info.name}'s "
        f"{len(facts.info.classes)}. {_network(facts.config.model)}; "
        f"{format_count(facts.num_parameters, 'parameter')}."
    )


def _network(model: ModelConfig) -> str:
    body = f"backbone {model.backbone} at output stride {model.output_stride}, head {model.head}"
    if model.context == "none":
        return f"A network without context module: {body}"
    if model.context == "gate":
        return f"A network with a pooled gate in the place of the encoding: {body}"
    return (
        f"EncNet (Zhang et al., CVPR 2018) with {format_count(model.num_codewords, 'codeword')} of "
        f"{model.channels} channels: {body}. It also tells which classes are somewhere in the image"
    )


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


def _training(config: Config) -> list[str]:
    train, augment, loss, optim = config.train, config.augment, config.loss, config.optim
    steps = f", {format_count(train.steps_per_epoch, 'step')} each" if train.steps_per_epoch else ""
    low, high = map(format_param, augment.scale)
    return [
        f"{format_count(train.epochs, 'epoch')}{steps}, {format_count(train.global_batch_size, 'image')} a "
        f"step, seed {train.seed}, {train.precision}",
        f"SGD, learning rate {format_param(optim.lr)} ({format_param(optim.head_lr_factor)} times that for "
        f"the heads), weight decay {format_param(optim.weight_decay)}",
        f"pixel cross-entropy and SE-loss of weight {format_param(loss.se_weight)}",
        f"crop {augment.crop or 'none'}, zoom {low} to {high}, "
        f"mirrored with probability {format_param(augment.flip)}",
        # Of a file only the name: the path is of one machine.
        f"backbone's initial weights: {(config.model.weights or 'random').rpartition('/')[2]}",
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(left)} | {right} |" for left, right in rows]
    return "\n".join([lines[0], "|---|---:|", *lines[1:]])


def _cell(text: str) -> str:
    """A class name may hold the sign that ends a cell."""
    return text.replace("|", "\\|")


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _value(item: tuple[str, float]) -> float:
    return item[1]
