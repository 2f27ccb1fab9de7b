"""What grows with the number of trials? Fake trials through the real study, ledger, record, report and lists.

    python -m benchmarks.scale                         # from the repository's root; an hour for 10,000 trials
    python -m benchmarks.scale --trials 100 --stages search report
    python -m benchmarks.scale --draw                  # docs/scaling.png from the JSON alone

A trial is a cheap learning curve with noise, one in FAILS_ONE_IN fails; nothing is trained, and Ray does not
run. All else is the code of a sweep with MLflow's SQLite store. Five stages, each a process of its own:

search   `Ledger` asks, hears, pauses, promotes, ends; `SweepRecords` records; a `Keeper` decides once a
         second and forecasts each 15 s, by a clock that goes on EVENT_S with each report. Checkpoints are
         real files of 1 kB. The parts are apart, and what the workers would do is left out.
send     the record goes to MLflow, chunk by chunk
resume   study, record, ledger and records are opened again as `encsearch resume` does
report   `encsearch report`: sweep.json is read, the page and its figures are written
list     `encsearch runs list` three times: the jobs, the sweep's trials, trials sorted by a param
units    of a made-up study in memory with so many trials: an ask (median of 21), a decision of the budget
         (median of 5); the choice of finalists, a forecast and a report, once each; an ask by CMA-ES and by
         GP (mean of ASKS)

CPU seconds of the process, without its imports; `last` is a trial's share in the last TAIL of them; memory is
the peak of the process (VmHWM). A stage that takes longer than --limit-s CPU seconds is cut off, and says how
many trials it came to. One run each. Prints Markdown and writes JSON stage by stage.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from encsearch.config import Config, require_search, with_values

OUT, FIGURE = Path("benchmarks/results/scale.json"), Path("docs/scaling.png")
SIZES = (100, 1000, 10000)
LABELS = ("before", "after")
UNITS = ("ask_ms", "decision_ms", "forecast_ms", "finalists_ms", "report_ms")
LIMIT_S = 900.0
ASKS = 16
ROOM, EVENT_S, FAILS_ONE_IN, TAIL = 16, 1.0, 50, 100
RECIPE: dict[str, Any] = {
    "name": "scale",
    "model": {"backbone": "tiny", "output_stride": 4, "channels": 16},
    "train": {"epochs": 9, "steps_per_epoch": 4, "global_batch_size": 8},
    "search": {
        "space": {
            "model.num_codewords": {"choice": [4, 8, 16, 32, 64]},
            "loss.se_weight": {"uniform": [0.0, 1.0]},
            "optim.lr": {"loguniform": [1e-3, 1e-1]},
            "optim.weight_decay": {"loguniform": [1e-6, 1e-3]},
        },
        "asha": {"grace_epochs": 1, "reduction_factor": 3},
        "confirm": {"finalists": 1, "seeds": [0, 1, 2], "baselines": []},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=SIZES)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--label", choices=LABELS, default=LABELS[-1], help="of the code that is measured")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--folder", type=Path, default=Path("runs/scale"), help="kept: stages build on it")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--draw", action="store_true")
    arguments = parser.parse_args()
    facts = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if not arguments.draw:
        for trials in arguments.trials:
            for stage in sorted(arguments.stages, key=list(STAGES).index):
                row = _measure(stage, arguments.folder / f"sweep-{trials}", trials, arguments.limit_s)
                facts.setdefault(arguments.label, {}).setdefault(str(trials), {})[stage] = row
                arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(_table(facts))
    if arguments.draw:
        _draw(facts)


def _measure(stage: str, folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    """Run a stage in a process of its own."""
    result = folder.with_name(f"{folder.name}-{stage}.json")
    result.unlink(missing_ok=True)
    process = get_context("spawn").Process(target=_run_stage, args=(stage, folder, trials, limit_s, result))
    load = os.getloadavg()[0]
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{stage} of {trials} trials ended with {process.exitcode}")
    row: dict[str, Any] = json.loads(result.read_text()) | {"load": round(load, 1)}
    print(f"{trials} trials, {stage}: {json.dumps(row)}", flush=True)
    return row


def _run_stage(stage: str, folder: Path, trials: int, limit_s: float, result: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{(folder.parent / f'{folder.name}.db').absolute()}"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    row = STAGES[stage](folder, trials, limit_s)
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    result.write_text(json.dumps(row | {"peak_mib": round(peak / 1024)}))


class Meter:
    """CPU seconds by part; time in a part within another counts for the inner one alone."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self._open: list[str] = []
        self._since_s = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def total(self) -> float:
        """Without the workers' part."""
        return sum(seconds for name, seconds in self.parts.items() if name != "workers")

    def _turn(self) -> None:
        now_s = time.process_time()
        if self._open:
            self.parts[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s


# The search, as a sweep's driver runs it.


def _search(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.data.scenes import generate_scenes
    from encsearch.data.store import Store
    from encsearch.search.budget.keeper import Keeper
    from encsearch.search.study.study import known_points
    from encsearch.tracking.outbox.record import own_record
    from encsearch.workflow.sweep.earlier import set_prior
    from encsearch.workflow.sweep.folder import NOTHING_EARLIER, begin, open_study, reopen
    from encsearch.workflow.sweep.records import parent_run

    shutil.rmtree(folder, ignore_errors=True)
    data = folder.with_name("scenes")
    if not data.exists():
        generate_scenes(data, num_train=4, num_val=4, num_test=1)
    config = with_values(
        Config.model_validate(RECIPE | {"data": {"store": str(data)}}), {"search.budget.trials": trials}
    )
    store = Store(config.data.store)
    begin(config, folder.parent, store.fingerprint, NOTHING_EARLIER, folder.name)
    _, place = reopen(folder)
    study = open_study(config, folder, place)
    set_prior(study, config, None)
    study.queue(known_points(config, require_search(config)))
    meter, clock = Meter(), Clock()
    keeper = Keeper(config, study, folder, ROOM, clock=clock)
    decide = keeper._decide

    def metered() -> None:
        with meter.part("budget"):
            decide()

    keeper._decide = metered  # type: ignore[method-assign]
    with own_record(folder) as record:
        parent = parent_run(config, store, record, folder, place)
        ledger = _ledger(config, store, study, record, parent.run, folder, keeper)
        marks = _drive(ledger, meter, clock, limit_s)
        with meter.part("end"):
            ledger.end_all("the budget was spent")
        parent.close("FINISHED")
    asked, end_s = marks[-1]
    tail_s = end_s - next(
        seconds for number, seconds in reversed(marks) if number <= asked - min(TAIL, asked // 2)
    )
    return {
        "trials": asked,
        "cpu_s": round(meter.total(), 2),
        "last_ms": round(1000 * tail_s / min(TAIL, asked // 2), 2),
        "parts_s": {name: round(seconds, 2) for name, seconds in sorted(meter.parts.items())},
        "journal_bytes": (folder / "study.journal").stat().st_size,
        "record_bytes": (folder / "record" / "events.jsonl").stat().st_size,
    }


class Clock:
    """Seconds that go on with the reports."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Silent:
    """A `Progress` that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def _ledger(
    config: Config, store: Any, study: Any, record: Any, parent: str, folder: Path, keeper: Any
) -> Any:
    from encsearch.runner.torch_process import TorchProcess
    from encsearch.search.ledger import Ledger, Network
    from encsearch.workflow.sweep.records import SweepRecords

    observer = SweepRecords(config, store, record, parent, folder, Silent(), TorchProcess())
    observer.settle(study.trials())
    return Ledger(
        config,
        study,
        observer,
        keeper,
        folder=folder,
        fingerprint=store.fingerprint,
        room=ROOM,
        network=lambda _: Network(1_000_000),
    )


def _drive(ledger: Any, meter: Meter, clock: Clock, limit_s: float) -> list[tuple[int, float]]:
    """Run the board as Tune does, an epoch of each running trial in turn.

    Returns (trials begun, CPU seconds) so far, after each start.
    """
    running: dict[str, Iterator[dict[str, Any]]] = {}
    begun: set[Path] = set()
    marks, count = [(0, 0.0)], 0
    while meter.total() < limit_s:
        while len(running) < ROOM:
            key = str(count)
            with meter.part("ask"):
                assignment = ledger.next_assignment(key)
            if assignment is None:
                break
            count += 1
            begun.add(assignment.folder)
            with meter.part("start"):
                ledger.started(key)
            running[key] = _train(assignment)
            marks.append((len(begun), meter.total()))
        if not running:
            with meter.part("poll"):
                if ledger.is_done():
                    break
        for key, steps in list(running.items()):
            with meter.part("workers"):
                result = next(steps)
            clock.now_s += EVENT_S
            with meter.part("report"):
                stops = ledger.reported(key, result)
            if stops or result["done"]:
                del running[key]
                with meter.part("end"):
                    ledger.ended(key)
            with meter.part("poll"):
                ledger.is_over()
    return marks


def _train(assignment: Any) -> Iterator[dict[str, Any]]:
    """What a trial's process sends and leaves in its folder; it repeats no report."""
    from encsearch.data.scenes import CLASSES
    from encsearch.reports import REPORTS_FILE, Point, Report, append, distinct_reports
    from encsearch.train.checkpoint_files import checkpoint_name, write_newest

    config, folder = assignment.config, assignment.folder
    number = int(folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    reached = max((one.epoch for one in distinct_reports(folder / REPORTS_FILE)), default=0)
    rng = np.random.default_rng((number, reached))
    peak = 0.8 - 0.05 * abs(np.log10(config.optim.lr) + 2) - 0.1 * (config.loss.se_weight - 0.3) ** 2
    origin = {"hardware": "1 x fake"}
    if number % FAILS_ONE_IN == FAILS_ONE_IN - 1:
        yield {**origin, "failure": "the loss is not finite", "done": True}
    for epoch in range(reached + 1, config.train.epochs + 1):
        value = float(np.clip(peak * (1 - np.exp(-epoch / 3)) + rng.normal(0, 0.01), 0, 1))
        report = Report(
            epoch=epoch,
            step=4 * epoch,
            seconds=60 + float(rng.normal()),
            metrics={"mIoU": value, "pixAcc": value, "train/loss": 1 - value, "val/loss": 1 - value},
            class_iou=dict.fromkeys(CLASSES, value),
            confusion=tuple(tuple(int(i == j) for j in range(len(CLASSES))) for i in range(len(CLASSES))),
            points=(Point(4 * epoch - 1, 1000 * epoch, {"lr": 0.01, "gradient_norm": 1.0}),),
        )
        append(folder / REPORTS_FILE, report)
        write_newest(
            folder, checkpoint_name(epoch), lambda path: path.joinpath("state").write_bytes(b"0" * 1000)
        )
        yield {**origin, "report": report.to_dict(), "done": epoch == config.train.epochs}


# What comes after.


def _send(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.tracking.mlflow import connect
    from encsearch.tracking.outbox.forward import Outbox, sending_alone
    from encsearch.tracking.outbox.mlflow_store import MlflowStore

    database = folder.with_name(f"{folder.name}.db")
    database.unlink(missing_ok=True)
    (folder / "record" / "sent.json").unlink(missing_ok=True)
    store = MlflowStore(connect())
    empty_bytes = database.stat().st_size
    marks, noted, meter = [(0, 0.0)], Noted(folder / "record"), Meter()
    outbox = Outbox(folder, store)
    while marks[-1][1] < limit_s:
        with sending_alone(folder), meter.part("send"):
            count = outbox.send_chunk()
        if not count:
            break
        marks.append((marks[-1][0] + count, meter.total()))
        noted.look()
    events = (folder / "record" / "events.jsonl").read_bytes().count(b"\n")
    reached, end_s = marks[-1]
    first, since_s = next(mark for mark in reversed(marks) if mark[0] <= reached - events * TAIL / trials / 2)
    return {
        "trials": round(trials * reached / events),
        "cpu_s": round(end_s, 2),
        "last_ms": round(1000 * (end_s - since_s) / (trials * (reached - first) / events), 2),
        "store_bytes": database.stat().st_size - empty_bytes,
        "noted_bytes": noted.written,
    }


class Noted:
    """How many bytes the sender writes to note how far it is."""

    def __init__(self, folder: Path) -> None:
        self._whole, self._lines = folder / "sent.json", folder / "sent-changes.jsonl"
        self._inode = self._size = self.written = 0

    def look(self) -> None:
        """Look after a chunk."""
        whole, size = self._whole.stat(), self._lines.stat().st_size if self._lines.exists() else 0
        self.written += whole.st_size if whole.st_ino != self._inode else 0
        self.written += max(0, size - self._size)
        self._inode, self._size = whole.st_ino, size


def _resume(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.data.store import Store
    from encsearch.search.budget.keeper import Keeper
    from encsearch.tracking.outbox.record import Record
    from encsearch.workflow.sweep.folder import open_study, reopen
    from encsearch.workflow.sweep.records import parent_run

    meter = Meter()
    config, place = reopen(folder)
    store = Store(config.data.store)
    with meter.part("study"):
        study = open_study(config, folder, place)
    with meter.part("record"):
        record = Record(folder)
    with meter.part("ledger"):
        parent = parent_run(config, store, record, folder, place)
        keeper = Keeper(config, study, folder, ROOM)
        ledger = _ledger(config, store, study, record, parent.run, folder, keeper)
        assert ledger.is_done()
    parts = {name: round(seconds, 2) for name, seconds in meter.parts.items()}
    return {"trials": len(study.trials()), "cpu_s": round(meter.total(), 2), "parts_s": parts}


def _report(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.search.budget.keeper import Keeper
    from encsearch.workflow.sweep.folder import open_study, reopen
    from encsearch.workflow.sweep.story import SWEEP_FILE, rewrite_report

    config, place = reopen(folder)
    study = open_study(config, folder, place)
    keeper = Keeper(config, study, folder, ROOM)
    (folder / SWEEP_FILE).write_text(_story(config, study, keeper))
    start_s = time.process_time()
    page = rewrite_report(folder)
    return {
        "trials": len(study.trials()),
        "cpu_s": round(time.process_time() - start_s, 2),
        "page_bytes": page.stat().st_size,
        "sweep_json_bytes": (folder / SWEEP_FILE).stat().st_size,
    }


def _story(config: Config, study: Any, keeper: Any) -> str:
    """`sweep.json`, with a winner whose trainings nobody ran."""
    from encsearch.config import to_yaml
    from encsearch.report.summary import FinalistSummary, SweepSummary, to_json
    from encsearch.search.confirm.finalists import pick_finalists
    from encsearch.search.trials import flag_trials

    found = study.trials()
    winner = pick_finalists(found, 1)[0]
    finalist = FinalistSummary(winner.number, 0, 1, winner.value or 0.0, 9, 540.0, parameters=1_000_000)
    story = SweepSummary(
        name=config.name,
        metric=config.metric,
        space={path: dimension.kind for path, dimension in study.search.space.items()},
        epochs=config.train.epochs,
        trials=found,
        finalists=tuple(replace(finalist, seed=seed) for seed in range(3)),
        winner=winner.number,
        config_yaml=to_yaml(config),
        wall_seconds=keeper.elapsed_s,
        flags=flag_trials(found),
        forecasts=keeper.points(),
    )
    return to_json(story)


def _list(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.cli.main import cli
    from encsearch.tracking.browse import runs
    from encsearch.tracking.browse.rows import Query

    tracking = runs.open_experiment(os.environ["MLFLOW_TRACKING_URI"])
    meter = Meter()
    commands = {
        "jobs": [],
        "sweep": ["--sweep", folder.name],
        "by_param": ["--kind", "trial", "--sort", "optim.lr"],
    }
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        for name, options in commands.items():
            with meter.part(name):
                cli(["runs", "list", *options], standalone_mode=False)
    stored = len(runs.search(tracking, Query(kind="trial")))
    parts = {name: round(seconds, 2) for name, seconds in meter.parts.items()}
    return {"trials": stored, "cpu_s": round(meter.total(), 2), "parts_s": parts}


# One call each, where the whole way there would take too long.


def _units(folder: Path, trials: int, limit_s: float) -> dict[str, Any]:
    from encsearch.search.budget.keeper import Keeper
    from encsearch.search.confirm.finalists import pick_finalists
    from encsearch.workflow.sweep.story import SWEEP_FILE, rewrite_report

    folder = folder.with_name(f"units-{trials}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    study, config = _make_up(trials)
    found: dict[str, Any] = {"trials": trials}

    def measure(name: str, call: Callable[[], object], times: int) -> None:
        seconds = []
        for _ in range(times):
            since_s = time.process_time()
            call()
            seconds.append(time.process_time() - since_s)
        found[name] = round(1000 * statistics.median(seconds), 2)

    measure("ask_ms", study.ask, 21)
    clock = Clock()
    keeper = Keeper(config, study, folder, ROOM, clock=clock)
    keeper._next_progress_s = float("inf")

    def decide() -> None:
        clock.now_s += 2
        keeper._decide()

    measure("decision_ms", decide, 5)
    measure("finalists_ms", lambda: pick_finalists(study.trials(), 1), 1)
    (folder / SWEEP_FILE).write_text(_story(config, study, keeper))
    measure("report_ms", lambda: rewrite_report(folder), 1)
    found["page_bytes"] = (folder / "artifacts" / "report.html").stat().st_size
    measure("forecast_ms", lambda: keeper._expected_end(0), 1)
    for sampler in ("cmaes", "gp"):
        _ask_often(100, sampler)  # their imports
        found[f"ask_by_{sampler}_ms"] = round(1000 * _ask_often(trials, sampler), 2)
    return found | {"cpu_s": round(time.process_time(), 2)}


def _ask_often(trials: int, sampler: str) -> float:
    """CPU seconds of an ask: the mean, since the prior answers some of them, and soon."""
    study, _ = _make_up(trials, sampler)
    since_s = time.process_time()
    for _ in range(ASKS):
        study.ask()
    return (time.process_time() - since_s) / ASKS


def _make_up(trials: int, sampler: str = "tpe") -> tuple[Any, Config]:
    """A study in memory of trials at all their fates, as ASHA leaves them, with 100 more to come."""
    from optuna.trial import TrialState, create_trial

    from encsearch.search.study.proposals import NO_PRIOR, _draw_from_prior, recipe_prior
    from encsearch.search.study.samplers import distribution
    from encsearch.search.study.study import Study

    config = with_values(Config.model_validate(RECIPE | {"data": {"store": "none"}}), {})
    config = with_values(config, {"search.budget.trials": trials + 100, "search.sampler": sampler})
    search = require_search(config)
    study = Study("memory", "units", search, config.train.epochs)
    study.believe(recipe_prior(config, search))
    rng = np.random.default_rng(0)
    distributions = {path: distribution(dimension) for path, dimension in search.space.items()}
    for number in range(trials):
        epochs = (1, 1, 1, 1, 1, 1, 3, 3, 9)[number % 9]
        curve = {epoch: float(1 - np.exp(-epoch / 3) + rng.normal(0, 0.05)) for epoch in range(1, epochs + 1)}
        notes = {"origin": ("prior", "sampler")[number % 2], "repeat": 0, "hardware": ["1 x fake"]}
        study._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if epochs == 9 else TrialState.RUNNING,
                value=max(curve.values()) if epochs == 9 else None,
                params=dict(_draw_from_prior(search.space, NO_PRIOR, rng)),
                distributions=distributions,
                intermediate_values=curve,
                user_attrs=notes
                | {"paused": epochs < 9, "seconds": 60.0 * epochs, "cost_seconds": 60.0 * epochs},
            )
        )
    study._read()
    return study, config


STAGES: Mapping[str, Callable[[Path, int, float], dict[str, Any]]] = {
    "search": _search,
    "send": _send,
    "resume": _resume,
    "report": _report,
    "list": _list,
    "units": _units,
}


def _table(facts: Mapping[str, Any]) -> str:
    sizes = sorted({size for rows in facts.values() for size in rows}, key=int)
    found = [
        (stage, size, label, facts.get(label, {}).get(size, {}).get(stage))
        for stage in STAGES
        for size in sizes
        for label in LABELS
    ]
    lines = [
        "| stage | trials | code | CPU s | a trial at the end, ms | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for stage, size, label, row in found:
        if row and stage != "units":
            cut = "" if row["trials"] >= int(size) else f" (cut off at {row['trials']:,})"
            lines.append(
                f"| {stage} | {int(size):,}{cut} | {label} | {row['cpu_s']:,.1f} "
                f"| {row.get('last_ms', '')} | {row['peak_mib']:,} |"
            )
    units = [*UNITS, "ask_by_cmaes_ms", "ask_by_gp_ms"]
    lines += ["", f"| one call | trials | code | {' | '.join(units)} |", "|---" * (3 + len(units)) + "|"]
    for stage, size, label, row in found:
        if row and stage == "units":
            costs = " | ".join(f"{row[name]:,.1f}" if name in row else "" for name in units)
            lines.append(f"| | {int(size):,} | {label} | {costs} |")
    return "\n".join(lines)


def _draw(facts: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from encsearch.report.charts.chart import WIDTH, legend_below
    from encsearch.style import LIGHT, look

    styles: dict[str, dict[str, Any]] = {
        "before": {"color": LIGHT.hues["orange"], "marker": "v", "linestyle": "--"},
        "after": {"color": LIGHT.hues["blue"], "marker": "o", "linestyle": "-"},
    }
    columns = [(stage, "cpu_s", 1) for stage in STAGES if stage != "units"]
    columns += [("units", name, 1000) for name in UNITS]
    with look(LIGHT):
        figure = Figure(figsize=(WIDTH, 5.8))
        plots = figure.subplots(2, len(UNITS), sharex=True, sharey="row")
        for plot, (stage, name, unit) in zip(plots.flat, columns, strict=True):
            plot.set_title(name.removesuffix("_ms") if stage == "units" else stage)
            for label, style in styles.items():
                rows = [facts.get(label, {}).get(str(size), {}).get(stage, {}) for size in SIZES]
                points = [(row["trials"], row[name] / unit) for row in rows if name in row]
                if points:
                    plot.loglog(*zip(*points, strict=True), **style)
                for size, (trials, seconds) in zip(SIZES, points, strict=False):
                    if trials < size:  # cut off
                        plot.loglog(trials, seconds, **style, markerfacecolor=LIGHT.paper, zorder=3)
            first = facts["after"][str(SIZES[0])][stage]
            plot.loglog(
                SIZES, [first[name] / unit * n / first["trials"] for n in SIZES], ":", color=LIGHT.muted
            )
            plot.minorticks_off()
        plots[0, 0].set_ylabel("CPU seconds of the whole")
        plots[1, 0].set_ylabel("CPU seconds of one call")
        for plot in plots[1]:
            plot.set_xlabel("trials")
        handles = [Line2D([], [], label=label, **style) for label, style in styles.items()]
        legend_below(figure, [*handles, Line2D([], [], linestyle=":", color=LIGHT.muted, label="linear")])
        figure.savefig(FIGURE)


if __name__ == "__main__":
    main()
