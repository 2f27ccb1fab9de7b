"""What a training sample costs on its way from a decoded image to the network, section by section.

    python -m benchmarks.data                                # on generated images
    python -m benchmarks.data --camvid data/CamVid           # folders train and trainannot
    python -m benchmarks.data --sections loader import "first batch"

augmentation  Mirror, zoom of 0.5 to 2, rotation of 10 degrees either way, crop of 480 px, blur, colours and
              normalisation of the same decoded samples, by encsearch and by chains of torchvision's v2
              transforms, one thread. The contenders take turns; CPU milliseconds a sample, medians of the
              rounds.
aliasing      What zooming out by one affine warp loses, with and without averaging before it: root of the
              mean squared difference to Pillow's own antialiased resize, of windows at random positions, in
              levels of 255.

loader        `Store.split[i]`, which reads, verifies and decodes a sample, in random order and in shuffled
              blocks, beside PIL alone, which decodes the same bytes from a list: JPEG of quality 95 and PNG
              masks, one thread, in turns; CPU milliseconds a sample, medians of the rounds.
import        `encsearch data import folder` as a process of its own on 2,000 and 20,000 generated pairs of
              96 x 96, half of the images PNG and half JPEG, by one and by two processes: samples a second of
              wall time and of CPU time, and the highest sum of resident memory over the process tree,
              which counts shared pages once a process. One run each; the files are in the page cache.
first batch   Seconds from the start of a new Python process to the first training batch of 8 crops, with
              the Arrow copies there and with none, and to the end of the imports. In turns, medians.

Prints Markdown and writes JSON section by section, each with the machine's load.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL
import psutil
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from encsearch.config import AugmentConfig
from encsearch.data.datasets import IGNORE, DatasetInfo, EncodedSample, Sample, default_palette
from encsearch.data.loading import Batch
from encsearch.data.store import Store, write_store
from encsearch.data.transforms import MEAN, STD, _apply_warp, augment_sample, normalise

OUT = Path("benchmarks/results/data.json")
HEIGHT, WIDTH, CROP = 360, 480, 480
SAMPLES, ROUNDS, WARM_UP = 24, 15, 1
SCALE, DEGREES, JITTER, BLUR = (0.5, 2.0), 10, 0.2, 0.5
GOAL = 4.0  # times the fastest chain of torchvision
LOADER_GOAL = 0.90  # Pillow's time as a share of the store's
COPIES, BLOCK = 16, 16  # of each sample in a store; rows of a block
SMALL, COUNTS = 96, (2000, 20000)  # px; pairs to import
FIRST_ROUNDS = 7
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


# --- loader ---


def encode(samples: Sequence[Sample], copies: int) -> Iterator[EncodedSample]:
    for copy in range(copies):
        for sample in samples:
            image, mask = io.BytesIO(), io.BytesIO()
            Image.fromarray(sample.image).save(image, "JPEG", quality=95)
            Image.fromarray(sample.mask).save(mask, "PNG")
            yield EncodedSample(f"{copy}-{sample.id}", image.getvalue(), mask.getvalue(), "")


def make_store(folder: Path, samples: Sequence[Sample], copies: int) -> list[EncodedSample]:
    classes = tuple(f"class{number}" for number in range(11))
    encoded = list(encode(samples, copies))
    write_store(folder, DatasetInfo("bench", classes, default_palette(11)), {"train": encoded})
    return encoded


def measure_loader(samples: Sequence[Sample], rounds: int) -> tuple[dict[str, Any], str]:
    with TemporaryDirectory() as folder:
        encoded = make_store(Path(folder) / "store", samples, COPIES)
        split = Store(Path(folder) / "store").split("train")

        def with_pillow(index: int) -> None:
            for data in (encoded[index].image, encoded[index].mask):
                with Image.open(io.BytesIO(data)) as image:
                    np.asarray(image)

        rng = np.random.default_rng(0)
        blocks = np.arange(len(encoded)).reshape(-1, BLOCK)
        orders = {"random": rng.permutation(len(encoded)), "blocks": rng.permutation(blocks).ravel()}
        contenders: dict[str, tuple[Callable[[int], object], list[int]]] = {
            "Pillow alone": (with_pillow, orders["random"].tolist()),
            "store, random order": (split.__getitem__, orders["random"].tolist()),
            f"store, blocks of {BLOCK}": (split.__getitem__, orders["blocks"].tolist()),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(WARM_UP + rounds):
            for name, (read, order) in contenders.items():
                started = time.process_time()
                for index in order:
                    read(index)
                if turn >= WARM_UP:
                    times[name].append((time.process_time() - started) / len(order) * 1e3)
    ms = {name: median(values) for name, values in times.items()}
    ratios = {name: ms["Pillow alone"] / value for name, value in ms.items()}
    lines = ["| | CPU ms a sample, lowest to highest | Pillow's share of it |", "|---|---|---|"]
    for name, values in times.items():
        span = f"{ms[name]:.2f} ({min(values):.2f}-{max(values):.2f})"
        lines.append(f"| {name} | {span} | {ratios[name]:.2f} |")
    lines.append(f"\nThe goal is {LOADER_GOAL:.2f}.")
    facts = {"cpu_ms": times, "median_cpu_ms": ms, "ratios": ratios, "goal": LOADER_GOAL}
    return {**facts, "samples_read": len(encoded)}, "\n".join(lines)


# --- import ---


def write_small(folder: Path, count: int) -> None:
    """Pairs of 96 x 96: noise that is smooth enough to look like a picture, and a mask of blocks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"class{number}\n" for number in range(5)))
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        image = coarse.resize((SMALL, SMALL), Image.Resampling.BICUBIC)
        if number % 2:
            image.save(folder / "images" / f"{number}.jpg", quality=90)
        else:
            image.save(folder / "images" / f"{number}.png", compress_level=1)
        blocks = np.kron(rng.integers(0, 5, (6, 6), dtype=np.uint8), np.ones((16, 16), np.uint8))
        Image.fromarray(blocks).save(folder / "masks" / f"{number}.png", compress_level=1)


