"""The figures of a context module, measured on a sample of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.transforms import to_image_tensor
from encsearch.diagnostics.figures import (
    DEAD_SHARE,
    DUPLICATE_DISTANCE,
    MIN_IMAGES,
    ClassScaling,
    CodewordFigures,
    ContextDiagnostics,
    PresenceFigures,
    ScalingFigures,
)
from encsearch.inference.bundle import Bundle
from encsearch.metrics.presence import presence_scores
from encsearch.model.context import ContextModule, EncodedSemantics
from encsearch.model.encoding import Encoding, assign
from encsearch.train.loss import class_presence


def diagnose(bundle: Bundle, samples: Sequence[Sample]) -> ContextDiagnostics | None:
    """Measure the context module on `samples`, one image after another; None for `context: none`.

    Images without a labelled pixel are left out, since their classes are unknown; None if none are left.
    """
    context = _get_context(bundle)
    labelled = [sample for sample in samples if (sample.mask != IGNORE).any()]
    if context is None or not labelled:
        return None
    encoding = _get_encoding(context)
    traces = [_trace(bundle, context, sample) for sample in labelled]
    pixels = [trace.pixels for trace in traces if trace.pixels]
    factors = [trace.scaling_factors for trace in traces if trace.scaling_factors is not None]
    presence = torch.stack([trace.presence for trace in traces])
    classes = bundle.info.classes
    return ContextDiagnostics(
        num_images=len(labelled),
        codewords=codeword_figures(pixels, encoding) if encoding else None,
        scaling=scaling_figures(torch.stack(factors), presence, classes) if factors else None,
        presence=presence_figures(torch.stack([t.probabilities for t in traces]), presence, classes),
    )


def assignment_map(bundle: Bundle, sample: Sample) -> NDArray[np.float32]:
    """The assignment (h, w, K) at the size of the encoded features; for a model with codewords."""
    context = _get_context(bundle)
    assert context is not None
    encoding = _get_encoding(context)
    assert encoding is not None
    with _watch(context) as seen, torch.inference_mode():
        bundle.model(_image(bundle, sample))
        features = seen["features"]
        assignment = _assignment(features.flatten(2)[0].T, encoding)
    maps: NDArray[np.float32] = assignment.reshape(*features.shape[2:], -1).float().numpy()
    return maps


@dataclass(frozen=True)
class PixelSums:
    """Sums over the N pixels of an image, in float64; sums of several images can be added.

    assignment (K,), entropy () of each pixel's assignment in nats, feature (C,), square () of ||x||^2.
    """

    num_pixels: int
    assignment: Tensor
    entropy: Tensor
    feature: Tensor
    square: Tensor


def pixel_sums(features: Tensor, encoding: Encoding) -> PixelSums:
    """Sum over features (N, C), as they reach the encoding, after its own preparation of them."""
    assignment = _assignment(features, encoding)
    features = encoding.prepare_inputs(features[None])[0][0].detach()
    return PixelSums(
        num_pixels=len(features),
        assignment=assignment.sum(dim=0),
        entropy=torch.special.entr(assignment).sum(),
        feature=features.double().sum(dim=0),
        square=features.double().square().sum(),
    )


def codeword_figures(images: Sequence[PixelSums], encoding: Encoding) -> CodewordFigures:
    """Figures of the codewords; every pixel of every image has the same weight."""
    num_pixels = sum(image.num_pixels for image in images)
    usage = _sum([image.assignment for image in images]) / num_pixels
    pixel_entropy = (_sum([image.entropy for image in images]) / num_pixels).item()
    mean_feature = _sum([image.feature for image in images]) / num_pixels
    mean_square = _sum([image.square for image in images]) / num_pixels
    spread = (mean_square - mean_feature.square().sum()).clamp(min=0).sqrt().item()
    usage_entropy = torch.special.entr(usage).sum().item()
    codewords = encoding.prepare_inputs(encoding.codewords[None])[1].detach().cpu().double()
    return CodewordFigures(
        usage=tuple(usage.tolist()),
        smoothing_factors=tuple(encoding.smoothing_factors.tolist()),
        norms=tuple(codewords.norm(dim=1).tolist()),
        offsets=tuple(((codewords - mean_feature).norm(dim=1) / max(spread, 1e-12)).tolist()),
        feature_norm=mean_square.sqrt().item(),
        feature_spread=spread,
        usage_entropy=usage_entropy,
        effective_number=float(np.exp(usage_entropy)),
        pixel_entropy=pixel_entropy,
        mutual_information=max(usage_entropy - pixel_entropy, 0.0),
        dead=tuple((usage < DEAD_SHARE / len(usage)).nonzero().flatten().tolist()),
        duplicates=_find_duplicates(codewords),
    )


def scaling_figures(scaling_factors: Tensor, presence: Tensor, classes: Sequence[str]) -> ScalingFigures:
    """Figures from scaling_factors (images, C) and presence (images, num_classes) bool."""
    factors = scaling_factors.double()
    # A single image has no variation: the deviation is then 0, not NaN.
    variance = factors.var(dim=0, correction=1 if len(factors) > 1 else 0)
    rows = []
    for name, with_class in zip(classes, presence.T, strict=True):
        num_with = int(with_class.sum())
        num_without = len(with_class) - num_with
        if min(num_with, num_without) < MIN_IMAGES:
            continue
        difference = factors[with_class].mean(dim=0) - factors[~with_class].mean(dim=0)
        # The expected square of the difference when `num_with` images are drawn at random, without
        # replacement, from these.
        by_chance = variance.mean() * (1 / num_with + 1 / num_without)
        rows.append(
            ClassScaling(
                name=name,
                num_with=num_with,
                num_without=num_without,
                differences=tuple(round(value, 5) for value in difference.tolist()),
                rms=difference.square().mean().sqrt().item(),
                rms_by_chance=by_chance.sqrt().item(),
            )
        )
    return ScalingFigures(factors.mean().item(), variance.sqrt().mean().item(), tuple(rows))


def presence_figures(
    probabilities: Tensor, presence: Tensor, classes: Sequence[str]
) -> tuple[PresenceFigures, ...]:
    """Figures from probabilities and presence (bool), both (images, num_classes)."""
    scores = presence_scores(probabilities, presence, classes)
    shares = presence.double().mean(dim=0).tolist()
    return tuple(
        PresenceFigures(
            name=name,
            share=share,
            precision=scores.class_precision.get(name),
            recall=scores.class_recall.get(name),
            average_precision=scores.class_ap.get(name),
        )
        for name, share in zip(classes, shares, strict=True)
    )


@dataclass(frozen=True)
class _Trace:
    """Values of one image: scaling_factors (C,) or None, probabilities and presence (num_classes,)."""

    scaling_factors: Tensor | None
    probabilities: Tensor
    presence: Tensor
    pixels: PixelSums | None


def _trace(bundle: Bundle, context: ContextModule, sample: Sample) -> _Trace:
    encoding = _get_encoding(context)
    label = torch.tensor(sample.mask)
    with _watch(context) as seen, torch.inference_mode():
        presence_logits = bundle.model(_image(bundle, sample)).presence_logits
        assert presence_logits is not None
        return _Trace(
            scaling_factors=seen["weights"][0].sigmoid() if "weights" in seen else None,
            probabilities=presence_logits[0].sigmoid().cpu(),
            presence=class_presence(label[None], len(bundle.info.classes))[0].bool(),
            pixels=pixel_sums(seen["features"].flatten(2)[0].T, encoding) if encoding else None,
        )


@contextmanager
def _watch(context: ContextModule) -> Iterator[dict[str, Tensor]]:
    """Record the next forward pass: `weights` (B, C) are the scaling factors before the sigmoid, if features
    are scaled; `features` (B, C, H, W) are the encoded features, if there are codewords.
    """
    seen: dict[str, Tensor] = {}

    def keep_weights(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["weights"] = output.cpu()

    def keep_features(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["features"] = inputs[0].cpu()

    handles = []
    if context.weigh is not None:
        handles.append(context.weigh.register_forward_hook(keep_weights))
    if isinstance(context.semantics, EncodedSemantics):
        handles.append(context.semantics.encoding.register_forward_pre_hook(keep_features))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _get_context(bundle: Bundle) -> ContextModule | None:
    context = bundle.model.context
    assert context is None or isinstance(context, ContextModule)
    return context


def _get_encoding(context: ContextModule) -> Encoding | None:
    """A copy on the CPU, where the figures are computed."""
    if not isinstance(context.semantics, EncodedSemantics):
        return None
    encoding: Encoding = deepcopy(context.semantics.encoding).cpu()
    return encoding


def _image(bundle: Bundle, sample: Sample) -> Tensor:
    """(1, 3, H, W), where the model is."""
    return to_image_tensor(sample.image)[None].to(next(bundle.model.parameters()).device)


def _assignment(features: Tensor, encoding: Encoding) -> Tensor:
    """features (N, C) -> (N, K), in float64."""
    assignment = assign(*encoding.prepare_inputs(features[None]), encoding.smoothing_factors)
    return assignment[0].detach().double()


def _find_duplicates(codewords: Tensor) -> tuple[tuple[int, int], ...]:
    """Each codeword of (K, C) that repeats an earlier one, with the first one it repeats."""
    distances = torch.cdist(codewords, codewords, compute_mode="donot_use_mm_for_euclid_dist")
    num_codewords = len(codewords)
    typical = distances.square().sum().div(max(num_codewords * (num_codewords - 1), 1)).sqrt()
    repeats = (distances < DUPLICATE_DISTANCE * typical).tril(diagonal=-1)
    # argmax of a row of booleans is the first true one.
    firsts = zip(range(num_codewords), repeats.int().argmax(dim=1).tolist(), strict=True)
    return tuple((index, first) for index, first in firsts if repeats[index].any())


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).sum(dim=0)
