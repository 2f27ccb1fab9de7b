"""Augment samples, and turn their pixels into what the model takes.

One affine warp and one colour matrix do all of the augmentation; a chain of separate operations takes seven
times as long and interpolates the picture more than once. The warp is done where the sample is decoded. The
matrix is done together with the normalisation, where the model is, so that 1 byte a channel travels there.
"""

import math
from functools import cache

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
_CACHED_PIXELS = 2**15
_MEAN_COLOUR = tuple(round(255 * channel) for channel in MEAN)


def augment_sample(
    sample: Sample, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[Sample, NDArray[np.float32] | None]:
    """A randomly warped copy, and its colour matrix (3, 4) for `normalise`, None where there is no jitter.

    (h, w) of the copy is the crop, or the size of the sample when `augment.crop` is None. The image is
    interpolated bilinearly, the mask is not; pixels outside the sample have the mean colour and are ignored.
    An `augment` that changes nothing gives the sample itself.
    """
    height, width = sample.mask.shape
    out_height, out_width = (augment.crop, augment.crop) if augment.crop else (height, width)
    warp = _draw_warp((height, width), (out_height, out_width), augment, rng)
    image, mask = sample.image, sample.mask
    if warp != _IDENTITY or (out_height, out_width) != (height, width):
        image, mask = _apply_warp(image, mask, (out_height, out_width), warp)
    return Sample(sample.id, image, mask), _draw_colours(augment.jitter, rng)


def to_image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, normalised by MEAN and STD."""
    return normalise(torch.from_numpy(np.array(image))[None])[0]


def normalise(images: Tensor, colours: Tensor | None = None) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32, normalised by MEAN and STD, where the images are.

    With `colours` (B, 3, 4) float32, each image's matrix on (r, g, b, 1) in 0..255, which normalises too.
    Nothing is copied to the device or read back from it.
    """
    channels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if colours is None:
        weights, offsets = _normalisation()
        for channel in range(3):
            channels[:, channel] *= weights[channel]
            channels[:, channel] += offsets[channel]
        return channels
    # Not a matrix product: on GPUs it would be done in TF32, which has 10 bits, if that is allowed.
    mixed = torch.empty_like(channels)
    batch, _, height, width = channels.shape
    # On a CPU in parts that stay in its cache.
    rows = max(1, _CACHED_PIXELS // (batch * width)) if images.device.type == "cpu" else height
    for part, total in zip(channels.split(rows, dim=2), mixed.split(rows, dim=2), strict=True):
        torch.mul(colours[:, :, 0, None, None], part[:, None, 0], out=total)
        total += colours[:, :, 3, None, None]
        for channel in (1, 2):
            total += colours[:, :, channel, None, None] * part[:, None, channel]
    return mixed


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


def _draw_colours(jitter: float, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Brightness, contrast, saturation and the normalisation as one (3, 4) matrix on (r, g, b, 1) in 0..255.

    Nothing is clipped. Contrast is about the mean colour of ImageNet: with the image's own mean it would not
    be a fixed matrix.
    """
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, size=3)
    if jitter == 0:
        return None
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    linear = brightness * contrast * saturate
    mean, std = np.asarray(MEAN), np.asarray(STD)
    constant = ((1 - contrast) * mean - mean) / std
    return np.column_stack([linear / std[:, None] / 255, constant]).astype(np.float32)


@cache
def _normalisation() -> tuple[list[float], list[float]]:
    """Weight and offset of each channel, rounded to float32."""
    mean, std = np.asarray(MEAN), np.asarray(STD)
    return (1 / std / 255).astype(np.float32).tolist(), (-mean / std).astype(np.float32).tolist()
