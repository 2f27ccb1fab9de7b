"""What a sweep has left behind, read with Optuna's and MLflow's own clients, and what is wrong with it.

An interrupted sweep is judged against one of the same recipe that nothing interrupted: apart from times, the
folder's name and `resumed_from_step` the two must have left the same, to the last digit.
"""

import fcntl
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from encsearch.files import read_lines
from encsearch.reports import distinct_reports

PARENT = "the sweep"
# Metrics whose names begin so tell of the process and not of the training.
OF_THE_PROCESS = ("seconds", "resumed_from_step", "memory/", "system/", "throughput/", "time/")
# Each process that takes a training up writes on what machine, and pictures are named by their time.
A_PROCESS_BEGAN = "machine_epoch_*.txt"
PICTURE_TIME = r"\+timestamp\+\d+\+[0-9a-f-]+"
# A sweep that takes long enough has forecast its end.
OF_THE_PACE = ("forecasts.png",)
TOLD_TAGS = ("encsearch.kind", "encsearch.state", "encsearch.reason", "encsearch.trial")

Series = tuple[tuple[int, float], ...]
"""A metric by step, in the order of the steps."""


@dataclass(frozen=True)
class TrialFacts:
    state: str
    values: Mapping[str, Any]
    curve: Series
    told: float | None


@dataclass(frozen=True)
class RunFacts:
    """An MLflow run; `artifacts` are the paths of its files, without what depends on the time."""

    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, Series]
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """`finalists` holds the curve of each; `doubled` names runs of MLflow that are there more than once.

    `checkpoints` are those of trials, relative to the sweep's folder.
    """

    trials: Mapping[int, TrialFacts]
    finalists: Mapping[str, Series]
    winner: str
    value: float
    runs: Mapping[str, RunFacts]
    doubled: tuple[str, ...]
    checkpoints: tuple[str, ...]
    is_locked: bool


def read_evidence(folder: Path, tracking_uri: str) -> Evidence:
    """Of a sweep that has ended; raises FileNotFoundError where it has not."""
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    runs = list(_runs(MlflowClient(tracking_uri=tracking_uri), summary["experiment_id"], folder.name))
    names = Counter(name for name, _ in runs)
    return Evidence(
        trials=_trials(folder),
        finalists={
            line["name"]: tuple(
                (report.epoch, report.metrics[summary["metric"]])
                for report in distinct_reports(folder / "finalists" / line["name"] / "reports.jsonl")
            )
            for line in read_lines(folder / "finalists" / "finalists.jsonl")
        },
        winner=Path(summary["bundle"]).parts[1],
        value=summary["value"],
        runs=dict(runs),
        doubled=tuple(name for name, count in names.items() if count > 1),
        checkpoints=tuple(sorted(str(p.relative_to(folder)) for p in folder.glob("trials/*/*checkpoint*"))),
        is_locked=_is_locked(folder / "lock"),
    )


def faults(found: Evidence, expected: Evidence) -> list[str]:
    """In what `found` differs from the evidence of a sweep that nothing interrupted, a line each."""
    return [
        *_differences("trial", found.trials, expected.trials),
        *_differences("finalist", found.finalists, expected.finalists),
        *_differences("run of", found.runs, expected.runs),
        *(
            f"{name}: {getattr(found, name)}, not {getattr(expected, name)}"
            for name in ("winner", "value")
            if getattr(found, name) != getattr(expected, name)
        ),
        *(f"MLflow has {name} more than once" for name in found.doubled),
        *(f"{path} is left" for path in found.checkpoints),
        *(["the folder is locked"] if found.is_locked else []),
    ]


def _differences(kind: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> Iterator[str]:
    for name in sorted(found.keys() | expected.keys(), key=str):
        if name not in found or name not in expected:
            yield f"{kind} {name} is {'missing' if name in expected else 'too much'}"
        elif found[name] != expected[name]:
            yield f"{kind} {name}: {', '.join(_fields_that_differ(found[name], expected[name]))}"


def _fields_that_differ(found: Any, expected: Any) -> Iterator[str]:
    if not isinstance(found, RunFacts | TrialFacts):
        yield f"{found}, not {expected}"
        return
    for field, is_value in vars(found).items():
        should = getattr(expected, field)
        if is_value == should:
            continue
        if isinstance(should, dict):
            for key in sorted(is_value.keys() | should.keys()):
                if is_value.get(key) != should.get(key):
                    yield f"{field} {key} {is_value.get(key)}, not {should.get(key)}"
        elif isinstance(should, tuple):
            missing = sorted(set(should) - set(is_value))
            yield f"{field} without {missing}, with {sorted(set(is_value) - set(should))} too much"
        else:
            yield f"{field} {is_value}, not {should}"


def _trials(folder: Path) -> dict[int, TrialFacts]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name=folder.name, storage=storage)
    return {
        trial.number: TrialFacts(
            state=trial.state.name,
            values=trial.params,
            curve=tuple(sorted(trial.intermediate_values.items())),
            told=trial.value if trial.state.name == "COMPLETE" else None,
        )
        for trial in study.get_trials()
    }


def _runs(client: MlflowClient, experiment_id: str, sweep: str) -> Iterator[tuple[str, RunFacts]]:
    """The sweep's own run and its children, by name; a name may come twice."""
    kind = "tags.`encsearch.kind` = 'sweep'"
    parents = client.search_runs([experiment_id], f"{kind} AND tags.`encsearch.sweep` = '{sweep}'")
    for parent in parents:
        yield PARENT, _facts(client, parent)
        query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        for child in client.search_runs([experiment_id], query, max_results=1000):
            yield child.info.run_name, _facts(client, child)


def _facts(client: MlflowClient, run: Run) -> RunFacts:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return RunFacts(
        status=run.info.status,
        params=run.data.params,
        tags={name: value for name, value in run.data.tags.items() if name in TOLD_TAGS},
        metrics={
            key: tuple(sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)))
            for key in run.data.metrics
            if not key.startswith(OF_THE_PROCESS)
        },
        artifacts=tuple(
            sorted(
                re.sub(PICTURE_TIME, "", str(path.relative_to(root)))
                for path in root.rglob("*")
                if path.is_file() and path.name not in OF_THE_PACE and not path.match(A_PROCESS_BEGAN)
            )
        ),
    )


def _is_locked(path: Path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
