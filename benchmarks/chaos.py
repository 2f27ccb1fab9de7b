"""Does a training survive what happens to machines? Faults at random moments, and what is left is compared.

    python -m benchmarks.chaos                # from the repository's root, as root; an hour
    python -m benchmarks.chaos --only worker  # the kinds whose name or mode holds that

Each try is a training of 300 steps with a checkpoint every 10, by the command line and with the real
recorder, to which one fault of its kind is done at a random moment: one in each part of equal length of an
undisturbed run. What ends is resumed until it is finished. Then weights and figures must be those of the
undisturbed one of the same workers, MLflow must have one finished run with every epoch, and no process may be
left. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from encsearch.tracking.mlflow import connect
from tests.chaos.trainings import Ground, Try, kinds, moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chaos.json"))
    parser.add_argument(
        "--folder", type=Path, help="of the runs and their logs; a temporary one if not given"
    )
    parser.add_argument("--only", action="append", help="part of a kind's name or mode; may be given again")
    parser.add_argument("--tries", type=int, help="of each kind instead of its own number")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tries: list[Try] = []
    with nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory() as folder:
        place = Path(folder).absolute()
        place.mkdir(parents=True, exist_ok=True)
        database = place / "empty.db"
        connect(f"sqlite:///{database}", "Default")
        ground = Ground(place, database)
        for number, (kind, count) in enumerate(kinds()):
            if arguments.only and not any(part in f"{kind.name} {kind.mode}" for part in arguments.only):
                continue
            for moment in moments(arguments.tries or count, arguments.seed + number):
                done = ground.run(kind, moment)
                while not done.is_struck:  # the training had ended, or the process not begun
                    moment = random.uniform(0.1, 0.8)
                    done = ground.run(kind, moment)
                tries.append(done)
                print(
                    f"{done.kind}, {done.mode}, at {moment:.2f}: codes {done.codes}, {done.recovery_s:.0f} s "
                    f"{'; '.join(done.faults) or 'right'}",
                    flush=True,
                )
    print(table(tries))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(one) for one in tries], indent=1) + "\n")


def table(tries: list[Try]) -> str:
    by_kind: defaultdict[tuple[str, str], list[Try]] = defaultdict(list)
    for one in tries:
        by_kind[one.kind, one.mode].append(one)
    lines = [
        "| fault | training | tries | right at the end | resumes | s to the next epoch, median (most) |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, mode), found in by_kind.items():
        seconds = [one.recovery_s for one in found]
        lines.append(
            f"| {kind} | {mode} | {len(found)} | {sum(not one.faults for one in found)} "
            f"| {sum(len(one.codes) - 1 for one in found)} "
            f"| {statistics.median(seconds):.0f} ({max(seconds):.0f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
