"""Decide whether a model takes the champion's place: pure functions; `encsearch promote` acts on them.

Both models are scored on the same images, and the gain is judged by a paired bootstrap over these images.
The bound does not know two things: the images may be no sample of those to come, and a set on which many
candidates were judged favours those that were chosen on it. So every decision says how often it was used.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from encsearch.config import PromoteConfig
from encsearch.errors import UserError
from encsearch.text import (
    format_count,
    format_names,
    format_number,
    format_param,
    format_points,
    format_score,
)

TOLERANCE = 1e-9  # 0.57 - 0.55 is 0.0199999999999999 in binary: a bound of exactly the margin must pass
RESAMPLES = 2000
SEED = 0
WEIGHTS_AT_ONCE = 2**22  # float64: 32 MiB

Pixels = NDArray[np.int64]
Values = NDArray[np.float64]
Counts = Pixels | Values


@dataclass(frozen=True)
class Candidate:
    """A model as the gate sees it; the champion is one too.

    `pixels` (N, num_classes, 3) counts the pixels found, true and predicted, on the same N images for both
    (`metrics.per_image`), and `own` (N, ...) has what an own metric counts. `weights` is their SHA-256,
    `version` the version in the registry, if there is one.
    """

    run_id: str
    weights: str
    pixels: Pixels
    version: str | None = None
    latency_ms: float | None = None
    own: Values | None = None


@dataclass(frozen=True)
class Figure:
    """What models are compared by: its name, and its value for the sums (...) of the counts over a set."""

    name: str
    score: Callable[[Any], float]

    def score_sets(self, sums: Values) -> Values:
        """(R, ...) -> (R,): the value of each set."""
        return np.array([self.score(one) for one in sums])


@dataclass(frozen=True)
class Gain:
    """A gain in the figure that decides, and its one-sided lower bound."""

    value: float
    lower: float


@dataclass(frozen=True)
class GateCheck:
    passed: bool
    text: str


@dataclass(frozen=True)
class GateDecision:
    """The verdict and its checks, each a sentence with its figures.

    `gain` is None without a champion to compare with; `own` is the value of an own figure, if that decides.
    """

    mean_iou: float
    gain: Gain | None
    checks: tuple[GateCheck, ...]
    own: float | None = None

    @property
    def promote(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of all checks; those against the candidate come first."""
        return tuple(check.text for check in sorted(self.checks, key=lambda check: check.passed))


def decide(
    candidate: Candidate,
    champion: Candidate | None,
    classes: Sequence[str],
    gate: PromoteConfig,
    place: str = "",
    untrained: Collection[str] = (),
    own: Figure | None = None,
) -> GateDecision:
    """Make every check of the gate, so that all reasons against a candidate are reported at once.

    The candidate must surely be better than the champion by `gate.margin`; no class may fall far; the floors
    and the numbers of images and classes are checked with and without a champion. `place` says where the
    latencies were measured, `untrained` are the classes without a training pixel. `own`, a figure of the
    candidates' own counts, decides in place of mIoU on the gain and on `gate.floor`. Raises UserError when no
    image has a labelled pixel.
    """
    assert champion is None or champion.pixels.shape == candidate.pixels.shape, "not the same images"
    labelled = np.flatnonzero(candidate.pixels[:, :, 1].sum(axis=1))
    if not labelled.size:
        raise UserError(f"0 of {len(candidate.pixels)} images have a labelled pixel: nothing to compare on")
    candidate_pixels = candidate.pixels[labelled]
    figure = own or MEAN_IOU
    counts = _counts(candidate, own)[labelled]
    gain = None
    if champion:
        gain = paired_gain(counts, _counts(champion, own)[labelled], gate.confidence, figure)
    value = figure.score(counts.sum(axis=0))
    checks = [
        _check_image_count(labelled.size, gate.min_images),
        _check_class_count(candidate_pixels, classes, untrained, gate.min_class_share),
    ]
    if champion and gain:
        checks += _check_confidence(labelled.size, gate.confidence)
        checks += [_check_is_another(candidate, champion), _check_gain(figure, value, gain, gate)]
        checks += _check_drops(candidate_pixels, champion.pixels[labelled], classes, gate)
    else:
        checks.append(_check_first(figure, value, gate.floor))
    checks += _check_floors(candidate_pixels, classes, gate)
    checks += _check_latency(candidate, champion, gate.latency_limit_ms, place)
    return GateDecision(mean_iou(candidate_pixels.sum(axis=0)), gain, tuple(checks), value if own else None)


def check_floors(gate: PromoteConfig, classes: Sequence[str]) -> None:
    """Raises UserError for a floor of a class that the model does not have."""
    if isinstance(gate.class_floor, dict):
        for name in gate.class_floor:
            if name not in classes:
                raise UserError(
                    f"promote.class_floor names {name}, which is none of the model's {len(classes)} classes;"
                    f" try one of {', '.join(classes)}"
                )


