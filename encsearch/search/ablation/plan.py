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
from encsearch.text import format_count

Series = Literal["rows", "codewords", "se_weights", "sizes", "presence"]
ScoringKind = Literal["multi-scale", "whole", "patches", "features"]

FCN, ENCODING, ENCNET, GATE = "FCN", "+ Encoding", "+ SE-loss", "pooled gate + SE-loss"
MULTI_SCALE = "+ multi-scale"
# Rows whose weights are scored again for the sizes of objects, and those whose presence is compared.
SIZED, PRESENT = (FCN, ENCNET, GATE), (ENCNET, GATE)
SIZE_METRICS = tuple(f"size/{size}/mIoU" for size in ("small", "medium", "large"))
PRESENCE_METRICS = ("presence/mAP", "presence/precision", "presence/recall", "scene/accuracy")
MAX_WORD_IMAGES = 2000  # of the training split, evenly spaced, of which a dictionary learns
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
class PlannedScoring:
    """A result that is scored after the trainings, with the weights of `training`.

    `kind` is `multi-scale`; `whole`, at scale 1, with the sizes of objects and the presence of classes; or
    the source of a dictionary of `num_words` words: the `features` of the weights' backbone, or `patches`,
    which need no training and have 0 epochs.
    """

    name: str
    row: str
    kind: ScoringKind
    training: str | None
    seed: int
    epochs: int
    num_words: int = 0


@dataclass(frozen=True)
class Ablation:
    """The points that are shown, their trainings, and what is scored after them."""

    points: tuple[AblationPoint, ...]
    trainings: tuple[PlannedTraining, ...]
    scorings: tuple[PlannedScoring, ...]

    def point(self, label: str, epochs: int) -> AblationPoint:
        """The row `label` at a budget, which must be one of the ablation's."""
        return next(p for p in self.points if (p.series, p.label, p.epochs) == ("rows", label, epochs))


