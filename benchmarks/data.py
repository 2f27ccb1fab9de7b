"""What a training sample costs on its way from a decoded image to the network, section by section.

    python -m benchmarks.data                                # on generated images
    python -m benchmarks.data --camvid data/CamVid           # folders train and trainannot
    python -m benchmarks.data --sections aliasing

augmentation  Mirror, zoom of 0.5 to 2, rotation of 10 degrees either way, crop of 480 px, blur, colours and
              normalisation of the same decoded samples, by encsearch and by chains of torchvision's v2
              transforms, one thread. The contenders take turns; CPU milliseconds a sample, medians of the
              rounds.
aliasing      What zooming out by one affine warp loses, with and without averaging before it: root of the
              mean squared difference to Pillow's own antialiased resize, of windows at random positions, in
              levels of 255.

Prints Markdown and writes JSON section by section, each with the machine's load.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from encsearch.config import AugmentConfig
from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.loading import Batch
from encsearch.data.transforms import MEAN, STD, _apply_warp, augment_sample, normalise

OUT = Path("benchmarks/results/data.json")
HEIGHT, WIDTH, CROP = 360, 480, 480
SAMPLES, ROUNDS, WARM_UP = 24, 15, 1
SCALE, DEGREES, JITTER, BLUR = (0.5, 2.0), 10, 0.2, 0.5
GOAL = 4.0  # times the fastest chain of torchvision
ZOOMS = (0.75, 0.55, 0.5, 0.45, 0.35, 0.25)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    samples = load_camvid(arguments.camvid) if arguments.camvid else generate()
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.sections:
        before = os.getloadavg()[0]
        measured, text = SECTIONS[name](samples, arguments.rounds)
        print(f"## {name}\n\n{text}\n", flush=True)
        facts[name] = {
            "samples": "CamVid" if arguments.camvid else "generated",
            "versions": {"pillow": PIL.__version__, "torchvision": torchvision.__version__},
            "load": {"before": before, "after": os.getloadavg()[0], "cores": os.cpu_count()},
            **measured,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it images are generated")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


# --- the samples ---


def load_camvid(folder: Path) -> list[Sample]:
    """Spread over the training images, their pixels as a JPEG of quality 95 has them."""
    files = sorted((folder / "train").iterdir())
    samples = []
    for file in files[:: max(1, len(files) // SAMPLES)][:SAMPLES]:
        with Image.open(file) as image, Image.open(folder / "trainannot" / file.name) as mask:
            labels = np.array(mask)
            samples.append(
                Sample(file.stem, as_jpeg(image.convert("RGB")), np.where(labels < 11, labels, IGNORE))
            )
    return samples


def generate() -> list[Sample]:
    """Smooth colours and a mask of blocks."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(SAMPLES):
        coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        image = as_jpeg(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        blocks = rng.integers(0, 11, (HEIGHT // 40, WIDTH // 40), dtype=np.uint8)
        samples.append(Sample(str(number), image, np.kron(blocks, np.ones((40, 40), np.uint8))))
    return samples


def as_jpeg(image: Image.Image) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as decoded:
        return np.array(decoded)


# --- augmentation ---


def measure_augmentation(samples: Sequence[Sample], rounds: int) -> tuple[dict[str, Any], str]:
    ours = AugmentConfig(crop=CROP, scale=SCALE, rotate_deg=DEGREES, jitter=JITTER, blur=BLUR)
    contenders: dict[str, Callable[[Sample, int], torch.Tensor]] = {
        "encsearch": own(ours),
        "encsearch, without blur": own(ours.model_copy(update={"blur": 0.0})),
        "encsearch, half of the crops class-uniform": own(ours.model_copy(update={"class_uniform": 0.5})),
        "torchvision v2, tensors": chain(apart(), as_tensors),
        "torchvision v2, Pillow images": chain(apart(), as_pictures),
        "torchvision v2, tensors, one affine": chain(fused(), as_tensors),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(WARM_UP + rounds):
        torch.manual_seed(turn)
        for name, augment in contenders.items():
            started = time.process_time()
            for sample in samples:
                assert augment(sample, turn).shape == (3, CROP, CROP)
            if turn >= WARM_UP:
                times[name].append((time.process_time() - started) / len(samples) * 1e3)
    ms = {name: median(values) for name, values in times.items()}
    fastest = min(value for name, value in ms.items() if not name.startswith("encsearch"))
    ratio = fastest / ms["encsearch"]
    lines = ["| | CPU ms a sample, lowest to highest | beside encsearch |", "|---|---|---|"]
    for name, values in times.items():
        beside = ms[name] / ms["encsearch"]
        lines.append(f"| {name} | {ms[name]:.1f} ({min(values):.1f}-{max(values):.1f}) | {beside:.1f}x |")
    lines.append(f"\nThe fastest chain takes {ratio:.1f} times as long; the goal is {GOAL:.0f}.")
    return {"cpu_ms": times, "median_cpu_ms": ms, "ratio": ratio, "goal": GOAL}, "\n".join(lines)


def own(augment: AugmentConfig) -> Callable[[Sample, int], torch.Tensor]:
    """What the loader and `feed` do with one sample."""

    def run(sample: Sample, turn: int) -> torch.Tensor:
        copy, colours = augment_sample(sample, augment, np.random.default_rng((turn, *sample.id.encode())))
        assert colours is not None
        batch = Batch.of([copy], [colours])
        return normalise(batch.images, batch.colours)[0]

    return run


def chain(
    transforms: Sequence[v2.Transform], given: Callable[[Sample], tuple[Any, Any]]
) -> Callable[[Sample, int], torch.Tensor]:
    composed = v2.Compose(
        [
            *transforms,
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.0))], p=BLUR),
            v2.ColorJitter(JITTER, JITTER, JITTER),
            v2.ToImage(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def run(sample: Sample, turn: int) -> torch.Tensor:
        image, _ = composed(*given(sample))
        return image

    return run


def apart() -> list[v2.Transform]:
    """One operation after the other, as torchvision's reference and the recipes do it."""
    return [
        v2.RandomHorizontalFlip(0.5),
        v2.ScaleJitter((HEIGHT, WIDTH), scale_range=SCALE),
        v2.RandomRotation(DEGREES, v2.InterpolationMode.BILINEAR, fill=fill()),
        v2.RandomCrop(CROP, pad_if_needed=True, fill=fill()),
    ]


def fused() -> list[v2.Transform]:
    """Zoom and rotation as one, of the padded image; without zooming out of more than the crop."""
    return [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomCrop(CROP, pad_if_needed=True, fill=fill()),
        v2.RandomAffine(DEGREES, scale=SCALE, interpolation=v2.InterpolationMode.BILINEAR, fill=fill()),
    ]


def fill() -> dict[Any, Any]:
    mean = [round(255 * channel) for channel in MEAN]
    return {tv_tensors.Image: mean, Image.Image: tuple(mean), tv_tensors.Mask: IGNORE}


def as_tensors(sample: Sample) -> tuple[Any, Any]:
    image = tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))
    return image, tv_tensors.Mask(torch.from_numpy(sample.mask))


def as_pictures(sample: Sample) -> tuple[Any, Any]:
    return Image.fromarray(sample.image), tv_tensors.Mask(torch.from_numpy(sample.mask))


# --- aliasing ---


def measure_aliasing(samples: Sequence[Sample], rounds: int) -> tuple[dict[str, Any], str]:
    rng = np.random.default_rng(0)
    errors: dict[float, tuple[float, float]] = {}
    for zoom in ZOOMS:
        squares = [squared_errors(sample.image, zoom, rng) for sample in samples]
        own_error, plain_error = np.sqrt(np.mean(squares, axis=0)).tolist()
        errors[zoom] = own_error, plain_error
    lines = ["| zoom | averaged first, from half of the size down | one affine warp alone |", "|---|---|---|"]
    lines += [f"| {zoom} | {own:.1f} | {plain:.1f} |" for zoom, (own, plain) in errors.items()]
    return {"rmse": {str(zoom): pair for zoom, pair in errors.items()}}, "\n".join(lines)


def squared_errors(image: NDArray[np.uint8], zoom: float, rng: np.random.Generator) -> tuple[float, float]:
    """Of encsearch's warp and of Pillow's alone, on a window at a random position."""
    picture = Image.fromarray(image)
    width, height = (int(side * zoom) - 8 for side in picture.size)
    left, top = (
        float(rng.uniform(2, side - 2 - length / zoom))
        for side, length in zip(picture.size, (width, height), strict=True)
    )
    warp = (1 / zoom, 0.0, left, 0.0, 1 / zoom, top)
    box = (left, top, left + width / zoom, top + height / zoom)
    truth = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box), dtype=float)
    own_image, _ = _apply_warp(image, image[..., 0].copy(), (height, width), warp)
    plain = picture.transform((width, height), Image.Transform.AFFINE, warp, Image.Resampling.BILINEAR)
    return float(np.mean((own_image - truth) ** 2)), float(np.mean((np.asarray(plain) - truth) ** 2))


# Each takes the samples and the number of rounds, and returns facts for the JSON and Markdown.
SECTIONS: dict[str, Callable[[Sequence[Sample], int], tuple[dict[str, Any], str]]] = {
    "augmentation": measure_augmentation,
    "aliasing": measure_aliasing,
}


if __name__ == "__main__":
    main()
