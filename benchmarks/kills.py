"""Does a sweep survive kill -9? Drivers, trials and nodes are killed at random, and what is left is compared.

    python -m benchmarks.kills                      # from the repository's root, about a quarter of an hour

With --folder a run that was judged there before is not made again.

Three users at once, each with a folder and a tracking database of their own: one on a local Ray whose driver
is killed, and then its trials; one on a running cluster whose driver is killed; one on two nodes beside a
head, which are killed with all that runs there. The moments of the kills are spread over the whole of an
undisturbed run, for trials and nodes over its search: one at random in each part of equal length. Every
third resume is killed once more. Trials pause at their rung, and the best go on from there. What each sweep
has left at its end must be what the undisturbed one has left, see tests/chaos/evidence.py. Prints a Markdown
table and writes JSON.
"""

import argparse
import json
import random
import signal
import tempfile
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.evidence import Evidence, faults, read_evidence
from tests.chaos.sweeps import (
    Attempt,
    Moment,
    Strike,
    User,
    bring_to_end,
    kill_driver_at,
    kill_nodes_at,
    kill_trials_at,
    new_user,
    watch,
)
from tests.e2e.head import Workers, running_head

SEED = 1
DRIVER_RUNS, TRIAL_RUNS, NODE_RUNS = 5, 5, 5  # drivers of each kind of Ray
EVERY_SECOND_KILL = 3
TRIAL_KILLS, NODE_KILLS = 2, 1
CLUSTER_CPUS, NODES = 2, 2


@dataclass(frozen=True)
class Run:
    """One sweep to its end; `faults` is empty if it left what the undisturbed one left.

    `lost_trials` is how often a trial lost its process while the driver lived, `promoted` how often a paused
    one went on.
    """

    name: str
    ray: str
    killed: str
    moments: tuple[Moment, ...]
    attempts: tuple[Attempt, ...]
    lost_trials: int
    promoted: int
    faults: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        return not self.faults and self.attempts[-1].code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kills.json"))
    parser.add_argument("--folder", type=Path, help="of the runs; a temporary one if not given")
    arguments = parser.parse_args()
    with nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory() as folder:
        runs = all_runs(Path(folder).absolute())
    print(table(runs))
    print(json.dumps(facts(runs), indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**facts(runs), "runs": [asdict(run) for run in runs]}, indent=1) + "\n"
    )


