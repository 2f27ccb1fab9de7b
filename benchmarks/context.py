"""How much context helps on `scenes`: FCN, pooled gate and EncNet at equal budget, several seeds.

    python benchmarks/context.py --seeds 0 1 2 --epochs 6 12

Every row has the same backbone, recipe, steps and data; only `model.context` and the SE-loss differ. The
figure is the mIoU of the ambiguous classes on the validation split after the last step (not the best epoch,
which would be chosen on the same split). Writes JSON and prints a Markdown table.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from encsearch.config import Config, load_config, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.experiment import build
from encsearch.train.loop import fit

RECIPE = "jobs/recipes/demo.yaml"
VARIANTS = {
    "FCN": {"model.context": "none"},
    "Encoding, no SE-loss": {"model.context": "encoding", "loss.se_weight": 0.0},
    "pooled gate, no SE-loss": {"model.context": "gate", "loss.se_weight": 0.0},
    "pooled gate + SE-loss": {"model.context": "gate"},
    "EncNet (Encoding + SE-loss)": {"model.context": "encoding"},
}


@dataclass(frozen=True)
class Row:
    """One training; `ambiguous` and `mean_iou` in percent, `cpu_s` of the training process."""

    variant: str
    epochs: int
    steps: int
    seed: int
    ambiguous: float
    mean_iou: float
    cpu_s: float


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as scratch:
        store = arguments.store or str(Path(scratch) / "scenes")
        if not arguments.store:
            generate_scenes(Path(store))
        base = load_config(RECIPE, [f"data.store={store}"]).model_copy(update={"search": None})
        jobs = [
            (name, epochs, seed, with_values(base, {**values, "train.seed": seed, "train.epochs": epochs}))
            for epochs in arguments.epochs
            for seed in arguments.seeds
            for name, values in VARIANTS.items()
        ]
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            rows = []
            for row in pool.imap_unordered(run, jobs):
                print(f"{row.variant}, {row.steps} steps, seed {row.seed}: {row.ambiguous:.1f}", flush=True)
                rows.append(row)
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[6], help="budgets, in epochs of the recipe")
    parser.add_argument("--store", help="an existing store of scenes; default: a fresh one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/context.json"))
    return parser.parse_args()


def run(job: tuple[str, int, int, Config]) -> Row:
    """One training in this process, on one thread."""
    name, epochs, seed, config = job
    torch.set_num_threads(1)
    started = time.process_time()
    experiment = build(config)
    reports = list(fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan))
    last = reports[-1].metrics
    return Row(
        variant=name,
        epochs=epochs,
        steps=experiment.plan.total_steps,
        seed=seed,
        ambiguous=100 * last["mIoU/ambiguous"],
        mean_iou=100 * last["mIoU"],
        cpu_s=time.process_time() - started,
    )


def table(rows: list[Row]) -> str:
    """Mean and every seed's value, a row a variant and budget."""
    lines = [
        "| head | steps | mIoU of the ambiguous classes, mean (each seed) | mIoU, mean | CPU s a run |",
        "|---|---|---|---|---|",
    ]
    for steps in sorted({row.steps for row in rows}):
        for variant in VARIANTS:
            of_it = sorted(
                (r for r in rows if (r.variant, r.steps) == (variant, steps)), key=lambda r: r.seed
            )
            mean = statistics.fmean(row.ambiguous for row in of_it)
            each = " / ".join(f"{row.ambiguous:.1f}" for row in of_it)
            overall = statistics.fmean(row.mean_iou for row in of_it)
            cpu_s = statistics.median(row.cpu_s for row in of_it)
            lines.append(f"| {variant} | {steps} | **{mean:.1f}** ({each}) | {overall:.1f} | {cpu_s:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
