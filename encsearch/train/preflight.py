"""What must hold before a training begins: store, splits, class weights, metric, networks, weights, disk."""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from encsearch.config import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    argument_paths,
    named_parts,
    trial_config,
    with_values,
)
from encsearch.data.datasets import DatasetInfo
from encsearch.data.manifest import StoreError
from encsearch.data.statistics import SplitStats, find_gaps
from encsearch.data.store import Store
from encsearch.errors import PreflightError, UserError
from encsearch.parts import ENTRY_POINTS, code_from, find_part, is_part
from encsearch.text import format_bytes, format_list, metric_name

CHECKPOINTS_A_TRAINING = 3  # two are kept while a third is written


@dataclass(frozen=True)
class PaddedImages:
    """Training images that are smaller than the crop (height, width), or the largest that is searched."""

    num_images: int
    crop: tuple[int, int]


@dataclass(frozen=True)
class Preflight:
    """Facts about a training, found before it begins; `gaps` are what its splits lack, a sentence each.

    `origin` says what it takes of `train.init_from`, "" without it; `own_parts` were tried.
    """

    num_train: int
    num_val: int
    num_classes: int
    num_parameters: int
    steps_per_epoch: int
    fingerprint: str
    padded: PaddedImages | None
    gaps: tuple[str, ...]
    origin: str
    own_parts: tuple[str, ...] = ()

    @property
    def facts(self) -> list[str]:
        """What people should know of them, a line each."""
        parts = f"own parts, each tried by its contract: {format_list(self.own_parts)}"
        return [
            *([self.origin] if self.origin else []),
            *([parts] if self.own_parts else []),
            *(f"warning: {gap}" for gap in self.gaps),
        ]


def checkpoint_bytes(config: Config, num_parameters: int) -> int:
    """The size of a checkpoint of a network, or the largest of those that are searched.

    It holds weights and momentum, for AdamW and an own optimizer the mean squared gradients too, and with
    `train.ema` the average of the weights: 4 bytes each.
    """
    space = config.search.space if config.search else {}
    names = space["optim.name"].values if "optim.name" in space else (config.optim.name,)
    decays = space["train.ema"].values if "train.ema" in space else (config.train.ema,)
    numbers = 2 + int(any(name == "adamw" or is_part(name) for name in names)) + int(max(decays) > 0)
    return 4 * numbers * num_parameters


def open_store(config: Config) -> Store:
    """Open the recipe's store for a job. Raises PreflightError (exit code 3)."""
    try:
        return Store(config.data.store)
    except StoreError as error:
        raise PreflightError(str(error)) from None


def preflight(config: Config, store: Store, out: Path) -> Preflight:
    """Check that the recipe can run here: splits, class weights, metric, model, free disk under `out`.

    Raises PreflightError (exit code 3) with the first problem, UserError for an `out` that cannot be written.
    """
    with code_from(config.code):
        return _preflight(config, store, out)


def _preflight(config: Config, store: Store, out: Path) -> Preflight:
    try:
        num_train, num_val = (len(store.split(s)) for s in (config.data.train_split, config.data.val_split))
        resolve_class_weights(config.loss, store, config.data.train_split)
    except UserError as error:
        raise PreflightError(str(error)) from None
    stats = [store.stats(split) for split in (config.data.train_split, config.data.val_split)]
    for split in stats:
        if split.ignored_share == 1:
            raise PreflightError(
                f"{config.data.store}: no pixel of split {split.split} has a label; import one with labels"
            )
    _check_metric(config.metric, store.info)
    _check_names(store.info)
    _check_sizes(config, store)
    _check_parts(config, store)
    num_parameters, origin = _check_models(config, len(store.info.classes))
    _check_writable(out)
    _check_disk(out, CHECKPOINTS_A_TRAINING * checkpoint_bytes(config, num_parameters))
    return Preflight(
        num_train=num_train,
        num_val=num_val,
        num_classes=len(store.info.classes),
        num_parameters=num_parameters,
        steps_per_epoch=config.train.steps_per_epoch or -(-num_train // config.train.global_batch_size),
        fingerprint=store.fingerprint,
        padded=_find_padded(config, store),
        gaps=tuple(find_gaps(*stats)),
        origin=origin,
        own_parts=tuple(named_parts(config)),
    )


def count_padded(augment: AugmentConfig, train: SplitStats) -> int:
    """How many training images are smaller than the crop, before the random zoom of `augment.scale`."""
    crop = augment.crop_size
    if crop is None:
        return 0
    return sum(
        number
        for size, number in train.sizes
        if any(
            round(augment.base_zoom(*size) * side) < needed for side, needed in zip(size, crop, strict=True)
        )
    )


def check_same_data(config: Config, store: Store, fingerprint: str) -> None:
    """Raise PreflightError when the store does not hold what it held when a job was started."""
    if store.fingerprint != fingerprint:
        raise PreflightError(
            f"{config.data.store} holds other data than at the start of the job ({store.fingerprint[:12]}, "
            f"not {fingerprint[:12]}); restore it, or start a new job"
        )


def existing_folder(out: Path) -> Path:
    """`out` itself, or the nearest parent folder that exists."""
    return next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())


