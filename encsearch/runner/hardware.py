"""The hardware of a training, in words, and its latency in milliseconds."""

import time
from statistics import median

import torch

from encsearch.train.experiment import Experiment
from encsearch.train.telemetry import device_name

LATENCY_REPEATS, LATENCY_WARM_UP = 9, 3


def describe_hardware(device: str) -> str:
    """As in "NVIDIA H200, torch 2.15.0": figures of two trainings are comparable if this is the same."""
    return f"{device_name(torch.device(device))}, torch {torch.__version__}"


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
