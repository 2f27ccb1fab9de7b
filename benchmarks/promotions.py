"""Eight processes promote at the same moment, again and again: who is champion, and who knows why.

    python benchmarks/promotions.py --stores sqlite          # 15 minutes on two cores that others use too

A round: eight processes have connected and start at once, each with a model of its own. They share one
MLflow store, an SQLite file or a server on one. What evaluation would find is given (`score`), since the
race is what is measured: each compares its model with the champion and moves the alias if it is better. One
that is told that another came first compares again, as its user would, until its model is promoted or
refused. Three ways:

- encsearch: settle, decide, append to the log, let the alias follow (`tracking.moves`, without its command);
- encsearch, one killed: the same, but one of the eight is ended by SIGKILL at a random moment of the round;
- naive: read the alias, compare, set it.

Ten rounds share a registered model, then comes a new one. A round ends well if the champion is the best of
all candidates so far. With the log the alias must also be where the log's last effective entry
says, before the next command mends anything (with kills: after), each effective entry must be a gain over the
champion that it replaced, every attempt that came back must be in the log, once, and nothing may have been
taken for a move by hand. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from encsearch.tracking.mlflow import connect
from encsearch.tracking.registry.aliases import move, settle, sign
from encsearch.tracking.registry.decisions import Draft, resolve
from encsearch.tracking.registry.mlflow_registry import MlflowRegistry

OUT = Path("benchmarks/results/promotions.json")
PROCESSES = 8
ALIAS = "champion"
ROUNDS_A_MODEL = 10  # every attempt reads the whole log of its model, which these fill as years would
LOGGED, KILLED, NAIVE = "encsearch", "encsearch, one killed", "naive"
LOG_FIGURES = ("overtaken", "alias_is_the_logs", "entries_are_gains", "all_logged_once", "adopted", "mended")
WAYS = (LOGGED, NAIVE, KILLED)
ROUND_TIMEOUT_S = 120
HEAD_START_S = 0.2  # all have what they are to do before the first begins
START_TIMEOUT_S = 120
KILL_WITHIN_S = 2.0
SET_UP = "import sys; from encsearch.tracking.mlflow import connect; connect(sys.argv[1])"

fork = get_context("fork")


@dataclass(frozen=True)
class Attempt:
    """What one process says in the end: how often it was told that another came first, and how long it took.

    `decisions` are the numbers of its entries in the log.
    """

    verdict: str
    overtaken: int
    decisions: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Round:
    """`errors` are the messages of processes that failed; the flags are what the docstring above asks for."""

    attempts: tuple[Attempt, ...]
    errors: tuple[str, ...]
    best_is_champion: bool
    alias_is_the_logs: bool
    entries_are_gains: bool
    all_logged_once: bool
    adopted: int
    mended: bool


def main() -> None:
    arguments = _arguments()
    results: list[dict[str, Any]] = []
    for kind in arguments.stores:
        for way in WAYS:
            num_rounds = arguments.killed_rounds if way == KILLED else arguments.rounds
            with _store(kind) as uri:
                rounds = list(_rounds(kind, uri, way, num_rounds, arguments.seed))
            unknown = dict.fromkeys(LOG_FIGURES) if way == NAIVE else {}
            results.append({"store": kind, "way": way, **_summary(rounds), **unknown})
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(_table(results))


def score(version: str) -> float:
    """A model's mIoU: later ones tend to be better, as a team's are."""
    return int(version) / 1000 + random.Random(int(version)).uniform(0, 0.02)


def promote(registry: MlflowRegistry, version: str, start_s: float) -> Attempt:
    """As `encsearch promote` decides and moves, with the scores given, from `start_s` of the clock on."""
    started_s = _wait_until(start_s)
    overtaken, decisions = 0, []
    while True:
        state = settle(registry, ALIAS).state
        is_better = state.version is None or score(version) > score(state.version)
        draft = Draft(
            sign(),
            "promoted" if is_better else "refused",
            ALIAS,
            state.version,
            version if is_better else None,
            state.head,
            figures={"mIoU": score(version)},
        )
        if not is_better:
            decisions.append(registry.append(draft))
            return Attempt("refused", overtaken, tuple(decisions), time.monotonic() - started_s)
        moved = move(registry, draft)
        decisions.append(moved.number)
        if moved.won:
            return Attempt("promoted", overtaken, tuple(decisions), time.monotonic() - started_s)
        overtaken += 1


def promote_naively(registry: MlflowRegistry, version: str, start_s: float) -> Attempt:
    started_s = _wait_until(start_s)
    champion = registry.holder(ALIAS)
    is_better = champion is None or score(version) > score(champion)
    if is_better:
        registry.set_holder(ALIAS, version)
    verdict = "promoted" if is_better else "refused"
    return Attempt(verdict, 0, (), time.monotonic() - started_s)


def _wait_until(start_s: float) -> float:
    time.sleep(max(0.0, start_s - time.monotonic()))
    return time.monotonic()


def _rounds(kind: str, uri: str, way: str, num_rounds: int, seed: int) -> Iterator[Round]:
    rng = random.Random(seed)
    workers = [Worker(uri) for _ in range(PROCESSES)]
    inspector = Worker(uri)
    tried: list[str] = []
    for number in range(num_rounds):
        block, place_in_block = divmod(number, ROUNDS_A_MODEL)
        model = f"raced-{block}"
        if place_in_block == 0:
            tried = []
            inspector.give(_register, model, PROCESSES * ROUNDS_A_MODEL)
            registered = inspector.take()
            assert registered is None, registered
        first = PROCESSES * place_in_block + 1
        versions = [str(version) for version in range(first, first + PROCESSES)]
        attempt = promote_naively if way == NAIVE else promote
        start_s = time.monotonic() + HEAD_START_S
        for worker, version in zip(workers, versions, strict=True):
            worker.give(attempt, model, version, start_s)
        victim = rng.randrange(PROCESSES) if way == KILLED else None
        if victim is not None:
            time.sleep(HEAD_START_S + rng.uniform(0, KILL_WITHIN_S))
            workers[victim].process.kill()
        found = [worker.take() for worker in workers]
        tried += [v for v, each in zip(versions, found, strict=True) if isinstance(each, Attempt)]
        attempts = tuple(each for each in found if isinstance(each, Attempt))
        errors = tuple(each for place, each in enumerate(found) if isinstance(each, str) and place != victim)
        if victim is not None:
            workers[victim].end()
            workers[victim] = Worker(uri)
        inspector.give(_inspect, model, way, tried, attempts, errors)
        seen = inspector.take()
        assert isinstance(seen, Round), seen
        yield seen
        print(f"{kind}, {way}: round {number + 1} of {num_rounds}", file=sys.stderr)
    for worker in (*workers, inspector):
        worker.end()


class Worker:
    """A process with a connection to the store of its own, which does what it is given."""

    def __init__(self, uri: str) -> None:
        """Returns when it is connected."""
        self._pipe, theirs = fork.Pipe()
        self.process = fork.Process(target=_work, args=(uri, theirs), daemon=True)
        self.process.start()
        assert self.take() == "ready"

    def give(self, function: Callable[..., Any], model: str, *arguments: Any) -> None:
        """`function` is called with the registry of the model first."""
        self._pipe.send((function, model, arguments))

    def take(self) -> Any:
        """What the function returned; a text if it raised, or if the process is gone or takes too long."""
        deadline_s = time.monotonic() + ROUND_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._pipe.poll(0.05):
                try:
                    return self._pipe.recv()
                except EOFError:
                    break
            if self.process.exitcode is not None:
                break
        return f"no answer, exit code {self.process.exitcode}"

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _work(uri: str, pipe: Any) -> None:
    tracking = connect(uri, experiment="Default")
    pipe.send("ready")
    while True:
        function, model, arguments = pipe.recv()
        try:
            pipe.send(function(MlflowRegistry(tracking, model), *arguments))
        except Exception as error:  # whatever it is, it is the result
            pipe.send(f"{type(error).__name__}: {error}"[:300])


def _inspect(
    registry: MlflowRegistry,
    way: str,
    tried: Sequence[str],
    attempts: tuple[Attempt, ...],
    errors: tuple[str, ...],
) -> Round:
    if way == NAIVE:
        best = max(tried, key=score)
        return Round(attempts, errors, registry.holder(ALIAS) == best, True, True, True, 0, False)
    mended = way == KILLED and bool(settle(registry, ALIAS).done)
    log = registry.log()
    state = resolve(log, ALIAS)
    # A process that was killed may have got its model promoted before.
    entered = {entry.draft.target for entry in state.moves if entry.draft.target}
    numbers = [entry.number for entry in log]
    ids = {entry.draft.signature.id for entry in log}
    return Round(
        attempts,
        errors,
        best_is_champion=state.version == max({*tried, *entered}, key=score),
        alias_is_the_logs=registry.holder(ALIAS) == state.version,
        entries_are_gains=all(
            entry.draft.target is not None
            and (entry.draft.source is None or score(entry.draft.target) > score(entry.draft.source))
            for entry in state.moves
        ),
        all_logged_once=len(ids) == len(log)
        and all(number in numbers for attempt in attempts for number in attempt.decisions),
        adopted=sum(entry.draft.verdict == "adopted" for entry in log),
        mended=mended,
    )


def _register(registry: MlflowRegistry, num_versions: int) -> None:
    """Versions without files: who races for an alias reads none."""
    client = registry.tracking.client
    client.create_registered_model(registry.model)
    for _ in range(num_versions):
        client.create_model_version(registry.model, "decision:/none", await_creation_for=0)


@contextmanager
def _store(kind: str) -> Iterator[str]:
    """A new SQLite store, or a server on one."""
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/mlflow.db"
        # Not here: a connection must not be shared by the processes that are forked from this one.
        subprocess.run([sys.executable, "-c", SET_UP, database], check=True)
        if kind == "sqlite":
            yield database
            return
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
        variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(Path(folder) / "log", "w") as log:
            server = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _await(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await(url: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            assert time.monotonic() < deadline_s, f"{url} does not answer"
            time.sleep(0.5)


def _summary(rounds: Sequence[Round]) -> dict[str, Any]:
    attempts = [attempt for each in rounds for attempt in each.attempts]
    seconds = sorted(attempt.seconds for attempt in attempts)
    return {
        "rounds": len(rounds),
        "attempts": len(attempts),
        "promoted": sum(attempt.verdict == "promoted" for attempt in attempts),
        "refused": sum(attempt.verdict == "refused" for attempt in attempts),
        "overtaken": sum(attempt.overtaken for attempt in attempts),
        "errors": [error for each in rounds for error in each.errors],
        "best_is_champion": sum(each.best_is_champion for each in rounds),
        "alias_is_the_logs": sum(each.alias_is_the_logs for each in rounds),
        "entries_are_gains": sum(each.entries_are_gains for each in rounds),
        "all_logged_once": sum(each.all_logged_once for each in rounds),
        "adopted": max(each.adopted for each in rounds),
        "mended": sum(each.mended for each in rounds),
        "median_s": statistics.median(seconds),
        "max_s": seconds[-1],
    }


def _table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown; what the naive way has no log for is a dash."""
    header = (
        "store | way | rounds | best model is champion | alias is the log's | log whole, each entry a gain |"
        " told that another was first | mended | errors | s an attempt, median | longest"
    )
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    for row in results:
        whole = [row["all_logged_once"], row["entries_are_gains"]]
        cells = [
            row["store"],
            row["way"],
            row["rounds"],
            row["best_is_champion"],
            row["alias_is_the_logs"],
            None if None in whole else min(whole),
            row["overtaken"],
            row["mended"] if row["way"] == KILLED else None,
            len(row["errors"]),
            f"{row['median_s']:.2f}",
            f"{row['max_s']:.2f}",
        ]
        lines.append("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "server"), default=["sqlite", "server"])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--killed-rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