def resolve_class_weights(loss: LossConfig, store: Store, train_split: str) -> tuple[float, ...] | None:
    """The weights of the cross-entropy in the order of the classes, or None if all are equal.

    Raises UserError for names that are not exactly the classes of the store, and for a training split without
    a labelled pixel.
    """
    if loss.class_weights == "none":
        return None
    if loss.class_weights == "median_frequency":
        return store.median_frequency_weights(train_split)
    info = store.info
    for name in loss.class_weights:
        if name not in info.classes:
            raise UserError(
                f"loss.class_weights names {name!r}, which is none of the {len(info.classes)} classes of "
                f"{info.name}; `encsearch data stats` lists them"
            )
    missing = [name for name in info.classes if name not in loss.class_weights]
    if missing:
        raise UserError(
            f"loss.class_weights has no weight for {missing[0]!r} ({len(missing)} of the {len(info.classes)} "
            f"classes of {info.name} lack one); 1 is neutral"
        )
    return tuple(loss.class_weights[name] for name in info.classes)


def _check_parts(config: Config, store: Store) -> None:
    named = named_parts(config)
    for path, name in argument_paths(config).items():
        if name not in named and not any(find_part(kind, name) in named for kind in ENTRY_POINTS):
            names = f"it names {format_list(list(named))}" if named else "it names none"
            raise UserError(f"{path}: an argument of {name}, which the recipe does not name; {names}")
    if named:
        from encsearch.train.contracts import check_parts  # here, since it imports torch

        check_parts(config, store)


def _check_metric(metric: str, info: DatasetInfo) -> None:
    if is_part(metric):
        return
    known = ["mIoU", "pixAcc", *(f"mIoU/{group}" for group in info.groups)]
    if metric not in known:
        raise PreflightError(f"metric={metric} is not measured on {info.name}; try one of {', '.join(known)}")


def _check_names(info: DatasetInfo) -> None:
    """Two classes or groups whose metrics have one name in MLflow would be one curve there."""
    for names in (info.classes, info.groups):
        found: dict[str, str] = {}
        for name in names:
            other = found.setdefault(metric_name(name), name)
            if other != name:
                raise PreflightError(
                    f"{info.name}: {other!r} and {name!r} have one name in MLflow, {metric_name(name)!r}; "
                    "import the data with names that differ in letters, digits or _-. :/"
                )


def _check_sizes(config: Config, store: Store) -> None:
    """All training images of a batch must have the same size."""
    sizes: Counter[tuple[int, int]] = Counter()
    for size, count in store.stats(config.data.train_split).sizes:
        sizes[config.augment.image_size(*size)] += count
    if len(sizes) == 1:
        return
    if config.train.global_batch_size > config.scaling.num_workers:
        ((height, width), _), *_ = sizes.most_common()
        raise PreflightError(
            f"{config.data.store}: training images have {len(sizes)} sizes, most of them {width}x{height}; "
            "set augment.crop, which makes them equal"
        )
    if config.model.rescale_encoding and config.model.context == "encoding":
        raise PreflightError(
            f"{config.data.store}: training images have {len(sizes)} sizes, so there is none to rescale the "
            "encoding to; set augment.crop, or model.rescale_encoding=false"
        )


def _find_padded(config: Config, store: Store) -> PaddedImages | None:
    """None without such images."""
    searched = config.search.space if config.search else {}
    worst = ("augment.crop", max), ("augment.shorter_side", min)
    values = {path: pick(searched[path].values) for path, pick in worst if path in searched}
    augment = trial_config(config, values).augment
    crop = augment.crop_size
    if crop is None:
        return None
    num_images = count_padded(augment, store.stats(config.data.train_split))
    return PaddedImages(num_images, crop) if num_images else None


def _check_models(config: Config, num_classes: int) -> tuple[int, str]:
    """Build every model of the recipe and read its weights.

    Returns the parameter count of the first one, and what it begins with. Published weights are fetched here,
    once, instead of by every worker.
    """
    # Here, so that a sweep's driver, which opens the store, has no torch.
    from encsearch.model.encnet import count_parameters

    searched = config.search.space if config.search else {}
    all_paths = ("model.backbone", "model.output_stride", "model.weights", "train.init_from")
    paths = [path for path in all_paths if path in searched]
    configs = [config]
    for examples in product(*(searched[path].examples for path in paths)) if paths else ():
        point = dict(zip(paths, examples, strict=True))
        # A condition on a path that is not among these may hold.
        active = [
            path
            for path in paths
            if all(point.get(other, allowed[0]) in allowed for other, allowed in searched[path].when.items())
        ]
        configs.append(with_values(config, {path: point[path] for path in active}))
    counts, origins = [], []
    for one in configs:
        counts.append(count_parameters(one.model, num_classes))
        if one.model.weights and not is_part(one.model.backbone):  # `check_parts` has loaded an own one's
            _check_weights(one.model.backbone, one.model.output_stride, one.model.weights)
        init_from = one.train.init_from
        model_json = one.model.model_dump_json(exclude_unset=True)
        origins.append(_check_initial(model_json, num_classes, init_from) if init_from else "")
    return counts[0], origins[0]


@cache
def _check_initial(model_json: str, num_classes: int, init_from: str) -> str:
    """What the model takes of another one. Raises as `read_initial` does."""
    from encsearch.train.initial import describe_initial

    return describe_initial(init_from, ModelConfig.model_validate_json(model_json), num_classes)


@cache
def _check_weights(backbone: str, output_stride: int, weights: str) -> None:
    """Once a process: the rows of an ablation share the file. Raises as `build_backbone` does."""
    from encsearch.model.backbones import build_backbone

    build_backbone(backbone, output_stride, weights)


def _check_writable(out: Path) -> None:
    existing = existing_folder(out)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{out}: cannot make a run folder ({existing} is a file or read-only); choose another --out"
        )


def _check_disk(out: Path, needed: int) -> None:
    existing = existing_folder(out)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise PreflightError(
            f"{existing}: {format_bytes(free)} are free, but the checkpoints of one training need "
            f"{format_bytes(needed)}; free some space or choose another folder with --out"
        )
