"""Augment samples, and turn their pixels into what the model takes.

One affine warp, one colour matrix and a blur are all of the augmentation; torchvision's chains of separate
operations take more than twice as long (`benchmarks/data.py`) and interpolate the picture more than once. The
warp and the blur are done where the sample is decoded. The matrix is done together with the normalisation,
where the model is, so that 1 byte a channel travels there.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from encsearch.config import AugmentConfig
from encsearch.data.datasets import IGNORE, Sample
from encsearch.errors import UserError
from encsearch.parts import PartName, TransformPart, bind_part, code_from, code_root, find_code

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

    (h, w) of the copy is `augment.image_size` of the sample's. The image is interpolated bilinearly, the mask
    is not; pixels outside the sample have the mean colour and are ignored. An `augment` that changes nothing
    gives the sample itself.

    The EncNet paper (Zhang et al., CVPR 2018, section 4) flips, scales by 0.5 to 2, rotates by -10 to 10
    degrees and crops, padding with zero where needed. The authors' code (PyTorch-Encoding, datasets/base.py)
    zooms one side to a random length of 0.5 to 2 times `base_size`: the longer side today, the shorter one in
    the many codes that took it over. Those rotate as well, and blur the crop by
    `GaussianBlur(radius=random())` with probability 0.5. mmsegmentation zooms the shorter side for ADE20K, to
    512 px (`RandomResize`). Here that is `augment.shorter_side` with `augment.scale`. These codes also zoom
    what they validate; here images are validated at the size that they are stored in.
    """
    height, width = sample.mask.shape
    out_size = augment.image_size(height, width)
    draws = _draw(augment, rng)
    pixel = _choose_pixel(sample.mask, draws) if draws.uniform < augment.class_uniform else None
    warp = _find_warp((height, width), out_size, augment.base_zoom(height, width), draws, pixel)
    image, mask = sample.image, sample.mask
    if warp != _IDENTITY or out_size != (height, width):
        image, mask = _apply_warp(image, mask, out_size, warp)
    if draws.blur < augment.blur:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(draws.blur_px)))
    return Sample(sample.id, image, mask), _mix_colours(draws.colours) if augment.jitter else None


