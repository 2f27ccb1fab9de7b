"""The whole recipe as one frozen tree, and the one path language that names its leaves.

`optim.lr` is the key in YAML, the override on the command line, the dimension of a sweep, the Optuna
parameter and the MLflow param.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from encsearch.config.problems import (
    describe_problem,
    describe_unknown_path,
    find_problem,
    format_value,
    section_paths,
)
from encsearch.config.recipe_text import parse_override, parse_yaml, read_layers, write_yaml
from encsearch.config.search import AblateConfig, Sampler, SearchConfig, find_active
from encsearch.config.sections import (
    BACKBONES,
    IMAGENET,
    PRESETS,
    AugmentConfig,
    Context,
    DataConfig,
    EvalConfig,
    Head,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Optimizer,
    PromoteConfig,
    ScalingConfig,
    Schedule,
    Section,
    TrainConfig,
)
from encsearch.errors import UserError
from encsearch.parts import NAME, Kind, PartName, find_part, is_part
from encsearch.text import format_given, format_list

# The recipe with every default written out, in the folder of a job and of a model.
CONFIG_FILE = "config.yaml"
# A path below a name that people choose: an argument of an own part, the weight of an own loss.
PART_PATH = re.compile(rf"(\w+)\.(args)\.({NAME}|\w+)\.(\w+)|(loss)\.(terms)\.({NAME}|\w+)")
# Which parts a recipe names at a path.
NAMED: Mapping[str, Kind] = {
    "data.store": "dataset",
    "model.backbone": "backbone",
    "model.head": "head",
    "model.context": "context",
    "augment.extra": "transform",
    "loss.terms": "loss",
    "optim.name": "optimizer",
    "optim.schedule": "schedule",
    "search.sampler": "sampler",
    "metric": "metric",
}
_WORDS = (Head, Context, Optimizer, Schedule, Sampler)
BUILT_IN = {*BACKBONES, *(word for words in _WORDS for word in get_args(words))}
# Mappings whose keys people choose; `flatten` takes each as one leaf.
AS_TEXT = ("search.space", "search.prior.paths", "loss.class_weights", "ablate.rows", "promote.class_floor")


class Config(Section):
    """One experiment."""

    name: str = Field(
        "encnet", pattern=r"^[\w.-]+$", max_length=80, description="of the runs and of their folders"
    )
    metric: str = Field(
        "mIoU",
        description="the figure that is maximised: mIoU, pixAcc, mIoU/GROUP, or your own, as module:Object",
    )
    code: str | None = Field(
        None, description="the folder of own parts' modules; null: the one that a command runs in"
    )
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

    @field_validator("metric")
    @classmethod
    def _write_out_metric(cls, given: str) -> str:
        is_built_in = given == "pixAcc" or given.startswith("mIoU")
        return given if is_built_in else find_part("metric", given) or given

    @model_validator(mode="after")
    def _batch_divides(self) -> "Config":
        for workers in _worker_counts(self):
            size = self.train.global_batch_size
            if size % workers:
                below, above = size // workers * workers, (size // workers + 1) * workers
                fits = format_list([str(n) for n in (below, above) if n], "or")
                raise ValueError(
                    f"global_batch_size={size} is not divisible by num_workers={workers}; try "
                    f"train.global_batch_size={fits}"
                )
        return self

    @property
    def micro_batch_size(self) -> int:
        """The most images that a worker takes at once; of an elastic training the same on fewer workers."""
        share = -(-self.train.global_batch_size // self.scaling.num_workers)
        return min(share, self.train.micro_batch_size or share)

    @model_validator(mode="after")
    def _begins_with_one(self) -> "Config":
        if self.train.init_from and "://" in self.train.init_from:
            raise ValueError(
                f"train.init_from={self.train.init_from} is an address; fetch the model, and give its folder"
            )
        if self.model.weights and self.train.init_from:
            raise ValueError(
                f"model.weights={self.model.weights} and train.init_from={self.train.init_from} both give "
                "the backbone's initial weights; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _ohem_sees_the_batch(self) -> "Config":
        micro, threshold = self.train.micro_batch_size, self.loss.ohem_threshold
        if micro is not None and threshold is not None:
            raise ValueError(
                f"train.micro_batch_size={micro} and loss.ohem_threshold={format_given(threshold)} do not go "
                "together: what OHEM divides by follows from the whole batch; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _batch_norm_has_values(self) -> "Config":
        crop, stride, head = self.augment.crop_size, self.model.output_stride, self.model.head
        synchronised = self.scaling.gpus_per_worker > 0 and self.train.sync_bn == "auto"
        lonely = 1 if synchronised else max(_worker_counts(self))
        if self.train.global_batch_size > lonely and self._fewest_images(synchronised) > 1:
            return self
        more = f"global_batch_size={2 * self.train.global_batch_size}"
        if self.train.micro_batch_size == 1:
            more = "train.micro_batch_size=2"
        if crop and max(crop) <= stride:
            raise ValueError(
                f"augment.crop={json.dumps(self.augment.crop)} at output_stride={stride} with one image a "
                f"worker leaves batch norm a single value; try a crop over {stride} or {more}"
            )
        if is_part(head):
            return self
        match head:
            case "pspnet" | "deeplabv3" | "deeplabv3plus":
                raise ValueError(
                    f"model.head={head} pools an image to one value, and batch norm needs two: with one "
                    f"image a worker it cannot train; try {more}"
                )
            case "fcn" | "unet" | "refinenet":
                return self

    def _fewest_images(self, synchronised: bool) -> int:
        """The least images that batch norm sees at once, with any number of an elastic training's workers."""
        size, most = self.train.global_batch_size, self.scaling.num_workers
        fewest = size
        for workers in range(self.scaling.min_workers or most, most + 1):
            largest = -(-size // workers)
            parts = 1 if self.loss.ohem_threshold is not None else -(-largest // self.micro_batch_size)
            fewest = min(fewest, size // workers // parts * (workers if synchronised else 1))
        return fewest

    @model_validator(mode="after")
    def _gate_has_a_figure(self) -> "Config":
        if self.promote.figure == "metric" and not is_part(self.metric):
            raise ValueError(
                f"promote.figure=metric needs an own metric, as module:Object, but metric={self.metric}; "
                "set promote.figure=mIoU"
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
        # One value makes a configuration invalid, or two that do not go together; so pairs are enough.
        for pair in combinations(space, min(2, len(space))):
            for values in product(*(space[path].examples for path in pair)):
                point = {**first, **dict(zip(pair, values, strict=True))}
                _check_point(self, {path: point[path] for path in find_active(space, point)})
        for number, point in enumerate(self.search.enqueue):
            for path, value in point.items():
                if path not in space:
                    raise ValueError(f"search.enqueue[{number}] names {path}, which is not in search.space")
                if not space[path].holds(value):
                    raise ValueError(f"search.enqueue[{number}]: {path}={value!r} is outside search.space")
            whole = {**first, **point}
            _check_point(self, {path: whole[path] for path in find_active(space, whole)})
        for path, belief in self.search.prior.paths.items():
            if path not in space:
                raise ValueError(f"search.prior names {path}, which is not in search.space")
            if belief.at is not None and not space[path].spans(belief.at):
                raise ValueError(f"search.prior: {path} at {belief.at!r} is outside search.space")
        return self

    @model_validator(mode="after")
    def _budget_can_be_counted(self) -> "Config":
        budget = self.search.budget if self.search else None
        if budget and budget.gpu_hours and not self.scaling.gpus_per_worker:
            raise ValueError(
                f"search.budget.gpu_hours={format_given(budget.gpu_hours)} limits nothing: "
                "scaling.gpus_per_worker is 0; give search.budget.wall"
            )
        return self

    @model_validator(mode="after")
    def _gpus_can_be_shared(self) -> "Config":
        each, workers = self.scaling.gpus_per_worker, max(_worker_counts(self))
        if each % 1 and (each > 1 or workers > 1):
            raise ValueError(
                f"gpus_per_worker={format_given(each)} with num_workers={workers}: a part of a GPU is for "
                "trainings of one worker, since NCCL takes each GPU once; try whole GPUs"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe, or one of the package's by its name, and apply `path=value` overrides.

    A recipe is laid over the one that it `extends`, section by section; other values replace those below,
    lists and the mappings of AS_TEXT among them. A later override wins. Raises UserError with one line that
    names the path, the value and what is allowed.
    """
    layers = read_layers(path)
    values = dict(map(parse_override, overrides))
    for key in values:
        _check_path(key)
    tree: dict[str, Any] = {}
    for layer in layers:
        _lay_over(tree, json.loads(json.dumps(layer)))  # a copy in which no alias is shared
    _set_leaves(tree, values)
    return _validate(tree, where=str(path), is_written_out=Path(path).name == CONFIG_FILE)


def model_config(**values: Any) -> ModelConfig:
    """ModelConfig(**values); raises UserError with one line that names the field and what is allowed."""
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        raise UserError(describe_problem(error, ModelConfig, values)) from None


def check_alias(model_name: str, alias: str) -> None:
    """Raises UserError for names that MLflow or this package reserves."""
    values = {"model_name": model_name, "alias": alias}
    try:
        PromoteConfig(**values)
    except ValidationError as error:
        raise UserError(describe_problem(error, PromoteConfig, values)) from None


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The same configuration with the leaves named by `values` (path -> value) replaced."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    for path in values:
        _check_path(path)
    _set_leaves(tree, values)
    return _validate(tree, where="override")


def trial_config(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of one training: the recipe without its search, with `values` (path -> value) set."""
    return with_values(config.model_copy(update={"search": None}), values)


def require_search(config: Config) -> SearchConfig:
    """The recipe's search block. Raises UserError if it has none."""
    if config.search is None:
        raise UserError(f"recipe {config.name} has no search: block; add one, or use `encsearch train`")
    return config.search


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The same configuration with `path=value` overrides applied; a later override wins."""
    return with_values(config, dict(map(parse_override, overrides)))


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
    """The configuration as the string that is sent to a worker, where `from_json` validates it.

    Relative file paths become absolute: a worker has a working directory of its own.
    """
    files = {} if is_part(config.data.store) else {"data.store": config.data.store}
    if config.code:
        files["code"] = config.code
    if config.model.weights and config.model.weights != IMAGENET:
        files["model.weights"] = config.model.weights
    if config.train.init_from:
        files["train.init_from"] = config.train.init_from
    absolute = {path: file if "://" in file else str(Path(file).absolute()) for path, file in files.items()}
    return with_values(config, absolute).model_dump_json(exclude_unset=True)


def from_json(text: str) -> Config:
    return Config.model_validate_json(text)


def to_yaml(config: Config) -> str:
    """The resolved configuration, every default written out."""
    return write_yaml(config.model_dump(mode="json", exclude_none=True))


def from_yaml(text: str, where: str) -> Config:
    """The configuration that `to_yaml` wrote. Raises UserError that begins with `where`."""
    return _validate(parse_yaml(text, where), where, is_written_out=True)


def paths() -> list[str]:
    """Every path of the configuration, sections included."""
    return list(section_paths(Config))


def json_schema() -> dict[str, Any]:
    return Config.model_json_schema()


def named_parts(config: Config) -> dict[PartName, tuple[Kind, str]]:
    """The own parts that a recipe names, in its search and ablation too: their kind, and the path."""
    found: dict[PartName, tuple[Kind, str]] = {}
    tree = config.model_dump(mode="json")
    for path, kind in NAMED.items():
        value: Any = tree
        for name in path.split("."):
            value = (value or {}).get(name)
        for one in value if isinstance(value, list | dict) else [value]:
            if is_part(one):
                found.setdefault(one, (kind, path))
    for path, value in _tried_values(config):
        is_name = path in NAMED and isinstance(value, str) and value not in BUILT_IN
        if is_name and (part := find_part(NAMED[path], value)):
            found.setdefault(part, (NAMED[path], path))
    return found


def argument_paths(config: Config) -> dict[str, str]:
    """The paths of all arguments that a recipe gives, searches or compares, and the own part of each."""
    given = [*flatten(config), *(config.search.space if config.search else {})]
    points = (*config.ablate.rows.values(), *(config.search.enqueue if config.search else ()))
    given += [path for point in points for path in point]
    return {path: match[3] for path in given if (match := PART_PATH.fullmatch(path)) and match[2]}


def _tried_values(config: Config) -> Iterator[tuple[str, Any]]:
    """Path and value of what a search or an ablation tries; names that packages give are not written out."""
    for path, dimension in (config.search.space if config.search else {}).items():
        yield from ((path, value) for value in dimension.choice or ())
        if (match := PART_PATH.fullmatch(path)) and match[5]:
            yield "loss.terms", match[7]
    for point in (*config.ablate.rows.values(), *(config.search.enqueue if config.search else ())):
        for path, value in point.items():
            if (match := PART_PATH.fullmatch(path)) and match[5]:
                yield "loss.terms", match[7]
            yield from ((path, one) for one in (value if isinstance(value, list | dict) else [value]))


def _check_path(path: str) -> None:
    match = PART_PATH.fullmatch(path)
    if match and (match[5] or f"{match[1]}.args" in paths()):
        return
    if path not in paths() and not path.startswith("search.space."):
        raise UserError(describe_unknown_path(path, paths()))


def _check_searchable(path: str) -> None:
    try:
        _check_path(path)
    except UserError as error:
        raise ValueError(f"search.space: {error}") from None
    if path in ("train.epochs", "train.seed"):
        raise ValueError(f"search.space: {path} is not searchable; it must be the same in all trials")
    if path.split(".")[0] not in {"augment", "model", "loss", "optim", "train"}:
        raise ValueError(
            f"search.space: {path} is not searchable; only augment, model, loss, optim and train are"
        )
    section, _, leaf = path.partition(".")
    if isinstance(getattr(Config.model_fields[section].default, leaf, None), tuple):
        raise ValueError(
            f"search.space: {path} is a list and not searchable; compare its values in ablate.rows"
        )


def _worker_counts(config: Config) -> list[int]:
    """The worker counts of all the recipe's trainings: trials or the one training, and finalists."""
    counts = {config.scaling.num_workers}
    if config.search and config.search.confirm.num_workers:
        counts.add(config.search.confirm.num_workers)
    return sorted(counts)


def _check_point(config: Config, values: Mapping[str, Any]) -> None:
    """Raise ValueError if a point of the space is not a valid configuration of a trial or a finalist."""
    for num_workers in _worker_counts(config):
        tree = config.model_dump(mode="json", exclude_unset=True, exclude={"search"})
        _set_leaves(tree, {**values, "scaling.num_workers": num_workers})
        try:
            _to_config(tree)
        except ValidationError as error:
            path, _, message = find_problem(error, Config, tree)
            named = {path: values[path]} if path in values else values
            point = ", ".join(f"{path}={format_value(value)}" for path, value in named.items())
            raise ValueError(f"search.space: {point} is not valid: {message}") from None


def _set_leaves(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set leaves by path, a preset first, because it takes values away and others may give them.

    A recipe that was written out, such as a sweep's, has every value of its preset; those that are still the
    preset's are replaced by the new one's.
    """
    _make_way(tree, values)
    for path, value in values.items():
        _set_leaf(tree, path, value)


def _make_way(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Take out what the values at these paths replace beside themselves."""
    model, scaling = tree.get("model"), tree.get("scaling")
    if "model.preset" in values and isinstance(model, dict):
        before = PRESETS.get(model.get("preset", ModelConfig.model_fields["preset"].default), {})
        if before.keys() <= model.keys():
            for name in [name for name, value in before.items() if model[name] == value]:
                del model[name]
    if isinstance(values.get("scaling.num_workers"), Mapping) and isinstance(scaling, dict):
        scaling.pop("min_workers", None)  # the short form is of both


def _lay_over(tree: dict[str, Any], layer: Mapping[str, Any], path: str = "") -> None:
    """Put the values of a recipe over those of the one that it extends."""
    if not path:
        parts = {section: part for section, part in layer.items() if isinstance(part, dict)}
        _make_way(tree, {f"{section}.{name}": part[name] for section, part in parts.items() for name in part})
    for key, value in layer.items():
        here, below = f"{path}{key}", tree.get(key)
        is_whole = here in AS_TEXT or here == "scaling.num_workers"
        if isinstance(value, dict) and isinstance(below, dict) and not is_whole:
            _lay_over(below, value, f"{here}.")
        else:
            tree[key] = value


def _set_leaf(tree: dict[str, Any], path: str, value: Any) -> None:
    if path.startswith("search.space."):
        parts = ["search", "space", path.removeprefix("search.space.")]
    elif match := PART_PATH.fullmatch(path):
        parts = [part for part in match.groups() if part]
    else:
        parts = path.split(".")
    for part in parts[:-1]:
        child = tree.get(part)
        if not isinstance(child, dict):
            child = tree[part] = {}
        tree = child
    tree[parts[-1]] = value


def _validate(tree: Any, where: str, *, is_written_out: bool = False) -> Config:
    """With `is_written_out`, types are as encsearch took them before they were strict: jobs of then go on."""
    try:
        return _to_config(tree)
    except ValidationError as error:
        if is_written_out:
            with suppress(ValidationError):
                return Config.model_validate(tree)
        raise UserError(f"{where}: {describe_problem(error, Config, tree)}") from None


def _to_config(tree: Any) -> Config:
    """By JSON, whose types pydantic takes strictly and without asking for tuples: `true` is no number."""
    return Config.model_validate_json(json.dumps(tree, default=_plain), strict=True)


def _plain(value: Any) -> Any:
    """A value of NumPy, as samplers give it, or a path."""
    return value.item() if hasattr(value, "item") else str(value)