def all_runs(folder: Path) -> list[Run]:
    for name in ("local", "cluster", "nodes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (
        running_head(folder / "cluster", CLUSTER_CPUS) as head,
        running_head(folder / "nodes", 0) as bare_head,
        closing(Workers(bare_head, folder / "nodes", NODES)) as workers,
        ThreadPoolExecutor() as pool,
    ):
        local = new_user(folder / "local")
        on_a_cluster = new_user(folder / "cluster", head.variables, lambda: (head.pid,))
        on_nodes = new_user(folder / "nodes", bare_head.variables, lambda: workers.pids)
        alone = undisturbed(local)
        lanes = (
            pool.submit(lambda: driver_runs(local, "local", alone) + trial_runs(local, alone)),
            pool.submit(driver_runs, on_a_cluster, "cluster", alone),
            pool.submit(node_runs, on_nodes, workers, alone),
        )
        return [run for lane in lanes for run in lane.result()]


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nothing interrupted: what it left, and the seconds of each of its lines and of its end."""

    evidence: Evidence
    line_s: tuple[float, ...]
    search_s: tuple[float, float]

    def moment(self, seconds: float) -> Moment:
        lines = bisect(self.line_s[:-1], seconds)
        return Moment(lines, seconds - self.line_s[lines - 1] if lines else seconds)


def undisturbed(user: User) -> Undisturbed:
    kept = user.shell.folder / "undisturbed.json"
    if kept.exists():
        line_s, folder = json.loads(kept.read_text())
    else:
        line_s = []
        (attempt,), folder = bring_to_end(user, "undisturbed", [watch(line_s)])
        assert attempt.code == 0
        kept.write_text(json.dumps([line_s, str(folder)]))
    said = Path(folder).parent.joinpath("attempt0.log").read_text(encoding="utf-8").splitlines()
    lines = [line for line in said if line.startswith("[")]
    begun, ended = (
        next(second for line, second in zip(lines, line_s, strict=False) if text in line)
        for text in ("trial 0 starts", "finalist trial")
    )
    return Undisturbed(read_evidence(Path(folder), user.tracking_uri), tuple(line_s), (begun, ended))


def driver_runs(user: User, ray: str, alone: Undisturbed) -> list[Run]:
    rng = random.Random(f"{SEED} {ray}")
    runs = []
    for place in rng.sample(range(DRIVER_RUNS), DRIVER_RUNS):
        lasted_s = alone.line_s[-1]
        moments = [alone.moment((place + rng.random()) / DRIVER_RUNS * lasted_s)]
        if place % EVERY_SECOND_KILL == EVERY_SECOND_KILL - 1:
            moments.append(alone.moment(rng.random() * lasted_s / 2))  # a resume says less
        strikes = [kill_driver_at(moment) for moment in moments]
        runs.append(judged(user, f"{ray}{place}", ray, "driver", moments, strikes, alone.evidence))
    return runs


def trial_runs(user: User, alone: Undisturbed) -> list[Run]:
    runs = []
    for place, moments in enumerate(moments_in_search(alone, "trials", TRIAL_RUNS, TRIAL_KILLS)):
        strikes = [kill_trials_at(moments)]
        runs.append(judged(user, f"trials{place}", "local", "trials", moments, strikes, alone.evidence))
    return runs


def node_runs(user: User, workers: Workers, alone: Undisturbed) -> list[Run]:
    runs = []
    for place, moments in enumerate(moments_in_search(alone, "nodes", NODE_RUNS, NODE_KILLS)):
        strikes = [kill_nodes_at(moments, workers)]
        runs.append(judged(user, f"nodes{place}", "two nodes", "nodes", moments, strikes, alone.evidence))
    return runs


def moments_in_search(alone: Undisturbed, kind: str, runs: int, kills: int) -> Iterator[list[Moment]]:
    """For each run, one moment at random in each of `kills` equal parts of the search."""
    rng = random.Random(f"{SEED} {kind}")
    begun_s, ended_s = alone.search_s
    part_s = (ended_s - begun_s) / kills
    for _ in range(runs):
        yield [alone.moment(begun_s + (part + rng.random()) * part_s) for part in range(kills)]


def judged(
    user: User,
    name: str,
    ray: str,
    killed: str,
    moments: Sequence[Moment],
    strikes: Sequence[Strike],
    expected: Evidence,
) -> Run:
    kept = user.shell.folder / f"{name}.json"
    if kept.exists():
        return from_json(kept.read_text())
    attempts, folder = bring_to_end(user, name, strikes)
    said = [path.read_text(encoding="utf-8") for path in sorted(folder.parent.glob("*.log"))]
    if attempts[-1].code == 0:
        wrong = faults(read_evidence(folder, user.tracking_uri), expected)
    else:
        wrong = [said[-1].strip().splitlines()[-1]]
    wrong += ["a process outlived its driver" for attempt in attempts if attempt.freed_s is None]
    lost = sum(text.count("lost its process") for text in said)
    promoted = sum(text.count(" goes on after epoch ") for text in said)
    run = Run(name, ray, killed, tuple(moments), tuple(attempts), lost, promoted, tuple(wrong))
    kept.write_text(json.dumps(asdict(run)))
    print(row(run), flush=True)
    return run


def from_json(text: str) -> Run:
    fields = json.loads(text)
    fields["attempts"] = tuple(Attempt(**attempt) for attempt in fields["attempts"])
    return Run(**{**fields, "moments": tuple(Moment(**moment) for moment in fields["moments"])})


def facts(runs: Sequence[Run]) -> Mapping[str, Any]:
    killed = [a for run in runs for a in run.attempts if a.code == -signal.SIGKILL]
    return {
        "runs": len(runs),
        "right": sum(run.is_right for run in runs),
        "drivers_killed": len(killed),
        "drivers_killed_by_phase": {
            phase: sum(a.phase == phase for a in killed)
            for phase in ("start", "search", "finalist", "report")
        },
        "trials_killed": sum(run.lost_trials for run in runs if run.killed == "trials"),
        "trials_lost_with_their_node": sum(run.lost_trials for run in runs if run.killed == "nodes"),
        "promotions": sum(run.promoted for run in runs),
        "started_anew": sum(a.command == "sweep" for run in runs for a in run.attempts[1:]),
        "ended_before_the_kill": sum(run.killed == "driver" and len(run.attempts) == 1 for run in runs),
        "slowest_freed_s": max(a.freed_s or 0.0 for run in runs for a in run.attempts),
    }


def table(runs: Sequence[Run]) -> str:
    heading = "| run | Ray | killed | attempts: what they did, for how long, how far they came | verdict |"
    return "\n".join([heading, "|---|---|---|---|---|", *map(row, runs)])


def row(run: Run) -> str:
    verdict = "the same" if run.is_right else "; ".join(run.faults)
    return f"| {run.name} | {run.ray} | {run.killed} | {', '.join(told(run))} | {verdict} |"


def told(run: Run) -> Iterator[str]:
    for attempt in run.attempts:
        end = "killed in" if attempt.code == -signal.SIGKILL else f"exit {attempt.code},"
        yield f"{attempt.command} {attempt.seconds:.0f} s, {end} {attempt.phase}"
    if run.killed != "driver":
        yield f"{run.lost_trials} lost"


if __name__ == "__main__":
    main()