@dataclass(frozen=True)
class AblationResult:
    """The result of a training: the metrics of its last epoch, and the seconds of all epochs.

    `name` is the training's, also its run's name in MLflow, or the name of a scoring.
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
    scorings: dict[str, PlannedScoring] = {}
    shown: list[AblationPoint] = []
    for point in points:
        shown.append(point)
        if config.ablate.scales and (point.series, point.label) == ("rows", ENCNET):
            shown.append(_score(point, "rows", MULTI_SCALE, "multi-scale", scorings))
    rows = {(point.label, point.epochs): point for point in points if point.series == "rows"}
    for epochs in budgets(config):
        fcn = rows[FCN, epochs]
        shown += [_score(rows[label, epochs], "sizes", label, "whole", scorings) for label in SIZED]
        shown += [_score(rows[label, epochs], "presence", label, "whole", scorings) for label in PRESENT]
        for count in config.ablate.words:
            label = f"{format_count(count, 'word')} of"
            shown.append(_score(fcn, "presence", f"{label} features", "features", scorings, count))
            shown.append(_score(fcn, "presence", f"{label} patches", "patches", scorings, count))
    _check_names((*trainings.values(), *scorings.values()))
    by_seed = sorted(trainings.values(), key=lambda t: config.ablate.seeds.index(t.config.train.seed))
    return Ablation(tuple(shown), tuple(by_seed), tuple(scorings.values()))


@dataclass(frozen=True)
class PointFigures:
    """The figures of a point's finished trainings or scorings, all in [0, 1].

    `estimates` are by metric, the first one the metric that the point is judged by. `over_fcn` and
    `over_encnet` are the differences from the rows "FCN" and "+ SE-loss" at the same budget, seed by seed,
    by metric too; empty for the row itself and where no seed has both. `seconds` is the median time of a
    training, or of a scoring.
    """

    point: AblationPoint
    estimates: Mapping[str, Estimate]
    over_fcn: Mapping[str, Estimate]
    over_encnet: Mapping[str, Estimate]
    seconds: float


def compute_figures(
    ablation: Ablation, results: Sequence[AblationResult], metric: str
) -> tuple[PointFigures, ...]:
    """Compute the figures of every point that has a result, in the order of the points."""
    found = {result.name: result for result in results}
    rows = {
        (_base_series(p.series), p.label, p.epochs): _by_seed(p, found)
        for p in ablation.points
        if _base_series(p.series) == p.series
    }

    def over(label: str, point: AblationPoint) -> dict[str, Estimate]:
        ours = _by_seed(point, found)
        theirs = rows.get((_base_series(point.series), label, point.epochs), {})
        if ours == theirs:
            return {}
        pairs = [(ours[seed].metrics, theirs[seed].metrics) for seed in ours if seed in theirs]
        return {
            name: estimate([a[name] - b[name] for a, b in pairs])
            for name in shown_metrics(metric, point.series)
            if pairs and all(name in metrics for pair in pairs for metrics in pair)
        }

    return tuple(
        PointFigures(
            point,
            {
                name: estimate([r.metrics[name] for r in of_it])
                for name in shown_metrics(metric, point.series)
                if all(name in r.metrics for r in of_it)
            },
            over(FCN, point),
            over(ENCNET, point),
            median(result.seconds for result in of_it),
        )
        for point in ablation.points
        if (of_it := list(_by_seed(point, found).values()))
    )


def shown_metrics(metric: str, series: Series = "rows") -> tuple[str, ...]:
    """The metrics of a series; of trainings the recipe's metric first, then the paper's two."""
    match series:
        case "rows" | "codewords" | "se_weights":
            return tuple(dict.fromkeys((metric, "mIoU", "pixAcc")))
        case "sizes":
            return SIZE_METRICS
        case "presence":
            return PRESENCE_METRICS


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


def _check_names(planned: Sequence[PlannedTraining | PlannedScoring]) -> None:
    """Check that names are unique, because they identify folders and results."""
    rows: dict[str, str] = {}
    for one in planned:
        if one.name in rows:
            raise UserError(
                f"ablation rows {rows[one.name]!r} and {one.row!r} are different, but their names are too "
                "similar; rename or leave out one"
            )
        rows[one.name] = one.row


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
        config = with_values(base, {**values, **budget})
    except UserError as error:
        raise UserError(f"ablation row {label!r}: {str(error).removeprefix('override: ')}") from None
    if patience := config.train.early_stop.patience:
        raise UserError(
            f"ablation row {label!r}: train.early_stop.patience={patience} would let rows end at other "
            "epochs than those they are compared with; set it to 0"
        )
    return config


def _score(
    trained: AblationPoint,
    series: Series,
    label: str,
    kind: ScoringKind,
    scorings: dict[str, PlannedScoring],
    num_words: int = 0,
) -> AblationPoint:
    """The point that shows what is scored with the weights of `trained`; what it takes joins `scorings`."""
    names = {}
    for seed, training in trained.trainings.items():
        row = trained.label if kind == "whole" else label
        match kind:
            case "multi-scale" | "whole":
                scoring = PlannedScoring(f"{training}-{kind}", row, kind, training, seed, trained.epochs)
            case "features":
                name = f"{num_words}-words-of-features-{trained.epochs}-epochs-seed{seed}"
                scoring = PlannedScoring(name, row, kind, training, seed, trained.epochs, num_words)
            case "patches":
                name = f"{num_words}-words-of-patches-seed{seed}"
                scoring = PlannedScoring(name, row, kind, None, seed, 0, num_words)
        names[seed] = scorings.setdefault(scoring.name, scoring).name
    return replace(trained, series=series, label=label, trainings=names)


def _base_series(series: Series) -> Series:
    """The series whose rows "FCN" and "+ SE-loss" a series is compared with."""
    match series:
        case "rows" | "codewords" | "se_weights":
            return "rows"
        case "sizes" | "presence":
            return series


def _by_seed(point: AblationPoint, found: Mapping[str, AblationResult]) -> dict[int, AblationResult]:
    return {seed: found[name] for seed, name in point.trainings.items() if name in found}


def _slug(label: str) -> str:
    """The label as a folder's name: "pooled gate + SE-loss" is pooled-gate-SE-loss."""
    return re.sub(r"\W*\s\W*", "-", label.lstrip("+ "))
