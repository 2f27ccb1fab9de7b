"""Turn a decoded sample into the tensors that the model takes.

One affine warp and one colour matrix do all of the augmentation: they cost 6 ms a sample, while a chain of
separate operations costs 42 ms and interpolates the picture more than once.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from encsearch.config import AugmentConfig
from encsearch.data.datasets import IGNORE, Sample

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green, blue in 0..1, with which the pretrained backbones were trained."""

STD = (0.229, 0.224, 0.225)

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_MEAN_COLOUR = tuple(round(255 * channel) for channel in MEAN)


def train_transform(
    sample: Sample, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A randomly augmented copy: image (3, h, w) float32 normalised, label (h, w) int64.

    (h, w) is the crop, or the size of the sample when `augment.crop` is None. The image is interpolated
    bilinearly, the mask is not; pixels outside the sample have the mean colour and are ignored. An `augment`
    that changes nothing gives exactly what `eval_transform` gives.
    """
    height, width = sample.mask.shape
    out_height, out_width = (augment.crop, augment.crop) if augment.crop else (height, width)
    warp = _draw_warp((height, width), (out_height, out_width), augment, rng)
    image, mask = sample.image, sample.mask
    if warp != _IDENTITY or (out_height, out_width) != (height, width):
        image, mask = _apply_warp(image, mask, (out_height, out_width), warp)
    return _apply_colours(image, _draw_colours(augment.jitter, rng)), _to_label(mask)


def eval_transform(sample: Sample) -> tuple[Tensor, Tensor]:
    """The sample as it is: image (3, H, W) float32 normalised, label (H, W) int64."""
    return to_image_tensor(sample.image), _to_label(sample.mask)


def to_image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, normalised by MEAN and STD."""
    return _apply_colours(image, np.eye(3, 4))


_Affine = tuple[float, float, float, float, float, float]
_IDENTITY: _Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _draw_warp(
    size: tuple[int, int], out_size: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator
) -> _Affine:
    """(a, b, c, d, e, f): pixel (u, v) of the result is pixel (a u + b v + c, d u + e v + f) of the sample.

    Read backwards, as PIL does: a pixel of the crop -> of the zoomed sample -> unrotated and unzoomed about
    the centre -> unflipped. All random numbers are drawn in any case, so that one setting does not change
    what another one draws.
    """
    (height, width), (out_height, out_width) = size, out_size
    zoom = rng.uniform(*augment.scale)
    angle = math.radians(rng.uniform(-augment.rotate_deg, augment.rotate_deg))
    sign = -1.0 if rng.random() < augment.flip else 1.0
    left = _draw_offset(zoom * width - out_width, rng)
    top = _draw_offset(zoom * height - out_height, rng)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    u, v = left - zoom * width / 2, top - zoom * height / 2
    return (
        sign * cos,
        sign * sin,
        sign * (cos * u + sin * v) + width / 2,
        -sin,
        cos,
        -sin * u + cos * v + height / 2,
    )


def _draw_offset(room: float, rng: np.random.Generator) -> int:
    """The crop's offset in the zoomed sample; a negative `room` is padding, split at random as well."""
    return round(rng.uniform(min(room, 0.0), max(room, 0.0)))


def _apply_warp(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], out_size: tuple[int, int], warp: _Affine
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    out_height, out_width = out_size
    warped_image = Image.fromarray(image).transform(
        (out_width, out_height),
        Image.Transform.AFFINE,
        warp,
        Image.Resampling.BILINEAR,
        fillcolor=_MEAN_COLOUR,
    )
    warped_mask = Image.fromarray(mask).transform(
        (out_width, out_height), Image.Transform.AFFINE, warp, Image.Resampling.NEAREST, fillcolor=IGNORE
    )
    return np.asarray(warped_image), np.asarray(warped_mask)


def _draw_colours(jitter: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Brightness, contrast and saturation as one (3, 4) matrix on (r, g, b, 1) in 0..1, without clipping.

    Contrast is about the mean colour of ImageNet: with the image's own mean it would not be a fixed matrix.
    """
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, size=3)
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    linear = brightness * contrast * saturate
    return np.column_stack([linear, (1 - contrast) * np.asarray(MEAN)])


def _apply_colours(image: NDArray[np.uint8], colours: NDArray[np.float64]) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32: `colours`, then the normalisation, as one matrix.

    Not a matrix product: BLAS starts one thread per core for it, and these compete with the loading threads
    (8 ms instead of 2 on two cores).
    """
    mean, std = np.asarray(MEAN), np.asarray(STD)
    linear = (colours[:, :3] / std[:, None] / 255).astype(np.float32)
    constant = ((colours[:, 3] - mean) / std).astype(np.float32)
    channels = image.transpose(2, 0, 1).astype(np.float32, order="C")
    planes = np.empty_like(channels)
    for plane, weights, offset in zip(planes, linear, constant, strict=True):
        plane[:] = offset
        for weight, channel in zip(weights, channels, strict=True):
            if weight:
                plane += weight * channel
    return torch.from_numpy(planes)


def _to_label(mask: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(mask.astype(np.int64))
