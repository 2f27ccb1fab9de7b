"""Which change of the recipe brings how much on CamVid: trainings side by side on one GPU.

    encsearch data import camvid PATH/TO/CamVid data/camvid
    python -m benchmarks.gpu_camvid data/camvid --parts single --at-once 7       # 6 minutes on an H200
    python -m benchmarks.gpu_camvid data/camvid --parts combined long

single     camvid_sgd.yaml, the recipe `camvid` of before, in 1.7 times its steps, with one change each
combined   changes that helped, one on top of the other
imagenet   the same with a backbone that was trained on ImageNet, from --weights
long       ResNet-50 at stride 8, by the defaults of a GPU and by the changes that helped

The trainings are the product's (`fit`), each a process, --at-once on the card. Mean IoU on `val` at the last
epoch, and of the best one, which is chosen on the same images. Needs torch, torchvision, pyarrow, pydantic,
ruamel.yaml and safetensors, for `imagenet` timm; no Ray, MLflow or Optuna. Prints each row, and writes JSON
after each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from encsearch.config import Config, load_config, with_values
from encsearch.reports import Report
from encsearch.train.experiment import build
from encsearch.train.loop import fit

RECIPE, OUT = "benchmarks/camvid_sgd.yaml", Path("benchmarks/results/gpu_camvid.json")
Values = Mapping[str, Any]
# 1.7 times RECIPE's, which take 2 cores 3 to 20 minutes.
CPU_STEPS, VALIDATIONS = 640, 4
ADAMW: Values = {"optim.name": "adamw", "optim.clip_norm": 1.0, "optim.weight_decay": 0.05}
CROP: Values = {"augment.crop": 180, "train.steps_per_epoch": CPU_STEPS * 7 // 16}
WSD: Values = {"optim.schedule": "wsd", "optim.decay": 0.4}
DICE: Values = {"loss.dice_weight": 1.0}
ADAM: Values = {**ADAMW, "optim.lr": 5e-4, "optim.head_lr_factor": 4, "optim.warmup": 0.05}
UNIFORM: Values = {"augment.class_uniform": 0.5}
SINGLE: dict[str, Values] = {
    "as it is": {},
    "warm-up 5 %": {"optim.warmup": 0.05},
    "cosine": {"optim.schedule": "cosine"},
    "wsd": WSD,
    "EMA 0.99": {"train.ema": 0.99},
    "EMA 0.98": {"train.ema": 0.98},
    "lr 0.03": {"optim.lr": 0.03},
    "lr 0.05, heads x 2": {"optim.lr": 0.05, "optim.head_lr_factor": 2},
    "AdamW 1e-3, heads x 1": {**ADAMW, "optim.lr": 1e-3, "optim.head_lr_factor": 1},
    "AdamW 5e-4, heads x 4": {**ADAMW, "optim.lr": 5e-4, "optim.head_lr_factor": 4},
    "AdamW 2e-3, heads x 1": {**ADAMW, "optim.lr": 2e-3, "optim.head_lr_factor": 1},
    "Dice 1": DICE,
    "median frequency": {"loss.class_weights": "median_frequency"},
    "class-uniform crops": UNIFORM,
    "label smoothing 0.1": {"loss.label_smoothing": 0.1},
    "no rotation, jitter 0.4": {"augment.rotate_deg": 0.0, "augment.jitter": 0.4},
    "scale 0.75 to 1.5": {"augment.scale": (0.75, 1.5)},
    "no SE-loss": {"loss.se_weight": 0.0},
    "batch 4, 2 x steps": {"train.global_batch_size": 4, "train.steps_per_epoch": CPU_STEPS // 2},
    "crop 180, 1.75 x steps": CROP,
    "laterals": {"model.lateral": True},
}
COMBINED: dict[str, Values] = {
    "as it is": {},
    "WSD + crop 180": {**WSD, **CROP},
    "WSD + crop 180 + Dice": {**WSD, **CROP, **DICE},
    "WSD + crop 180 + Dice + class-uniform": {**WSD, **CROP, **DICE, **UNIFORM},
    "WSD + crop 180 + median frequency": {**WSD, **CROP, "loss.class_weights": "median_frequency"},
    "WSD + crop 180 + AdamW": {**WSD, **CROP, **ADAM},
    "WSD + crop 180 + AdamW + Dice": {**WSD, **CROP, **ADAM, **DICE},
    "WSD + crop 180 + AdamW + Dice + class-uniform": {**WSD, **CROP, **ADAM, **DICE, **UNIFORM},
    "WSD + crop 180 + AdamW + Dice, EMA 0.99": {**WSD, **CROP, **ADAM, **DICE, "train.ema": 0.99},
    "WSD + crop 180 + AdamW + Dice, scale 0.75 to 1.5": {
        **WSD,
        **CROP,
        **ADAM,
        **DICE,
        "augment.scale": (0.75, 1.5),
    },
    "WSD + crop 180 + AdamW + Dice 3": {**WSD, **CROP, **ADAM, "loss.dice_weight": 3.0},
}
RESNET50: Values = {
    "model.backbone": "resnet50",
    "model.output_stride": 8,
    "model.channels": 512,
    "augment.crop": 360,
    "augment.scale": (0.5, 2.0),
    "train.global_batch_size": 16,
    "train.epochs": 6,
    "train.steps_per_epoch": 368,
    "data.processes": 8,
}
LONG: dict[str, Values] = {
    "ResNet-50, SGD 0.02, poly": {**RESNET50, "optim.lr": 0.02},
    "ResNet-50, WSD + AdamW + Dice 3": {**RESNET50, **WSD, **ADAM, "loss.dice_weight": 3.0},
}
PARTS = ("single", "combined", "imagenet", "long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="store of CamVid")
    parser.add_argument("--parts", nargs="+", choices=PARTS, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads of a training")
    parser.add_argument("--weights", help="state dict of timm's tf_efficientnet_lite0")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if "imagenet" in arguments.parts and not arguments.weights:
        parser.error("imagenet needs --weights")
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.device != "cpu":
        facts |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    context = get_context("spawn")
    for part in arguments.parts:
        trainings = [
            (name, seed, configure(arguments, part, {**values, "train.seed": seed}))
            for name, values in choose(part, arguments).items()
            for seed in arguments.seeds
        ]
        rows = facts[part] = []
        at_once = 1 if part == "long" else arguments.at_once
        with ProcessPoolExecutor(at_once, mp_context=context) as pool:
            running = {
                pool.submit(train, config, arguments.device): (name, seed) for name, seed, config in trainings
            }
            for done in as_completed(running):
                name, seed = running[done]
                row = {"name": name, "seed": seed, **done.result()}
                print(f"{name}, {seed}: {row['last']} (best {row['best']}), {row['seconds']} s", flush=True)
                rows.append(row)
                arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(describe(rows), flush=True)


def choose(part: str, arguments: argparse.Namespace) -> dict[str, Values]:
    """The trainings of a part by name."""
    if part == "imagenet":
        backbone = {"model.backbone": "timm:tf_efficientnet_lite0", "model.weights": arguments.weights}
        return {name: {**values, **backbone} for name, values in COMBINED.items()}
    return {"single": SINGLE, "combined": COMBINED, "long": LONG}[part]


def configure(arguments: argparse.Namespace, part: str, values: Values) -> Config:
    """The recipe RECIPE with `values`, for one process."""
    base = {
        "data.store": arguments.store,
        "data.threads": arguments.threads,
        "train.epochs": VALIDATIONS,
        "train.steps_per_epoch": CPU_STEPS // VALIDATIONS,
        "train.precision": "bf16" if part == "long" else "fp32",
        "train.checkpoint_every.minutes": None,
        "scaling.gpus_per_worker": 0 if arguments.device == "cpu" else 1,
    }
    return with_values(load_config(RECIPE), {**base, **values})


def train(config: Config, device: str) -> dict[str, Any]:
    """Train to the end; mIoU and IoU of the classes in percent."""
    torch.set_num_threads(1)
    started = time.monotonic()
    experiment = build(config, device=device)
    events = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
    reports = [event for event in events if isinstance(event, Report)]
    last = reports[-1]
    return {
        "last": round(100 * last.metrics["mIoU"], 2),
        "best": round(100 * max(report.metrics["mIoU"] for report in reports), 2),
        "pix_acc": round(100 * last.metrics["pixAcc"], 2),
        "class_iou": {name: round(100 * iou, 1) for name, iou in last.class_iou.items()},
        "steps": last.step,
        "seconds": round(time.monotonic() - started, 1),
    }


def describe(rows: list[dict[str, Any]]) -> str:
    """A table, the best first."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    ranked = sorted(by_name.items(), key=lambda item: -statistics.mean(row["last"] for row in item[1]))
    lines = ["| change | mIoU of each seed, % | mean | pixAcc |", "|---|---|---|---|"]
    for name, own in ranked:
        each = ", ".join(f"{row['last']:.1f}" for row in sorted(own, key=lambda row: row["seed"]))
        mean, accuracy = (statistics.mean(row[key] for row in own) for key in ("last", "pix_acc"))
        lines.append(f"| {name} | {each} | {mean:.1f} | {accuracy:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