def paired_gain(candidate: Counts, champion: Counts, confidence: float, figure: Figure) -> Gain:
    """Return the gain of counts (N, ...) over others, and its lower bound by resampling the N images.

    The bound is the expanded percentile of Hesterberg (The American Statistician 69, 2015, section 5.3): the
    plain one is too narrow for few images, by sqrt((N - 1) / N) and by the normal in place of Student's t.
    """
    gains = resampled_gains(candidate, champion, figure)
    freedom = max(1, len(candidate) - 1)
    reach = float(student_t.ppf(confidence, freedom)) * ((freedom + 1) / freedom) ** 0.5
    lower = float(np.quantile(gains, NormalDist().cdf(-reach)))
    return Gain(figure.score(candidate.sum(axis=0)) - figure.score(champion.sum(axis=0)), lower)


def resampled_gains(
    candidate: Counts, champion: Counts, figure: Figure, resamples: int = RESAMPLES, seed: int = SEED
) -> Values:
    """Return the gain on each of `resamples` sets of N images, drawn with replacement.

    Both models get the same sets. A set is stored as the count of each image, so that all sums are one matrix
    product, exact in float64 below 2 ** 53 pixels.
    """
    num_images = len(candidate)
    rng = np.random.default_rng(seed)
    tables = [pixels.reshape(num_images, -1).astype(np.float64) for pixels in (candidate, champion)]
    parts: list[Values] = []
    at_once = max(1, WEIGHTS_AT_ONCE // max(num_images, tables[0].shape[1]))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(float)
        sums = ((weights @ table).reshape(size, *candidate.shape[1:]) for table in tables)
        ours, theirs = map(figure.score_sets, sums)
        parts.append(ours - theirs)
    return np.concatenate(parts)


def mean_iou(pixels: Pixels) -> float:
    """Return the mIoU of sums (C, 3); classes that truth and prediction lack are left out, as in `scores`."""
    ious = class_ious(pixels)
    return sum(ious.values()) / len(ious)


def class_ious(pixels: Pixels) -> dict[int, float]:
    """Return the IoU of each class by its index."""
    found, truth, predicted = pixels.T
    union = truth + predicted - found
    return {int(index): int(found[index]) / int(union[index]) for index in np.flatnonzero(union)}


class _MeanIoU(Figure):
    """Of pixel counts (C, 3), all sets at once."""

    def score_sets(self, sums: Values) -> Values:
        """(R, C, 3) -> (R,): `mean_iou` of each set; every set has a labelled pixel."""
        found, union = sums[..., 0], sums[..., 1] + sums[..., 2] - sums[..., 0]
        ious = np.divide(found, union, out=np.zeros_like(found), where=union > 0)
        means: Values = ious.sum(axis=1) / (union > 0).sum(axis=1)
        return means


MEAN_IOU = _MeanIoU("mIoU", mean_iou)


def _counts(model: Candidate, own: Figure | None) -> Counts:
    if own is None:
        return model.pixels
    assert model.own is not None, "an own figure needs its counts"
    return model.own


def _check_image_count(number: int, least: int) -> GateCheck:
    images = format_count(number, "labelled image")
    if number < least:
        return GateCheck(False, f"the set has {images}, fewer than min_images={least}")
    return GateCheck(True, images)


def _check_class_count(
    candidate: Pixels, classes: Sequence[str], untrained: Collection[str], least: float
) -> GateCheck:
    shown = {classes[index] for index in _shown_classes(candidate, 1)}
    lacking = {
        "without a training pixel": [name for name in classes if name in untrained],
        "not shown by the set": [name for name in classes if name not in shown and name not in untrained],
    }
    known = len(classes) - sum(map(len, lacking.values()))
    reasons = [f"{format_names(names)} {reason}" for reason, names in lacking.items() if names]
    text = f"{known} of {format_count(len(classes), 'class')} trained and scored"
    if reasons:
        text += f" ({'; '.join(reasons)})"
    if known < least * len(classes) - TOLERANCE:
        return GateCheck(False, f"{text}, fewer than min_class_share={format_param(least)}")
    return GateCheck(True, text)


def _check_first(figure: Figure, value: float, floor: float) -> GateCheck:
    text = f"no model to compare with; the candidate has {figure.name} {format_score(value)}"
    if value < floor - TOLERANCE:
        return GateCheck(False, f"{text}, below promote.floor, {format_score(floor)}")
    return GateCheck(True, text)


def _check_confidence(number: int, confidence: float) -> Iterator[GateCheck]:
    """All of N images favour an equal model by luck in 2 ** -N of cases, which no resampling can show."""
    least = math.ceil(-math.log2(1 - confidence) - TOLERANCE)
    if number < least:
        yield GateCheck(
            False,
            f"{format_count(number, 'labelled image')}, too few for {format_param(confidence)} confidence, "
            f"which needs {format_count(least)}",
        )


def _check_is_another(candidate: Candidate, champion: Candidate) -> GateCheck:
    is_same_run = candidate.run_id == champion.run_id
    if candidate.weights == champion.weights:
        whose = f"run {candidate.run_id} is already" if is_same_run else "its weights are those of"
        return GateCheck(False, f"{whose} the {_name_champion(champion)}")
    if is_same_run:  # which went on after it was promoted
        return GateCheck(
            True, f"compared with an earlier checkpoint of its run, the {_name_champion(champion)}"
        )
    return GateCheck(True, f"compared with the {_name_champion(champion)}")


def _check_gain(figure: Figure, value: float, gain: Gain, gate: PromoteConfig) -> GateCheck:
    """The bound must be above 0 in any case: an equal model is refused, and so is an unsure gain."""
    passed = gain.lower > 0 and gain.lower >= gate.margin - TOLERANCE
    text = (
        f"{figure.name} {format_score(value)} against {format_score(value - gain.value)}: "
        f"{format_points(gain.value, signed=True)}, with {format_param(gate.confidence)} confidence at least "
        f"{format_points(gain.lower, signed=True)}"
    )
    margin = f"the margin of {format_points(gate.margin)}"
    if passed:
        return GateCheck(True, f"{text}, which reaches {margin}")
    if gain.value <= 0:
        return GateCheck(False, f"{text}: the candidate is not better")
    needed = f"above 0 and at least {margin}" if gate.margin else "above 0"
    return GateCheck(False, f"{text}, which is not {needed}")


def _check_drops(
    candidate: Pixels, champion: Pixels, classes: Sequence[str], gate: PromoteConfig
) -> Iterator[GateCheck]:
    if gate.max_class_drop is None:
        return
    ours, theirs = class_ious(candidate.sum(axis=0)), class_ious(champion.sum(axis=0))
    drops = {index: theirs[index] - ours[index] for index in _shown_classes(candidate, gate.min_class_images)}
    allowed = f"max_class_drop={format_param(gate.max_class_drop)}"
    fallen = {index: drop for index, drop in drops.items() if drop > gate.max_class_drop + TOLERANCE}
    for index in fallen:
        fall = f"{format_score(theirs[index])} to {format_score(ours[index])}"
        yield GateCheck(False, f"{classes[index]} falls from IoU {fall}, over {allowed}")
    if drops and not fallen:
        worst = max(drops, key=drops.__getitem__)
        change = format_points(-drops[worst], signed=True)
        yield GateCheck(True, f"no class falls beyond {allowed} (worst: {classes[worst]} {change})")


def _check_floors(candidate: Pixels, classes: Sequence[str], gate: PromoteConfig) -> Iterator[GateCheck]:
    floors = _floor_by_class(candidate, classes, gate)
    ious = class_ious(candidate.sum(axis=0))
    shown = set(_shown_classes(candidate, 1))
    missed = []
    for index, floor in floors.items():
        if index not in shown:
            missed.append(f"no image shows {classes[index]}, whose floor is {format_score(floor)}")
        elif ious[index] < floor - TOLERANCE:
            iou = format_score(ious[index])
            missed.append(f"{classes[index]} has IoU {iou}, below its floor of {format_score(floor)}")
    yield from (GateCheck(False, text) for text in missed)
    if floors and not missed:
        yield GateCheck(True, f"{len(floors)} of {len(classes)} classes have a floor and reach it")


def _floor_by_class(candidate: Pixels, classes: Sequence[str], gate: PromoteConfig) -> Mapping[int, float]:
    floor = gate.class_floor
    if isinstance(floor, dict):
        return {classes.index(name): value for name, value in floor.items()}
    return dict.fromkeys(_shown_classes(candidate, gate.min_class_images), floor)


def _shown_classes(pixels: Pixels, least: int) -> list[int]:
    """List the classes that the truth of at least `least` images shows."""
    return [int(index) for index in np.flatnonzero((pixels[:, :, 1] > 0).sum(axis=0) >= least)]


def _check_latency(
    candidate: Candidate, champion: Candidate | None, limit_ms: float | None, place: str
) -> Iterator[GateCheck]:
    if limit_ms is None:
        return
    assert candidate.latency_ms is not None, "a limit needs a measurement"
    rival = (
        f", the {_name_champion(champion)} {format_number(champion.latency_ms)} ms"
        if champion and champion.latency_ms
        else ""
    )
    passed = candidate.latency_ms <= limit_ms
    relation = "within" if passed else "over"
    text = (
        f"{format_number(candidate.latency_ms)} ms an image{rival}, measured on {place}: {relation} the limit"
    )
    yield GateCheck(passed, f"{text} of {format_number(limit_ms)} ms")


def _name_champion(champion: Candidate) -> str:
    return f"current model, version {champion.version}"
