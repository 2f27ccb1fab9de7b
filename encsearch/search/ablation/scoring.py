"""What an ablation scores after its trainings, side by side on Ray: weights again, dictionaries of words."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from encsearch.config import EvalConfig, ScalingConfig
from encsearch.data.store import Store
from encsearch.errors import last_line
from encsearch.inference.bundle import read_bundle
from encsearch.inference.evaluation import predict_presence, score_bundle
from encsearch.search.ablation.words import SCENE_ACCURACY, score_scenes
from encsearch.train.gpu_memory import keep_to_part, telling_full_gpu

Scoring = Callable[[str], dict[str, float]]
"""Metrics by name, computed on the device of that name."""


@dataclass(frozen=True)
class Scored:
    """The metrics of one scoring, or the reason why there are none."""

    name: str
    metrics: dict[str, float]
    seconds: float
    failure: str | None = None


def score_side_by_side(scorings: Mapping[str, Scoring], scaling: ScalingConfig) -> Iterator[Scored]:
    """Run scorings by name, each with the CPUs and the GPU of one worker, in any order."""
    # Without a retry: Ray would start one that runs out of memory again and again.
    task = ray.remote(_run).options(
        num_cpus=scaling.cpus_per_worker, num_gpus=scaling.gpus_per_worker, max_retries=0
    )
    device = "cuda:0" if scaling.gpus_per_worker else "cpu"
    names = {task.remote(scoring, scaling, device): name for name, scoring in scorings.items()}
    waiting = list(names)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            metrics, seconds = ray.get(done)
        except ray.exceptions.RayError as error:  # also what the task raised
            yield Scored(names[done], {}, 0.0, last_line(error))
        else:
            yield Scored(names[done], metrics, seconds)


def score_weights(
    folder: Path, store: str, settings: EvalConfig, scene_pattern: str | None, device: str
) -> dict[str, float]:
    """Score a bundle on the split of `store` that it was validated on.

    With a pattern of scenes also how well a linear layer tells them from the predicted presence. `store` is
    an address and `folder` absolute, because a worker has its own working directory.
    """
    bundle = read_bundle(folder)
    data = bundle.config.data
    scored = replace(bundle, config=bundle.config.model_copy(update={"eval": settings}))
    opened = Store(store)
    metrics = score_bundle(scored, opened, data.val_split, device=device).to_metrics()
    if scene_pattern and bundle.model.context is not None:
        train, val = (
            predict_presence(scored, opened, split, device) for split in (data.train_split, data.val_split)
        )
        metrics[SCENE_ACCURACY] = score_scenes(train, val, scene_pattern)
    return metrics


def _run(scoring: Scoring, scaling: ScalingConfig, device: str) -> tuple[dict[str, float], float]:
    started_s = time.monotonic()
    keep_to_part(scaling, device)
    with telling_full_gpu(torch.device(device)):
        metrics = scoring(device)
    return metrics, time.monotonic() - started_s
