"""What a trial of a sweep costs beside its training: encsearch's trials against Ray's documented pattern.

    python benchmarks/trial_overhead.py                      # 5 to 10 minutes on two cores

The documented pattern (Ray 2.60) is a Tune function that launches a TorchTrainer with TuneReportCallback in
it, and OptunaSearch. Both train the same network on the same data, one trial after the other, on one Ray of
four CPUs; both keep a checkpoint of each epoch. The pattern is given the settings of Ray Train that encsearch
uses, which make it a fifth cheaper.

CPU seconds: of the driver and of all processes below it, ended ones too, from a trial's suggestion to the
next one's, less the CPU seconds of the training, measured in a process that has trained before. They are
polled, so an ended process may lack its last 0.1 s. Wall seconds: from the suggestion to the first report
less that epoch's own seconds, and from the last report to the next suggestion. The first trial of a sweep,
which starts processes that later ones of encsearch take over, is apart; a share of it is in the mean.

Those trials are recorded by nobody. What a user pays is measured apart: the whole command `encsearch sweep`
with MLflow's SQLite store, its sender and the pictures of each trial, at two numbers of trials; the
difference, less the CPU seconds of the training, is the cost of a trial. Prints Markdown and writes JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from encsearch.config import Config, from_json, to_json, trial_config, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.files import append_line, read_lines

OUT = Path("benchmarks/results/trial_overhead.json")
NUM_CPUS = 4
POLL_S = 0.1
# How many times less CPU a trial of encsearch is meant to cost, by its number of workers.
GOALS = {1: 10, 2: 4}
RECIPE: dict[str, Any] = {
    "name": "overhead",
    "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
    "train": {"epochs": 2, "steps_per_epoch": 3, "global_batch_size": 8, "val_batch_size": 8},
    "search": {
        "space": {"optim.lr": {"loguniform": [0.01, 0.02]}},
        "scheduler": "none",
        "max_concurrent": 1,
    },
}
LEARNING_RATES = (0.01, 0.02)
# Trials of the two whole sweeps, whose difference counts.
WHOLE = (5, 45)
# A sweep's, one after the other; its first trial's costs are spread over all.
SWEEP_TRIALS = 20
NAMES = ("first", "later, median", f"mean of {SWEEP_TRIALS}")


@dataclass(frozen=True)
class Mark:
    """Something that the driver saw at `at_s` (wall clock) in a sweep: a suggestion, or a report."""

    way: str
    num_workers: int
    kind: str
    at_s: float
    epoch_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """One trial: CPU seconds beside the training, wall seconds before its first step and after its last."""

    way: str
    num_workers: int
    trial: int
    cpu_s: float
    before_s: float
    after_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=4, help="of each sweep, the first one apart")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        usage = _metered(_drive, Path(folder), arguments.trials)
        training_cpu_s = read_lines(Path(folder) / "training.jsonl")[0]["cpu_s"]
        marks = [Mark(**line) for line in read_lines(Path(folder) / "marks.jsonl")]
        whole_cpu_s = [_metered(_sweep_by_command, Path(folder), trials)[-1][1] for trials in WHOLE]
    rows = _rows(marks, usage, training_cpu_s)
    print(_table(rows))
    few, many = WHOLE
    recorded_cpu_s = (whole_cpu_s[1] - whole_cpu_s[0]) / (many - few) - training_cpu_s
    print(f"a trial of a whole sweep, recorded: {recorded_cpu_s:.2f} CPU s beside {training_cpu_s:.2f}")
    versions = {name: version(name) for name in ("ray", "torch", "optuna")}
    result = {
        "versions": versions,
        "cpus": os.cpu_count(),
        "training_cpu_s": training_cpu_s,
        "whole_cpu_s": dict(zip(map(str, WHOLE), whole_cpu_s, strict=True)),
        "recorded_cpu_s": recorded_cpu_s,
        "trials": [asdict(row) for row in rows],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# The meter, in this process.

Usage = list[tuple[float, float]]


def _metered(target: Callable[..., None], *arguments: Any) -> Usage:
    """Run `target` in a process and poll it and all below it: (wall clock, CPU seconds so far)."""
    process = get_context("spawn").Process(target=target, args=arguments)
    process.start()
    assert process.pid
    root = psutil.Process(process.pid)
    seen: dict[psutil.Process, float] = {root: 0.0}
    usage: Usage = []
    while process.is_alive():
        for child in root.children(recursive=True):
            seen.setdefault(child, 0.0)
        for one in seen:
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seen[one] = max(seen[one], times.user + times.system)
        usage.append((time.time(), sum(seen.values())))
        process.join(POLL_S)
    if process.exitcode:
        sys.exit(f"the measured process ended with {process.exitcode}")
    return usage


def _cpu_at(usage: Usage, at_s: float) -> float:
    """Between two polls, by proportion."""
    after = next(index for index, (when, _) in enumerate(usage) if when >= at_s)
    (t0, c0), (t1, c1) = usage[after - 1], usage[after]
    return c0 + (c1 - c0) * (at_s - t0) / (t1 - t0)


def _rows(marks: list[Mark], usage: Usage, training_cpu_s: float) -> list[Row]:
    """Of every trial but a sweep's last, which ends the one before it."""
    rows = []
    for way, num_workers in dict.fromkeys((mark.way, mark.num_workers) for mark in marks):
        sweep = [mark for mark in marks if (mark.way, mark.num_workers) == (way, num_workers)]
        starts = [index for index, mark in enumerate(sweep) if mark.kind == "suggestion"]
        for trial, (start, end) in enumerate(pairwise(starts)):
            suggestion, *reports, following = sweep[start : end + 1]
            cpu_s = _cpu_at(usage, following.at_s) - _cpu_at(usage, suggestion.at_s) - training_cpu_s
            before_s = reports[0].at_s - reports[0].epoch_s - suggestion.at_s
            rows.append(Row(way, num_workers, trial, cpu_s, before_s, following.at_s - reports[-1].at_s))
    return rows


