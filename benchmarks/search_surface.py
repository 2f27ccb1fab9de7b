"""The surfaces that benchmarks/search.py searches: a training of every point of a grid, every epoch recorded.

    make="python -m benchmarks.search_surface camvid --folder parts --source PATH/TO/CamVid"
    $make --part 1/2 & $make --part 2/2; wait           # any number of parts, one thread each
    $make --part 1/2 --truth & $make --part 2/2 --truth; wait
    $make --join                                        # once all parts are done

K x SE weight x learning rate, one seed a cell; with `--truth` the cells with the best seed 0 are trained with
further seeds, which alone say how good a cell is. A training takes 10 to 25 CPU seconds. What a part or the
shipped file has is not trained again. Columns are those of `Row`; how a surface was made is in the metadata
of its schema. The grid of `scenes` is shipped without K = 2, 8 and 32.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from encsearch.config import Config, load_config, to_json, trial_config, with_values
from encsearch.data.importers.sets import plan_set
from encsearch.data.importers.write import write_plan
from encsearch.data.scenes import generate_scenes
from encsearch.errors import TrainingError, UserError
from encsearch.files import append_line, read_lines
from encsearch.train.experiment import build
from encsearch.train.loop import fit

FOLDER = Path("benchmarks/surface")
# 27 epochs are four rungs of halving by 3: after 1, 3, 9 and 27.
EPOCHS = {
    "train.epochs": 27,
    "train.steps_per_epoch": 15,
    # As the shipped surfaces were trained; the defaults have changed since.
    "train.precision": "fp32",
    "train.channels_last": False,
    "model.codeword_init": "published",
}
# With --truth: so many of the best cells, with these seeds.
NUM_TRUE, TRUE_SEEDS = 20, (1, 2, 3)


@dataclass(frozen=True)
class Plan:
    """A surface to be made: `data` writes its store, from a folder that the user may have to bring.

    The grid's K that come first are there first.
    """

    recipe: str
    overrides: Mapping[str, Any]
    data: Callable[[Path, Path | None], object]
    num_codewords: tuple[int, ...]
    se_weights: tuple[float, ...]
    lrs: tuple[float, ...]

    def cells(self) -> tuple["Cell", ...]:
        """All cells with seed 0, one K after another."""
        grid = product(self.num_codewords, self.lrs, self.se_weights)
        return tuple(Cell(k, weight, lr) for k, lr, weight in grid)


def make_scenes(store: Path, source: Path | None, **settings: int) -> None:
    generate_scenes(store, num_val=200, num_test=1, **settings)


def make_camvid(store: Path, source: Path | None) -> None:
    """CamVid at a quarter of its side: 120 x 90 px."""
    if source is None:
        raise UserError("CamVid must be brought: --source PATH/TO/CamVid")
    with tempfile.TemporaryDirectory() as small:
        for path in sorted(source.glob("*/*.png")):
            target = Path(small) / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            with Image.open(path) as image:
                method = Image.Resampling.NEAREST if "annot" in target.parent.name else Image.Resampling.BOX
                image.resize((image.width // 4, image.height // 4), method).save(target)
        write_plan(plan_set("camvid", [Path(small)], store.with_name(f".{store.name}.scratch")), store)


PLANS = {
    "scenes": Plan(
        "encsearch/recipes/scenes.yaml",
        EPOCHS,
        make_scenes,
        (16, 1, 64, 4, 8, 32, 2),
        (0.0, 0.2, 0.4, 0.7, 1.0),
        (0.002, 0.0043, 0.0093, 0.02, 0.043, 0.093, 0.2),
    ),
    "scenes-unit": Plan(
        "encsearch/recipes/scenes.yaml",
        {
            **EPOCHS,
            "model.codeword_init": "unit",
            "model.channels": 32,
            "train.global_batch_size": 8,
            "optim.clip_norm": 5.0,
            "optim.weight_decay": 1e-3,
        },
        partial(make_scenes, num_train=1000, seed=7),
        (2, 8, 32),
        (0.0, 0.1, 0.3, 0.6, 1.0),
        (0.003, 0.0065, 0.014, 0.03, 0.065, 0.14, 0.3),
    ),
    "camvid": Plan(
        "benchmarks/camvid_sgd.yaml",
        {
            **EPOCHS,
            "model.backbone": "tiny",
            "model.output_stride": 4,
            "model.channels": 32,
            "augment.crop": 64,
            "train.val_batch_size": 20,
            "scaling.cpus_per_worker": 1,
            "data.threads": 1,
        },
        make_camvid,
        (8, 32, 64),
        (0.0, 0.2, 0.4, 0.7, 1.0),
        (0.002, 0.0043, 0.0093, 0.02, 0.043, 0.093, 0.2),
    ),
}


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the grid."""

    num_codewords: int
    se_weight: float
    lr: float
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One epoch of one training. Scores are ratios on the validation split; `cpu_s` is of this epoch alone.

    Of a training that diverged the last row has no scores, and it has no epochs after that.
    """

    num_codewords: int
    se_weight: float
    lr: float
    seed: int
    epoch: int
    cpu_s: float
    miou: float | None = None
    miou_ambiguous: float | None = None
    train_loss: float | None = None


def main() -> None:
    arguments = parse()
    plan, out = PLANS[arguments.surface], FOLDER / f"{arguments.surface}.parquet"
    if arguments.join:
        print(join(plan, arguments.folder, out))
        return
    number, count = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    cells = true_cells(trained(arguments.folder, out)) if arguments.truth else plan.cells()
    folder = arguments.folder / f"part-{number}-of-{count}"
    if not (folder / "store").exists():
        plan.data(folder / "store", arguments.source)
    train_part(plan, folder, cells[number - 1 :: count])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("surface", choices=PLANS)
    parser.add_argument("--part", default="1/1", metavar="I/N", help="which cells this process trains")
    parser.add_argument("--truth", action="store_true", help="train the grid's best cells with more seeds")
    parser.add_argument("--source", type=Path, help="the data set, where it cannot be generated")
    parser.add_argument("--join", action="store_true", help="write the Parquet file from all parts")
    parser.add_argument("--folder", type=Path, required=True, help="of the parts")
    return parser.parse_args()


def trained(folder: Path, out: Path) -> dict[Cell, list[Row]]:
    """The rows of every training, of the file and of all parts."""
    found: dict[Cell, list[Row]] = {}
    for values in pq.read_table(out).to_pylist() if out.exists() else []:
        row = Row(**{"seed": 0, **values})
        found.setdefault(Cell(row.num_codewords, row.se_weight, row.lr, row.seed), []).append(row)
    for part in sorted(folder.glob("part-*")):
        for line in read_lines(part / "cells.jsonl"):
            found[Cell(**line["cell"])] = [Row(**row) for row in line["rows"]]
    return found


def true_cells(there: Mapping[Cell, Sequence[Row]]) -> list[Cell]:
    """The best cells of the grid, with each of the further seeds."""
    grid = {cell: rows for cell, rows in there.items() if cell.seed == 0}
    best = {cell: max(row.miou or 0.0 for row in rows) for cell, rows in grid.items()}
    chosen = sorted(best, key=lambda cell: (-best[cell], cell))[:NUM_TRUE]
    return [replace(cell, seed=seed) for cell in chosen for seed in TRUE_SEEDS]


def train_part(plan: Plan, folder: Path, cells: Sequence[Cell]) -> None:
    """Train the cells that `folder` does not hold yet, and add a line with all rows of each when it ends."""
    lines = folder / "cells.jsonl"
    base = trial_config(load_config(plan.recipe, [f"data.store={folder / 'store'}"]), {})
    base = with_values(base, plan.overrides)
    (folder / "config.json").write_text(to_json(base))
    there = {Cell(**line["cell"]) for line in read_lines(lines)}
    for cell in cells:
        if cell in there:
            continue
        rows = list(train(base, cell))
        append_line(lines, {"cell": asdict(cell), "rows": [asdict(row) for row in rows]})
        print(rows[-1], flush=True)


def train(base: Config, cell: Cell) -> Iterator[Row]:
    """The epochs of one cell, to the last one or to where it diverges."""
    point = {
        "model.num_codewords": cell.num_codewords,
        "loss.se_weight": cell.se_weight,
        "optim.lr": cell.lr,
        "train.seed": base.train.seed + cell.seed,
    }
    experiment = build(with_values(base, point))
    reports = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
    for epoch in range(1, experiment.plan.epochs + 1):
        started = time.process_time()
        try:
            metrics = next(reports).metrics
        except TrainingError:
            yield Row(**asdict(cell), epoch=epoch, cpu_s=time.process_time() - started)
            return
        yield Row(
            **asdict(cell),
            epoch=epoch,
            cpu_s=time.process_time() - started,
            miou=metrics["mIoU"],
            miou_ambiguous=metrics.get("mIoU/ambiguous"),
            train_loss=metrics["train/loss"],
        )


def join(plan: Plan, folder: Path, out: Path) -> str:
    """Write one Parquet file of every K of which all cells are there, and say what it holds.

    Raises UserError while there is no such K.
    """
    there = trained(folder, out)
    by_k = groupby(plan.cells(), lambda cell: cell.num_codewords)
    whole = [k for k, cells in by_k if there.keys() >= set(cells)]
    if not whole:
        count = len(plan.cells())
        raise UserError(f"{folder}: {len(there)} of {count} cells are there; train more with --part")
    rows = [row for cell in sorted(there) if cell.num_codewords in whole for row in there[cell]]
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    notes = json.dumps(made(sorted(folder.glob("part-*"))))
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"made": notes})
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out, compression="zstd")
    seeds = sum(cell.seed > 0 for cell in there)
    return (
        f"{out}: {len(rows)} epochs, K = {sorted(whole)}, {seeds} trainings with further seeds, "
        f"{sum(row.cpu_s for row in rows):.0f} CPU seconds"
    )


SCHEMA = pa.schema(
    [
        ("num_codewords", pa.int32()),
        ("se_weight", pa.float64()),
        ("lr", pa.float64()),
        ("seed", pa.int32()),
        ("epoch", pa.int32()),
        ("cpu_s", pa.float32()),
        ("miou", pa.float64()),
        ("miou_ambiguous", pa.float64()),
        ("train_loss", pa.float64()),
    ]
)


def made(parts: Sequence[Path]) -> dict[str, Any]:
    """What another machine needs to make the surface anew; the parts must agree on it."""
    notes = []
    for part in parts:
        config = json.loads((part / "config.json").read_text())
        del config["data"]  # a folder of this machine; the fingerprint tells what was in it
        manifest = json.loads((part / "store" / "manifest.json").read_text())
        notes.append({"config": config, "data_fingerprint": manifest["fingerprint"]})
    assert all(note == notes[0] for note in notes), "the parts differ in configuration or data"
    return {
        **notes[0],
        "script": "benchmarks/search_surface.py",
        "torch": version("torch"),
    }


if __name__ == "__main__":
    main()
