"""The paper's ablation as a list of trainings, and the figures of their last epochs: pure decisions.

An `AblationPoint` is one configuration at one budget, trained with every seed; a table or a curve shows it.
Points with the same configuration (EncNet is a row, and lies on both curves) share their trainings.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from encsearch.config import Config, Head, flatten, trial_config, with_values
from encsearch.errors import UserError
from encsearch.search.statistics import Estimate, estimate

Series = Literal["rows", "codewords", "se_weights"]

FCN, ENCODING, ENCNET, GATE = "FCN", "+ Encoding", "+ SE-loss", "pooled gate + SE-loss"
MULTI_SCALE = "+ multi-scale"
SECTIONS = ("augment", "model", "loss", "optim", "train")
BUDGET = {"train.epochs": "epochs", "train.seed": "seeds"}


@dataclass(frozen=True)
class PlannedTraining:
    """One training of one configuration; `row` is the label of the first point that shows it."""

    name: str
    row: str
    config: Config


@dataclass(frozen=True)
class AblationPoint:
    """One configuration at one budget; `trainings` are their names by seed, `x` is K or alpha on a curve."""

    series: Series
    label: str
    x: float
    epochs: int
    trainings: Mapping[int, str]


@dataclass(frozen=True)
class Ablation:
    """The points that are shown, their trainings, and the results that score a training's weights again.

    `rescored` is result name -> training name, for the multi-scale row.
    """

    points: tuple[AblationPoint, ...]
    trainings: tuple[PlannedTraining, ...]
    rescored: Mapping[str, str]

    def point(self, label: str, epochs: int) -> AblationPoint:
        """The row `label` at a budget, which must be one of the ablation's."""
        return next(p for p in self.points if (p.series, p.label, p.epochs) == ("rows", label, epochs))


@dataclass(frozen=True)
class AblationResult:
    """The result of a training: the metrics of its last epoch, and the seconds of all epochs.

    `name` is the training's, also its run's name in MLflow, or the name of a `rescored` result.
    """

    name: str
    row: str
    seed: int
    epochs: int
    metrics: Mapping[str, float]
    seconds: float


def plan_ablation(config: Config) -> Ablation:
    """List the points of `config.ablate` and the trainings they need, the seeds one after the other.

    The rows are trained at every budget, the curves at `ablate.curve_epochs`. Raises UserError, naming the
    row, for values that make no valid configuration.
    """
    _check_encnet(config)
    base = trial_config(config, {"ablate": {}})
    trainings: dict[str, PlannedTraining] = {}
    points: list[AblationPoint] = []
    for series, label, x, epochs, values in _wanted(config):
        names = {}
        for seed in config.ablate.seeds:
            row = _row(base, label, values, {"train.epochs": epochs, "train.seed": seed})
            training = PlannedTraining(f"{_slug(label)}-{epochs}-epochs-seed{seed}", label, row)
            identity = json.dumps(flatten(training.config), sort_keys=True)
            names[seed] = trainings.setdefault(identity, training).name
        points.append(AblationPoint(series, label, x, epochs, names))
    _check_names(tuple(trainings.values()))
    encnets = [p for p in points if (p.series, p.label) == ("rows", ENCNET) and config.ablate.scales]
    shown = [s for p in points for s in ([p, _multi_scale(p)] if p in encnets else [p])]
    by_seed = sorted(trainings.values(), key=lambda t: config.ablate.seeds.index(t.config.train.seed))
    return Ablation(
        points=tuple(shown),
        trainings=tuple(by_seed),
        rescored={_rescored(name): name for p in encnets for name in p.trainings.values()},
    )


@dataclass(frozen=True)
class PointFigures:
    """The figures of a point's finished trainings, all in [0, 1].

    `estimates` are by metric. `over_fcn` and `over_encnet` are the differences of the recipe's metric from
    the rows "FCN" and "+ SE-loss" at the same budget, seed by seed; None for the row itself and where no
    seed has both. `seconds` is the median time of a training, or of a scoring.
    """

    point: AblationPoint
    estimates: Mapping[str, Estimate]
    over_fcn: Estimate | None
    over_encnet: Estimate | None
    seconds: float


def compute_figures(
    ablation: Ablation, results: Sequence[AblationResult], metric: str
) -> tuple[PointFigures, ...]:
    """Compute the figures of every point that has a result, in the order of the points."""
    found = {result.name: result for result in results}
    rows = {(p.label, p.epochs): _by_seed(p, found) for p in ablation.points if p.series == "rows"}

    def over(label: str, point: AblationPoint) -> Estimate | None:
        ours, theirs = _by_seed(point, found), rows.get((label, point.epochs), {})
        if ours == theirs:
            return None
        gains = [ours[seed].metrics[metric] - theirs[seed].metrics[metric] for seed in ours if seed in theirs]
        return estimate(gains) if gains else None

    return tuple(
        PointFigures(
            point,
            {name: estimate([r.metrics[name] for r in of_it]) for name in shown_metrics(metric)},
            over(FCN, point),
            over(ENCNET, point),
            median(result.seconds for result in of_it),
        )
        for point in ablation.points
        if (of_it := list(_by_seed(point, found).values()))
    )