def _table(rows: list[Row]) -> str:
    lines = [
        "| workers | trial | CPU s, encsearch | CPU s, pattern | ratio | goal "
        "| s to first step, e. / p. | s after last, e. / p. |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for num_workers, goal in GOALS.items():
        ways = {
            way: [row for row in rows if (row.way, row.num_workers) == (way, num_workers)]
            for way in ("encsearch", "pattern")
        }
        costs = [_costs(ways["encsearch"]), _costs(ways["pattern"])]
        for name, own, pattern in zip(NAMES, *costs, strict=True):
            ratio = pattern.cpu_s / own.cpu_s
            told = f"{ratio:.1f}x | {goal}x: {'met' if ratio >= goal else 'missed'}"
            lines.append(
                f"| {num_workers} | {name} | {own.cpu_s:.2f} | {pattern.cpu_s:.2f} | {told} "
                f"| {own.before_s:.1f} / {pattern.before_s:.1f} | {own.after_s:.1f} / {pattern.after_s:.1f} |"
            )
    return "\n".join(lines)


def _costs(rows: list[Row]) -> tuple[Row, Row, Row]:
    """Of the first trial, of a later one (medians), and of one of SWEEP_TRIALS with the first (means)."""
    first, *others = rows
    columns = ("cpu_s", "before_s", "after_s")
    later = {name: statistics.median(getattr(row, name) for row in others) for name in columns}
    mean = {
        name: (getattr(first, name) + (SWEEP_TRIALS - 1) * later[name]) / SWEEP_TRIALS for name in columns
    }
    return first, replace(first, **later), replace(first, **mean)


# What is measured, in a process of its own.


def _drive(folder: Path, trials: int) -> None:
    """Four sweeps on one Ray; `marks.jsonl` and `training.jsonl` in `folder` tell when what happened."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import ray

    from encsearch.runner.ray_session import CHEAPER_TRAIN, QUIET

    store = folder / "scenes"
    generate_scenes(store, num_train=32, num_val=8, num_test=1)
    config = with_values(
        Config.model_validate({**RECIPE, "data": {"store": str(store), "threads": 1}}),
        # One more than is measured, whose suggestion ends the last.
        {"search.budget.trials": trials + 1},
    )
    append_line(folder / "training.jsonl", {"cpu_s": _training_cpu_s(config)})
    # Ray's processes cannot import a script that was spawned.
    ray.cloudpickle.register_pickle_by_value(sys.modules[_train.__module__])
    os.environ |= CHEAPER_TRAIN | QUIET
    ray.init(address="local", num_cpus=NUM_CPUS, log_to_driver=False, logging_level="ERROR")
    for num_workers in GOALS:
        one = with_values(config, {"scaling.num_workers": num_workers})
        _sweep(one, folder)
        _sweep_by_pattern(one, folder)
    ray.shutdown()


def _training_cpu_s(config: Config) -> float:
    """Of all steps and validations of a trial, in a process that has trained before."""
    for _ in range(2):
        trained = _training(config)
        started = time.process_time()
        list(trained)
    return time.process_time() - started


def _training(config: Config) -> Iterator[Any]:
    from encsearch.train.experiment import build
    from encsearch.train.loop import fit

    experiment = build(config)
    return fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)


def _sweep(config: Config, folder: Path) -> None:
    from encsearch.data.store import Store
    from encsearch.reports import MemoryRecorder, Recorder, Report
    from encsearch.search.ledger import Network
    from encsearch.search.study.study import Proposal, Study
    from encsearch.search.sweep import run_sweep

    def mark(kind: str, epoch_s: float = 0.0) -> None:
        _write(folder, Mark("encsearch", config.scaling.num_workers, kind, time.time(), epoch_s))

    class MarkedStudy(Study):
        def ask(self) -> Proposal | None:
            mark("suggestion")
            return super().ask()

    class MarkingRecorder(MemoryRecorder):
        def log(self, report: Report) -> None:
            mark("report", report.seconds)

    class Observer:
        def open_recorder(self, number: int, config: Config) -> Recorder:
            return MarkingRecorder()

        def trial_ended(self, event: Any, config: Config, folder: Path) -> None:
            pass

        def follow(self, event: Any) -> None:
            pass

        def say(self, line: str) -> None:
            print(line)

    class Unlimited:
        def may_start(self) -> bool:
            return True

        def may_repeat(self) -> bool:
            return True

        def must_end(self) -> bool:
            return False

    assert config.search
    own = folder / f"encsearch-{config.scaling.num_workers}"
    study = MarkedStudy(str(own / "study.journal"), "overhead", config.search, config.train.epochs)
    run_sweep(config, Store(config.data.store), study, own, Observer(), Unlimited(), lambda _: Network(1))


def _sweep_by_command(folder: Path, trials: int) -> None:
    """`encsearch sweep` as its users run it, in a folder of its own, with one finalist."""
    from encsearch.cli.main import cli

    here = folder / f"whole-{trials}"
    here.mkdir()
    os.chdir(here)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    confirm = {"finalists": 1, "seeds": [0]}
    search = {**RECIPE["search"], "budget": {"trials": trials}, "confirm": confirm}
    recipe = {**RECIPE, "data": {"store": str(folder / "scenes"), "threads": 1}, "search": search}
    Path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    cli(["sweep", "recipe.yaml"], standalone_mode=False)


def _sweep_by_pattern(config: Config, folder: Path) -> None:
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    num_workers = config.scaling.num_workers

    def mark(kind: str, epoch_s: float = 0.0) -> None:
        _write(folder, Mark("pattern", num_workers, kind, time.time(), epoch_s))

    class MarkedSearch(OptunaSearch):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> Any:
            mark("suggestion")
            return super().suggest(trial_id)

    class MarkReports(tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "seconds" in result:
                mark("report", result["seconds"])

    assert config.search
    storage = folder / f"pattern-{num_workers}"
    tune.Tuner(
        _launch_trainer,
        param_space={
            "lr": tune.loguniform(*LEARNING_RATES),
            "config": to_json(trial_config(config, {})),
            "storage": str(storage),
        },
        tune_config=tune.TuneConfig(
            search_alg=MarkedSearch(metric="mIoU", mode="max"),
            num_samples=config.search.budget.trials,
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(storage), verbose=0, callbacks=[MarkReports()]
        ),
    ).fit()


def _launch_trainer(values: dict[str, Any]) -> None:
    """The Tune function of Ray's guide."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    config = with_values(from_json(values["config"]), {"optim.lr": values["lr"]})
    TorchTrainer(
        _train,
        train_loop_config={"config": to_json(config)},
        scaling_config=ray.train.ScalingConfig(num_workers=config.scaling.num_workers),
        run_config=ray.train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=values["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _train(values: dict[str, str]) -> None:
    """On every worker of Ray Train."""
    import ray.train

    from encsearch.train.checkpoint import save_checkpoint
    from encsearch.train.experiment import build
    from encsearch.train.loop import fit

    context = ray.train.get_context()
    rank = context.get_world_rank()
    experiment = build(from_json(values["config"]), rank=rank, world_size=context.get_world_size())
    for report in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        metrics = {"mIoU": report.metrics["mIoU"], "seconds": report.seconds}
        if rank > 0:
            ray.train.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(experiment.state, Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _write(folder: Path, mark: Mark) -> None:
    append_line(folder / "marks.jsonl", asdict(mark))


if __name__ == "__main__":
    main()