@dataclass(frozen=True)
class OwnTransforms:
    """The transforms of `augment.extra`, in their order. It can be pickled: each process imports its own.

    `digest` is that of their code: a file that was changed since is another transform.
    """

    names: tuple[PartName, ...]
    args: str  # JSON
    root: Path | None
    digest: str = ""

    @classmethod
    def of(cls, augment: AugmentConfig) -> Self:
        # The working directory, which may be gone, is asked for only where it matters.
        root, digest = (code_root(), find_code(augment.extra).digest) if augment.extra else (None, "")
        return cls(augment.extra, json.dumps(augment.args), root, digest)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Raises UserError for a transform that changes size or type."""
        for name, transform in _bind_transforms(self):
            image, mask = transform(sample.image, sample.mask, rng)
            for what, old, new in (("image", sample.image, image), ("mask", sample.mask, mask)):
                found = getattr(new, "shape", None), getattr(new, "dtype", None)
                if found != (old.shape, old.dtype):
                    raise UserError(
                        f"transform {name}: must return {what} {old.shape} of {old.dtype}, but got "
                        f"{type(new).__name__} {found[0]} of {found[1]}"
                    )
            sample = Sample(sample.id, image, mask)
        return sample


@cache
def _bind_transforms(own: OwnTransforms) -> list[tuple[PartName, TransformPart]]:
    args = json.loads(own.args)
    with code_from(own.root):
        return [(name, bind_part("transform", name, args.get(name, {}))) for name in own.names]


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


class _Draws(NamedTuple):
    """All random numbers of one sample. Each is drawn in any case, so that no setting changes another's.

    `left` and `top` are shares of the room that the crop has, `blur`, `uniform`, `label` and `pixel` in 0..1.
    """

    zoom: float
    angle: float
    sign: float
    left: float
    top: float
    colours: tuple[float, float, float]
    blur: float
    blur_px: float
    uniform: float
    label: float
    pixel: float


def _draw(augment: AugmentConfig, rng: np.random.Generator) -> _Draws:
    """New numbers are drawn last, so that the earlier ones stay as they were."""
    zoom = rng.uniform(*augment.scale)
    angle = math.radians(rng.uniform(-augment.rotate_deg, augment.rotate_deg))
    sign = -1.0 if rng.random() < augment.flip else 1.0
    left, top = rng.random(2).tolist()
    brightness, contrast, saturation = rng.uniform(1 - augment.jitter, 1 + augment.jitter, size=3).tolist()
    return _Draws(zoom, angle, sign, left, top, (brightness, contrast, saturation), *rng.random(5).tolist())


def _choose_pixel(mask: NDArray[np.uint8], draws: _Draws) -> tuple[int, int] | None:
    """(row, column) of a pixel of one of the mask's classes, which are equally likely; None if it has none.

    Class-uniform sampling as NVIDIA has it (semantic-segmentation, datasets/uniform.py) draws the class first
    and then an image that has it, from an index of the whole set, so that some images come more often. Here
    every image still comes once a pass, and what it becomes depends on (seed, pass, sample) alone.
    """
    classes = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE)[:IGNORE])
    if not len(classes):
        return None
    pixels = np.flatnonzero(mask == classes[int(draws.label * len(classes))])
    row, column = divmod(int(pixels[int(draws.pixel * len(pixels))]), mask.shape[1])
    return row, column


def _find_warp(
    size: tuple[int, int],
    out_size: tuple[int, int],
    base_zoom: float,
    draws: _Draws,
    pixel: tuple[int, int] | None,
) -> _Affine:
    """(a, b, c, d, e, f): point (u, v) of the result is point (a u + b v + c, d u + e v + f) of the sample.

    Read backwards, as PIL does: a point of the crop -> of the zoomed sample -> unrotated and unzoomed about
    the centre -> unflipped. The centre of `pixel` becomes that of a pixel of the result.
    """
    (height, width), (out_height, out_width) = size, out_size
    zoom = base_zoom * draws.zoom
    cos, sin = math.cos(draws.angle), math.sin(draws.angle)
    x = y = None
    if pixel:
        down, right = pixel[0] + 0.5 - height / 2, draws.sign * (pixel[1] + 0.5 - width / 2)
        x = zoom * (cos * right - sin * down + width / 2)
        y = zoom * (sin * right + cos * down + height / 2)
    left = _place_crop(zoom * width, out_width, draws.left, x)
    top = _place_crop(zoom * height, out_height, draws.top, y)
    cos, sin = cos / zoom, sin / zoom
    u, v = left - zoom * width / 2, top - zoom * height / 2
    return (
        draws.sign * cos,
        draws.sign * sin,
        draws.sign * (cos * u + sin * v) + width / 2,
        -sin,
        cos,
        -sin * u + cos * v + height / 2,
    )


def _place_crop(length: float, crop: int, share: float, shown: float | None) -> float:
    """The crop's offset in the zoomed sample, along one side.

    Where the sample is shorter than the crop it is negative: padding, split at random as well. The point
    `shown` becomes the centre of one of the crop's pixels; any, as far as the crop stays in the sample.
    """
    least, most = min(length - crop, 0.0), max(length - crop, 0.0)
    if shown is None:
        return round(least + (most - least) * share)
    first, last = max(shown - 0.5 - most, 0), min(shown - 0.5 - least, crop - 1)
    pixel = round(first + (last - first) * share)
    return shown - 0.5 - min(max(pixel, 0), crop - 1)


def _apply_warp(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], out_size: tuple[int, int], warp: _Affine
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Warp both; from half of the size down the image is averaged over squares of whole pixels first.

    Interpolating between 4 neighbours would leave pixels out. It still does so between half and full size:
    the difference to Pillow's antialiased resize, in levels of 255, is 3.8 at zoom 0.75 and 6.5 at 0.55, then
    4.3 instead of 7.7 at 0.5 and 4.3 instead of 13.4 at 0.25 (CamVid, `benchmarks/data.py`).
    """
    out_height, out_width = out_size
    picture, factor = Image.fromarray(image), max(1, int(math.hypot(warp[0], warp[3])))
    if factor > 1:
        picture = picture.reduce(factor)
    warped_image = picture.transform(
        (out_width, out_height),
        Image.Transform.AFFINE,
        tuple(value / factor for value in warp),
        Image.Resampling.BILINEAR,
        fillcolor=_MEAN_COLOUR,
    )
    warped_mask = Image.fromarray(mask).transform(
        (out_width, out_height), Image.Transform.AFFINE, warp, Image.Resampling.NEAREST, fillcolor=IGNORE
    )
    return np.asarray(warped_image), np.asarray(warped_mask)


def _mix_colours(factors: tuple[float, float, float]) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and the normalisation as one (3, 4) matrix on (r, g, b, 1) in 0..255.

    Nothing is clipped. Contrast is about the mean colour of ImageNet: with the image's own mean it would not
    be a fixed matrix.
    """
    brightness, contrast, saturation = factors
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