def shown_metrics(metric: str) -> tuple[str, ...]:
    """The recipe's metric first, then the paper's two."""
    return tuple(dict.fromkeys((metric, "mIoU", "pixAcc")))


def budgets(config: Config) -> tuple[int, ...]:
    """The budgets of the rows, in epochs, ascending."""
    return tuple(sorted(config.ablate.epochs or (config.train.epochs,)))


def _wanted(config: Config) -> Iterator[tuple[Series, str, float, int, Mapping[str, Any]]]:
    """Yield series, label, x, epochs and values of every point."""
    ablate = config.ablate
    encnet = {"model.context": "encoding"}
    gate = {"model.context": "gate"}
    rows: dict[str, Mapping[str, Any]] = {
        FCN: {"model.context": "none"},
        ENCODING: {**encnet, "loss.se_weight": 0.0},
        ENCNET: encnet,
        GATE: gate,
        **{_network_of(head): {"model.context": "none", "model.head": head} for head in ablate.heads},
    }
    for label in ablate.rows:
        if label in rows or label == MULTI_SCALE:
            raise UserError(f"ablate.rows: {label!r} is a row of every ablation; give yours another name")
    for epochs in budgets(config):
        for label, values in {**rows, **ablate.rows}.items():
            yield "rows", label, 0.0, epochs, values
    curve_epochs = ablate.curve_epochs or budgets(config)[0]
    if ablate.codewords:
        yield "codewords", "K=0", 0.0, curve_epochs, gate
    for k in sorted(ablate.codewords):
        yield "codewords", f"K={k}", k, curve_epochs, {**encnet, "model.num_codewords": k}
    for alpha in sorted(ablate.se_weights):
        yield "se_weights", f"alpha={alpha:g}", alpha, curve_epochs, {**encnet, "loss.se_weight": alpha}


def _network_of(head: Head) -> str:
    """Name the head without context module, as its paper does."""
    match head:
        case "fcn":
            return FCN
        case "pspnet":
            return "PSPNet"
        case "deeplabv3":
            return "DeepLabv3"
        case "deeplabv3plus":
            return "DeepLabv3+"
        case "unet":
            return "U-Net"
        case "refinenet":
            return "RefineNet"


def _check_encnet(config: Config) -> None:
    """Check that the recipe is an EncNet: the rows are steps from FCN to it."""
    if config.model.head != "fcn":
        raise UserError(
            f"model.head={config.model.head}: the ablation goes from FCN to EncNet, which have the head fcn; "
            "leave model.head out and name other heads in ablate.heads"
        )
    if config.loss.se_weight == 0:
        raise UserError('loss.se_weight=0: the row "+ SE-loss" needs a weight; try 0.2')


def _check_names(trainings: Sequence[PlannedTraining]) -> None:
    """Check that names are unique, because they identify folders and results."""
    rows: dict[str, str] = {}
    for training in trainings:
        if training.name in rows:
            raise UserError(
                f"ablation rows {rows[training.name]!r} and {training.row!r} are different trainings, but "
                "their names are too similar; rename or leave out one"
            )
        rows[training.name] = training.row


def _row(base: Config, label: str, values: Mapping[str, Any], budget: Mapping[str, int]) -> Config:
    """The row's configuration; `budget` is its epochs and seed."""
    for path in values:
        if path in budget:
            raise UserError(f"ablation row {label!r}: {path} is set by ablate.{BUDGET[path]}; leave it out")
        section, _, leaf = path.partition(".")
        if section not in SECTIONS:
            raise UserError(f"ablation row {label!r}: {path} is none of {', '.join(SECTIONS)}; leave it out")
        if not leaf:
            raise UserError(
                f"ablation row {label!r}: {path} would set every value of its section; name the values, as "
                "in model.dropout"
            )
    try:
        return with_values(base, {**values, **budget})
    except UserError as error:
        raise UserError(f"ablation row {label!r}: {str(error).removeprefix('override: ')}") from None


def _multi_scale(encnet: AblationPoint) -> AblationPoint:
    names = {seed: _rescored(name) for seed, name in encnet.trainings.items()}
    return replace(encnet, label=MULTI_SCALE, trainings=names)


def _rescored(training: str) -> str:
    return f"{training}-multi-scale"


def _by_seed(point: AblationPoint, found: Mapping[str, AblationResult]) -> dict[int, AblationResult]:
    return {seed: found[name] for seed, name in point.trainings.items() if name in found}


def _slug(label: str) -> str:
    """The label as a folder's name: "pooled gate + SE-loss" is pooled-gate-SE-loss."""
    return re.sub(r"\W*\s\W*", "-", label.lstrip("+ "))
