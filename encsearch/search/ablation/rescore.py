"""Score saved models again with other evaluation settings, side by side on Ray."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from encsearch.config import EvalConfig, ScalingConfig
from encsearch.data.store import Store
from encsearch.errors import last_line
from encsearch.inference.bundle import read_bundle
from encsearch.inference.evaluation import score_bundle


@dataclass(frozen=True)
class Rescored:
    """The scores of one model, or the reason why there are none."""

    name: str
    metrics: dict[str, float]
    seconds: float
    failure: str | None = None


def rescore(
    models: Mapping[str, Path], store: Path, settings: EvalConfig, scaling: ScalingConfig
) -> Iterator[Rescored]:
    """Score bundles, name -> folder, on the split of `store` that each was validated on, in any order.

    A scoring has the CPUs and the GPU of one worker.
    """
    task = ray.remote(_score).options(num_cpus=scaling.cpus_per_worker, num_gpus=scaling.gpus_per_worker)
    device = "cuda:0" if scaling.gpus_per_worker else "cpu"
    # Absolute paths, because a worker has its own working directory.
    names = {
        task.remote(folder.absolute(), store.absolute(), settings, device): name
        for name, folder in models.items()
    }
    waiting = list(names)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            metrics, seconds = ray.get(done)
        except ray.exceptions.RayError as error:  # also what the task raised
            yield Rescored(names[done], {}, 0.0, last_line(error))
        else:
            yield Rescored(names[done], metrics, seconds)


def _score(folder: Path, store: Path, settings: EvalConfig, device: str) -> tuple[dict[str, float], float]:
    started = time.monotonic()
    bundle = read_bundle(folder)
    config = bundle.config.model_copy(update={"eval": settings})
    scored = replace(bundle, config=config)
    evaluation = score_bundle(scored, Store(store), config.data.val_split, device=device)
    return evaluation.to_metrics(), time.monotonic() - started
