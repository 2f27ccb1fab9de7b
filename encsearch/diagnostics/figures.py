"""The figures of a context module as plain values, and their findings as sentences."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter

from encsearch.text import format_number, format_score, format_share

JSON_FILE = "context.json"
CODEWORDS_FILE = "codewords.png"
ASSIGNMENT_FILE = "assignment.png"
SCALING_FILE = "scaling.png"

DEAD_SHARE = 0.1
"""A codeword is dead if it takes less than this part of an even share: a usage under DEAD_SHARE / K."""

DUPLICATE_DISTANCE = 0.1
"""Two codewords are duplicates if their distance is under this part of the root mean square of all distances
between codewords."""

MIN_IMAGES = 3
"""Images needed both with and without a class to compare them: means over fewer say nothing."""

LIMITS = (
    "These figures describe one training; they do not prove that codewords or scaling factors make it "
    "better: only trainings without them, over several seeds, can show that. A class that goes with other "
    "scaling factors need not cause them, since another class of the same scenes may. A map shows where a "
    "codeword takes part and not what it stands for. Dead or duplicate codewords may do no harm."
)


@dataclass(frozen=True)
class CodewordFigures:
    """Figures of the last Context Encoding Module; the first four have one value for each of the K codewords.

    usage: mean assignment over all pixels, sums to 1. offsets: distance of the codeword to the mean feature,
    in feature spreads. feature_norm is the root mean square of ||x||, feature_spread the root mean square of
    the distance of the features to their mean.

    Entropies are in nats. effective_number = exp(usage_entropy) is the number of evenly used codewords with
    that entropy; pixel_entropy is the mean entropy of a single pixel's assignment. Their difference,
    mutual_information, is the information of a pixel about its codeword: it is 0 if every pixel is assigned
    alike, however even the usage is. duplicates are (codeword, the first earlier one that it repeats).
    """

    usage: tuple[float, ...]
    smoothing_factors: tuple[float, ...]
    norms: tuple[float, ...]
    offsets: tuple[float, ...]
    feature_norm: float
    feature_spread: float
    usage_entropy: float
    effective_number: float
    pixel_entropy: float
    mutual_information: float
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ClassScaling:
    """Scaling factors of the images that contain a class, less those of the others, each a mean over images.

    differences has one value per channel, rms is their root mean square, and rms_by_chance the value expected
    for as many images chosen without regard to the class.
    """

    name: str
    num_with: int
    num_without: int
    differences: tuple[float, ...]
    rms: float
    rms_by_chance: float


@dataclass(frozen=True)
class ScalingFigures:
    """Mean of all scaling factors, and deviation of a channel's over the images, averaged over the channels.

    `classes` holds the classes with MIN_IMAGES on either side.
    """

    mean: float
    deviation: float
    classes: tuple[ClassScaling, ...]


@dataclass(frozen=True)
class PresenceFigures:
    """Figures of the SE-loss branch for one class; `share` is the share of images with the class.

    precision and recall are at a probability of 0.5. precision is None if the class is never predicted;
    recall and average_precision are None if no image has it. Chance has an average precision of about
    `share`.
    """

    name: str
    share: float
    precision: float | None
    recall: float | None
    average_precision: float | None


@dataclass(frozen=True)
class ContextDiagnostics:
    """`codewords` is None for the pooled gate, which has none, `scaling` where classes alone are scaled."""

    num_images: int
    codewords: CodewordFigures | None
    scaling: ScalingFigures | None
    presence: tuple[PresenceFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def to_json(diagnostics: ContextDiagnostics) -> str:
    """The diagnostics as JSON text; `from_json` is the inverse."""
    return json.dumps(diagnostics.to_dict())


def from_json(text: str) -> ContextDiagnostics:
    """Invert `to_json`. Raises ValueError for other text."""
    return TypeAdapter(ContextDiagnostics).validate_json(text)


def describe_findings(diagnostics: ContextDiagnostics) -> tuple[str, ...]:
    """The findings in the figures, as sentences; `LIMITS` belongs below them."""
    codewords, scaling = diagnostics.codewords, diagnostics.scaling
    found = _codeword_findings(codewords) if codewords else []
    found += _scaling_findings(scaling) if scaling else []
    return (*found, *_presence_findings(diagnostics.presence))


def _codeword_findings(figures: CodewordFigures) -> list[str]:
    num_codewords = len(figures.usage)
    if num_codewords == 1:
        return ["One codeword takes every pixel, so there is no assignment to describe."]
    found = [
        f"The mean assignment over the {num_codewords} codewords is as concentrated as an even one over "
        f"{format_number(figures.effective_number)} (exp of its entropy). {len(figures.dead)} codewords are "
        f"dead, with less than {format_number(DEAD_SHARE)} of an even share, and {len(figures.duplicates)} "
        "repeat another one.",
        f"A pixel gives {format_number(figures.mutual_information)} nats about its codeword; 0 would mean "
        f"the same assignment for every pixel, {format_number(log(num_codewords))} one codeword per pixel, "
        "all in even use.",
        f"The codewords lie {format_number(min(figures.offsets))} to {format_number(max(figures.offsets))} "
        f"feature spreads from the mean feature, {format_number(median(figures.offsets))} in the median.",
    ]
    negative = [index for index, factor in enumerate(figures.smoothing_factors) if factor < 0]
    if negative:
        share = sum(figures.usage[index] for index in negative)
        found.append(
            f"{len(negative)} of {num_codewords} smoothing factors are negative: these codewords are drawn "
            f"to pixels far from them. They take {format_share(share)} of the assignment."
        )
    return found


def _scaling_findings(scaling: ScalingFigures) -> list[str]:
    found = [
        f"The scaling factors are {format_number(scaling.mean)} on average; one channel's deviates by "
        f"{format_number(scaling.deviation)} between images."
    ]
    if scaling.classes:
        clear = [row for row in scaling.classes if row.rms > 2 * row.rms_by_chance]
        top = max(scaling.classes, key=lambda row: row.rms)
        found.append(
            f"For {len(clear)} of {len(scaling.classes)} classes, the scaling factors of images with the "
            f"class differ from the others' more than twice as much as by chance; most for "
            f"{top.name} ({format_number(top.rms)} root mean square, {format_number(top.rms_by_chance)} by "
            "chance)."
        )
    return found


def _presence_findings(presence: Sequence[PresenceFigures]) -> list[str]:
    rows = [(row.average_precision, row.share) for row in presence if row.share < 1]
    known = [(value, share) for value, share in rows if value is not None]
    if not known:
        return []
    precisions, shares = zip(*known, strict=True)
    return [
        f"Class presence has a mean average precision of {format_score(fmean(precisions))} over the "
        f"{len(known)} classes that some images have and others do not; chance has about "
        f"{format_score(fmean(shares))}."
    ]
