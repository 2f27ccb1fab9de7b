"""The surface that benchmarks/search.py searches: a training of every point of a grid, every epoch recorded.

    python benchmarks/search_surface.py --part 1/2 --folder surface &  # any number of parts, one thread each
    python benchmarks/search_surface.py --part 2/2 --folder surface
    python benchmarks/search_surface.py --join --folder surface        # once all parts are done

EncNet of jobs/recipes/demo.yaml on `scenes`, at each K x SE weight x learning rate of the grid. A training
takes 21 CPU seconds, the grid 90 CPU minutes. A part that is started again goes on after its last training.
The file that is shipped holds the recipe's K = 1, 4, 16 and 64: 140 of the 245 cells, one seed each. Its
columns are those of `Row`; how it was made is in the metadata of its schema.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from encsearch.config import Config, load_config, to_json, trial_config, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.errors import TrainingError, UserError
from encsearch.files import append_line, read_lines
from encsearch.train.experiment import build
from encsearch.train.loop import fit

RECIPE = "jobs/recipes/demo.yaml"
# 27 epochs are four rungs of halving by 3: after 1, 3, 9 and 27.
OVERRIDES = {"train.epochs": 27, "train.steps_per_epoch": 15}
NUM_VAL = 200
# The extent of the recipe's space; its own values of K come first, so that an unfinished grid has them.
NUM_CODEWORDS = (16, 1, 64, 4, 8, 32, 2)
SE_WEIGHTS = (0.0, 0.2, 0.4, 0.7, 1.0)
LEARNING_RATES = (0.002, 0.0043, 0.0093, 0.02, 0.043, 0.093, 0.2)
OUT = Path("benchmarks/surface/scenes.parquet")


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the grid."""

    num_codewords: int
    se_weight: float
    lr: float


@dataclass(frozen=True)
class Row:
    """One epoch of one cell. Scores are ratios on the validation split; `cpu_s` is of this epoch alone.

    Of a training that diverged the last row has no scores, and it has no epochs after that.
    """

    num_codewords: int
    se_weight: float
    lr: float
    epoch: int
    cpu_s: float
    miou: float | None = None
    miou_ambiguous: float | None = None
    train_loss: float | None = None


def main() -> None:
    arguments = parse()
    if arguments.join:
        print(join(arguments.folder, arguments.out))
        return
    number, count = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    train_part(arguments.folder / f"part-{number}-of-{count}", grid()[number - 1 :: count])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="1/1", metavar="I/N", help="which cells this process trains")
    parser.add_argument("--join", action="store_true", help="write the Parquet file from all parts")
    parser.add_argument("--folder", type=Path, required=True, help="of the parts")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def grid() -> tuple[Cell, ...]:
    """All cells, one K after another."""
    return tuple(Cell(k, weight, lr) for k, lr, weight in product(NUM_CODEWORDS, LEARNING_RATES, SE_WEIGHTS))


def train_part(folder: Path, cells: Sequence[Cell]) -> None:
    """Train the cells that `folder` does not hold yet, and add a line with all rows of each when it ends."""
    store, lines = folder / "scenes", folder / "cells.jsonl"
    if not store.exists():
        generate_scenes(store, num_val=NUM_VAL, num_test=1)
    base = trial_config(load_config(RECIPE, [f"data.store={store}"]), {})
    base = with_values(base, OVERRIDES)
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
            miou_ambiguous=metrics["mIoU/ambiguous"],
            train_loss=metrics["train/loss"],
        )


def join(folder: Path, out: Path) -> str:
    """Write one Parquet file of every K of which all cells are there, and say what it holds.

    Raises UserError while there is no such K.
    """
    parts = sorted(folder.glob("part-*"))
    lines = [line for part in parts for line in read_lines(part / "cells.jsonl")]
    there = {Cell(**line["cell"]): [Row(**row) for row in line["rows"]] for line in lines}
    whole = [k for k, cells in groupby(grid(), lambda cell: cell.num_codewords) if there.keys() >= set(cells)]
    if not whole:
        raise UserError(f"{folder}: {len(there)} of {len(grid())} cells are there; train more with --part")
    rows = [row for cell in sorted(there) if cell.num_codewords in whole for row in there[cell]]
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"made": json.dumps(made(parts))})
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out, compression="zstd")
    return f"{out}: {len(rows)} epochs, K = {sorted(whole)}, {sum(row.cpu_s for row in rows):.0f} CPU seconds"


SCHEMA = pa.schema(
    [
        ("num_codewords", pa.int32()),
        ("se_weight", pa.float64()),
        ("lr", pa.float64()),
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
        manifest = json.loads((part / "scenes" / "manifest.json").read_text())
        notes.append({"config": config, "data_fingerprint": manifest["fingerprint"]})
    assert all(note == notes[0] for note in notes), "the parts differ in configuration or data"
    return {
        **notes[0],
        "script": "benchmarks/search_surface.py",
        "num_val": NUM_VAL,
        "torch": version("torch"),
    }


if __name__ == "__main__":
    main()
