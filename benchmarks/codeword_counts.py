"""Does K matter? Every K with both initialisations of the codewords, at a short and a long budget.

    python -m benchmarks.codeword_counts scenes                          # 140 trainings, 70 CPU minutes
    python -m benchmarks.codeword_counts camvid --source PATH/TO/CamVid  # 56 trainings of 120 x 90 px

On `scenes` the recipe is encsearch/recipes/ablation.yaml with 5 seeds, on CamVid that of its surface in
benchmarks/search_surface.py with 2. Only K and `model.codeword_init` change. Figures are of the last epoch on
the validation split; in use, dead and negative codewords as `encsearch.diagnostics` counts them on its first
images. A training that the JSON file has is not run again. Prints a Markdown table.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.search_surface import PLANS, make_camvid
from encsearch.config import Config, load_config, trial_config, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.data.store import Store
from encsearch.diagnostics.measure import diagnose
from encsearch.files import write_whole
from encsearch.inference.bundle import Bundle
from encsearch.search.statistics import estimate
from encsearch.text import format_estimate, format_number, format_share
from encsearch.train.experiment import build
from encsearch.train.loop import fit

NUM_CODEWORDS = (1, 2, 4, 8, 16, 32, 64)
INITS = ("published", "unit")
STEPS = (400, 1000)  # one report each
SEEDS = {"scenes": (0, 1, 2, 3, 4), "camvid": (0, 1)}
NUM_IMAGES = 100  # for the figures of the codewords


@dataclass(frozen=True)
class Row:
    """One training: `score` is mIoU/ambiguous of scenes and mIoU of CamVid, in [0, 1].

    `in_use` is exp of the entropy of the mean assignment; `dead` and `negative` are codewords with under a
    tenth of an equal share and with a negative smoothing factor.
    """

    num_codewords: int
    init: str
    steps: int
    seed: int
    score: float
    mean_iou: float
    in_use: float
    dead: int
    negative: int
    cpu_s: float

    @property
    def key(self) -> tuple[object, ...]:
        return self.num_codewords, self.init, self.steps, self.seed


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    rows = [Row(**row) for row in json.loads(arguments.out.read_text())] if arguments.out.exists() else []
    done = {row.key for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(arguments.surface, Path(scratch) / "store", arguments.source)
        recipe = base_config(arguments.surface, store)
        for seed, steps, k, init in product(arguments.seeds, STEPS, NUM_CODEWORDS, INITS):
            if (k, init, steps, seed) in done:
                continue
            values = {"model.num_codewords": k, "model.codeword_init": init, "train.seed": seed}
            row = run(with_values(recipe, {**values, "train.steps_per_epoch": steps}), Store(store))
            rows.append(row)
            print(row, flush=True)
            write_whole(arguments.out, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("surface", choices=SEEDS)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--source", type=Path, help="the folder of CamVid")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or SEEDS[arguments.surface]
    arguments.out = arguments.out or Path(f"benchmarks/results/codeword_counts_{arguments.surface}.json")
    return arguments


def make_store(surface: str, store: Path, source: Path | None) -> Path:
    if surface == "scenes":
        generate_scenes(store)
    else:
        make_camvid(store, source)
    return store


def base_config(surface: str, store: Path) -> Config:
    """The recipe at its own precision, whose one epoch is the whole budget: the last epoch is scored."""
    recipe, values = "encsearch/recipes/ablation.yaml", {}
    if surface == "camvid":
        recipe, values = PLANS["camvid"].recipe, dict(PLANS["camvid"].overrides)
        values |= {"train.precision": "auto", "train.channels_last": True, "model.num_codewords": 32}
    config = trial_config(load_config(recipe, [f"data.store={store}"]), {"ablate": {}})
    return with_values(config, {**values, "train.epochs": 1})


def run(config: Config, store: Store) -> Row:
    started_s = time.process_time()
    experiment = build(config)
    (report,) = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
    dataset = store.split(config.data.val_split)
    samples = [dataset[index] for index in range(min(NUM_IMAGES, len(dataset)))]
    bundle = Bundle(experiment.state.model.eval(), config, store.info, store.fingerprint, {})
    figures = diagnose(bundle, samples).codewords
    return Row(
        num_codewords=config.model.num_codewords,
        init=config.model.codeword_init,
        steps=config.train.steps_per_epoch,
        seed=config.train.seed,
        score=report.metrics[config.metric],
        mean_iou=report.metrics["mIoU"],
        in_use=figures.effective_number,
        dead=len(figures.dead),
        negative=sum(factor < 0 for factor in figures.smoothing_factors),
        cpu_s=time.process_time() - started_s,
    )


def table(rows: Sequence[Row]) -> str:
    """Means over seeds; differences are to `published` with the same K, budget and seed, and to K = 16."""
    lines = [
        "| steps | K | published % | unit % | unit minus published | in use, published | unit | dead | unit "
        "| negative | unit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = {row.key: row for row in rows}
    for steps, k in product(STEPS, NUM_CODEWORDS):
        of = {
            init: [row for row in rows if (row.num_codewords, row.init, row.steps) == (k, init, steps)]
            for init in INITS
        }
        if not all(of.values()):
            continue
        pairs = [(row, found.get((k, "published", steps, row.seed))) for row in of["unit"]]
        gain = estimate([unit.score - other.score for unit, other in pairs if other])
        cells = [estimate([row.score for row in of[init]]) for init in INITS]
        uses = [format_number(mean([row.in_use for row in of[init]])) for init in INITS]
        dead = [format_share(mean([row.dead for row in of[init]]) / k) for init in INITS]
        negative = [format_share(mean([row.negative for row in of[init]]) / k) for init in INITS]
        shown = [format_estimate(cell.mean, cell.interval) for cell in cells]
        difference = format_estimate(gain.mean, gain.interval, signed=True)
        cells = [str(steps), str(k), *shown, difference, *uses, *dead, *negative]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
