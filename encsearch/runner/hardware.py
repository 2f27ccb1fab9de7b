"""What a training runs on, in words and in milliseconds."""

import platform
import time
from pathlib import Path
from statistics import median

import torch

from encsearch.experiment import Experiment

LATENCY_REPEATS, LATENCY_WARM_UP = 9, 3


def describe_hardware(device: str) -> str:
    """As in "NVIDIA H200, torch 2.15.0": figures of two trainings are comparable if this is the same."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu_name()
    return f"{name}, torch {torch.__version__}"


def latency_ms(experiment: Experiment) -> float:
    """Median time of a forward pass on one whole validation image, on this training's device."""
    image = next(iter(experiment.loaders.validation())).images[:1].to(experiment.plan.device)
    model = experiment.state.model
    was_training = model.training
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(LATENCY_WARM_UP + LATENCY_REPEATS):
            started = time.perf_counter()
            model(image)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            times.append(1000 * (time.perf_counter() - started))
    model.train(was_training)
    return median(times[LATENCY_WARM_UP:])


def _cpu_name() -> str:
    """Linux alone tells the model; elsewhere it is the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
