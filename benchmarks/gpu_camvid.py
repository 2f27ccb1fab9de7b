"""EncNet and FCN, ResNet-50 at stride 8, on CamVid from scratch in a fixed number of minutes on one GPU.

    encsearch data import camvid PATH/TO/CamVid data/camvid
    python benchmarks/gpu_camvid.py data/camvid --minutes 4

The number of steps follows from the speed of the first ones, so that the poly schedule ends when the time
does. The figures are those of the last epoch on the validation split (whole images, 480x360). Needs torch,
torchvision, pyarrow and pydantic; no Ray, MLflow or Optuna. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from encsearch.config import Config, with_values
from encsearch.data.store import Store
from encsearch.train.experiment import build
from encsearch.train.loop import fit

VARIANTS: dict[str, dict[str, Any]] = {
    "FCN": {"model.context": "none"},
    "EncNet": {"model.context": "encoding"},
}
WARMUP_STEPS = 30
REPORTS = 8
# Published mIoU on the test split at 480x360, for orientation: another split, other training and weights.
PUBLISHED = {"SegNet": 46.4, "ENet": 51.3, "FCN8": 57.0, "FC-DenseNet56": 58.9, "Dilation8": 65.3}


@dataclass(frozen=True)
class Row:
    """One training; mIoU, pixAcc and class_iou in percent, memory is the peak that PyTorch allocated."""

    variant: str
    steps: int
    epochs: float
    seconds: float
    images_per_s: float
    memory_mib: float
    mean_iou: float
    pix_acc: float
    class_iou: dict[str, float]


def main() -> None:
    arguments = parse()
    device = torch.device(arguments.device)
    rows = []
    for variant in arguments.variants:
        config = with_values(recipe(arguments), VARIANTS[variant])
        steps = steps_that_fit(config, device, 60 * arguments.minutes)
        config = with_values(config, {"train.epochs": REPORTS, "train.steps_per_epoch": steps // REPORTS})
        rows.append(run(variant, config, device))
        print(f"{variant}: {rows[-1].mean_iou:.1f} mIoU", flush=True)
    print(table(rows))
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
        "published_test_miou": PUBLISHED,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="store of CamVid")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--crop", type=int, default=360)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=12, help="decoding threads")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_camvid.json"))
    return parser.parse_args()


def recipe(arguments: argparse.Namespace) -> Config:
    return Config.model_validate(
        {
            "data": {"store": arguments.store, "threads": arguments.threads},
            "augment": {"crop": arguments.crop, "scale": [0.5, 2.0], "rotate_deg": 10, "jitter": 0.2},
            "model": {"backbone": arguments.backbone, "output_stride": 8},
            "optim": {"lr": 0.02, "head_lr_factor": 10, "clip_norm": 10.0},
            "train": {"global_batch_size": arguments.batch_size, "precision": "bf16"},
        }
    )


def steps_that_fit(config: Config, device: torch.device, budget_s: float) -> int:
    """Optimizer steps, the loader's time included, and REPORTS validations that take `budget_s` together."""
    seconds = []
    for steps in (1, WARMUP_STEPS + 1):
        values = {"train.epochs": 1, "train.steps_per_epoch": steps}
        probe = build(with_values(config, values), device=str(device))
        reports = fit(probe.state, probe.loaders, probe.loss, probe.plan)
        seconds.append(next(reports).seconds)
        reports.close()
    validation, both = seconds  # the first one also chose the GPU's kernels: a little too long
    per_step = max(both - validation, 1e-3) / WARMUP_STEPS
    return max(REPORTS, int((budget_s - REPORTS * validation) / per_step))


def run(variant: str, config: Config, device: torch.device) -> Row:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.monotonic()
    experiment = build(config, device=str(device))
    for report in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        last = report
    seconds = time.monotonic() - started
    steps = experiment.plan.total_steps
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Row(
        variant=variant,
        steps=steps,
        epochs=experiment.state.samples_seen / len(Store(config.data.store).split(config.data.train_split)),
        seconds=seconds,
        images_per_s=steps * config.train.global_batch_size / seconds,
        memory_mib=memory / 2**20,
        mean_iou=100 * last.metrics["mIoU"],
        pix_acc=100 * last.metrics["pixAcc"],
        class_iou={name: 100 * iou for name, iou in last.class_iou.items()},
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| network | epochs | minutes | images/s | peak MiB | mIoU | pixAcc |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.variant} | {r.epochs:.0f} | {r.seconds / 60:.1f} | {r.images_per_s:.0f} | {r.memory_mib:.0f} "
        f"| {r.mean_iou:.1f} | {r.pix_acc:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
