"""Summaries of small sweeps, for the tests of the report."""

import dataclasses
from typing import Any

from encsearch.config import Config, to_yaml
from encsearch.report.summary import FinalistSummary, SweepSummary
from encsearch.search.trials import Trial

SPACE = {
    "model.num_codewords": {"choice": [8, 16, 32, 64]},
    "loss.se_weight": {"uniform": [0.0, 1.0]},
    "optim.lr": {"loguniform": [1e-3, 1e-1]},
}


def values(codewords: int = 32, se_weight: float = 0.2, lr: float = 0.01) -> dict[str, Any]:
    return {"model.num_codewords": codewords, "loss.se_weight": se_weight, "optim.lr": lr}


TRIALS = (
    Trial(0, values(8, lr=0.001), "COMPLETE", 0.40, ((1, 0.2), (2, 0.3), (3, 0.4)), 30, cost_seconds=60),
    Trial(1, values(32, lr=0.1), "PRUNED", 0.10, ((1, 0.1),), 10, cost_seconds=20),
    Trial(2, values(16), "COMPLETE", 0.50, ((1, 0.3), (2, 0.5), (3, 0.45)), 30, cost_seconds=60),
    Trial(3, values(64, lr=0.05), "FAIL", 0.90, ((1, 0.9),), 10, "<b>NaN</b>", cost_seconds=20),
)


def finalist(value: float, seed: int = 1, trial: int | None = 2, label: str = "") -> FinalistSummary:
    return FinalistSummary(trial, seed, 2, value, 3, 60, {"Road": value, "Car": value / 2}, label, 1000)


def seeds(*values: float, trial: int | None = 2, label: str = "") -> tuple[FinalistSummary, ...]:
    """One configuration with a seed a value."""
    return tuple(finalist(value, seed, trial, label) for seed, value in enumerate(values))


def recipe(**search: Any) -> str:
    """The YAML of a recipe of three epochs, a rung after each."""
    base = {
        "space": SPACE,
        "budget": {"trials": 4},
        "asha": {"grace_epochs": 1, "reduction_factor": 2},
    }
    sections = {"data": {"store": "data"}, "train": {"epochs": 3}, "search": {**base, **search}}
    return to_yaml(Config.model_validate(sections))


def summary(search: dict[str, Any] | None = None, **changes: Any) -> SweepSummary:
    """A sweep of TRIALS whose trial 2 won; `search` changes the recipe."""
    base = SweepSummary(
        name="camvid",
        metric="mIoU",
        space={"model.num_codewords": "choice", "loss.se_weight": "uniform", "optim.lr": "loguniform"},
        epochs=3,
        trials=TRIALS,
        finalists=(finalist(0.45),),
        winner=2,
        config_yaml=recipe(**(search or {})),
        mlflow="mlflow ui",
        wall_seconds=400.0,
    )
    return dataclasses.replace(base, **changes)