def run_import(source: Path, store: Path, processes: int) -> dict[str, float]:
    command = [str(Path(sys.executable).with_name("encsearch")), "data", "import", "folder"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = psutil.Popen(
        [*command, str(source), str(store), "--processes", str(processes)], stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        resident = 0
        with suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    resident += one.memory_info().rss
        peak = max(peak, resident)
        time.sleep(0.02)
    wall_s = time.monotonic() - started
    assert process.returncode == 0, process.returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak / 2**20}


def measure_import(samples: Sequence[Sample], rounds: int) -> tuple[dict[str, Any], str]:
    found: dict[str, dict[str, float]] = {}
    lines = ["| samples | processes | samples/s | samples/CPU s | peak MiB |", "|---|---|---|---|---|"]
    ratios = {}
    with TemporaryDirectory() as folder:
        for count in COUNTS:
            source = Path(folder) / f"source{count}"
            write_small(source, count)
            for processes in (1, 2):
                one = run_import(source, Path(folder) / f"store{count}-{processes}", processes)
                found[f"{count} samples, {processes} processes"] = one
                rates = f"{count / one['wall_s']:.0f} | {count / one['cpu_s']:.0f}"
                lines.append(f"| {count:,} | {processes} | {rates} | {one['peak_mib']:.0f} |")
    for processes in (1, 2):
        few, many = (found[f"{count} samples, {processes} processes"]["peak_mib"] for count in COUNTS)
        ratios[str(processes)] = many / few
        lines.append(f"\nMemory by {processes}: {many / few:.2f} times as much for ten times the samples.")
    return {"runs": found, "memory_ratio": ratios}, "\n".join(lines)


# --- first batch ---

FIRST_BATCH = """
import sys
from encsearch.config import AugmentConfig
from encsearch.data.loading import TrainStream
from encsearch.data.store import Store
print("imported", flush=True)
split = Store(sys.argv[1]).split("train")
stream = TrainStream(split, AugmentConfig(crop=321), global_batch_size=8, seed=0)
batches = stream.batches(0)
next(batches)
print("batch", flush=True)
batches.close()
"""


def measure_first_batch(samples: Sequence[Sample], rounds: int) -> tuple[dict[str, Any], str]:
    seconds: dict[str, list[float]] = {"imports": [], "copies are there": [], "copies are made": []}
    with TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        count = len(make_store(store, samples, COPIES))
        size = sum(file.stat().st_size for file in store.glob("*.parquet"))
        for turn in range(WARM_UP + FIRST_ROUNDS):
            for name in ("copies are made", "copies are there"):
                if name == "copies are made":
                    shutil.rmtree(store / ".cache", ignore_errors=True)
                started = time.monotonic()
                command = [sys.executable, "-c", FIRST_BATCH, str(store)]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    at = [time.monotonic() - started for _ in process.stdout]
                if turn >= WARM_UP:
                    seconds["imports"].append(at[0])
                    seconds[name].append(at[1])
    middle = {name: median(values) for name, values in seconds.items()}
    lines = ["| | s, lowest to highest |", "|---|---|"]
    for name, values in seconds.items():
        lines.append(f"| {name} | {middle[name]:.2f} ({min(values):.2f}-{max(values):.2f}) |")
    facts = {"seconds": seconds, "median_s": middle, "samples_there": count, "shard_bytes": size}
    return facts, "\n".join(lines)


# Each takes the samples and the number of rounds, and returns facts for the JSON and Markdown.
SECTIONS: dict[str, Callable[[Sequence[Sample], int], tuple[dict[str, Any], str]]] = {
    "augmentation": measure_augmentation,
    "aliasing": measure_aliasing,
    "loader": measure_loader,
    "import": measure_import,
    "first batch": measure_first_batch,
}


if __name__ == "__main__":
    main()
