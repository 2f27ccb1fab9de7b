"""The hardware of a training, in words, and its latency in milliseconds."""

import time
from statistics import median

import torch

from encsearch.config import ScalingConfig
from encsearch.data.loading import feed
from encsearch.errors import PreflightError, one_line
from encsearch.text import format_bytes, format_number
from encsearch.train.experiment import Experiment
from encsearch.train.kernels import has_bf16
from encsearch.train.telemetry import device_name

LATENCY_REPEATS, LATENCY_WARM_UP = 9, 3


def local_device(scaling: ScalingConfig) -> str:
    """The device of a training in this process. Raises PreflightError if it books a GPU and there is none."""
    if not scaling.gpus_per_worker:
        return "cpu"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        raise PreflightError(
            f"scaling.gpus_per_worker={format_number(scaling.gpus_per_worker)}, but no GPU can be used here "
            f"({one_line(error)}); try scaling.gpus_per_worker=0"
        ) from None
    return "cuda:0"


def describe_gpu(device: str) -> str:
    """What a training depends on: model, compute capability, memory, driver, bfloat16."""
    import pynvml  # type: ignore[import-untyped]

    facts = torch.cuda.get_device_properties(device)
    try:
        pynvml.nvmlInit()
        driver = f"driver {pynvml.nvmlSystemGetDriverVersion()}"
    except pynvml.NVMLError as error:
        driver = f"driver unknown ({error})"
    bf16 = "with bfloat16" if has_bf16(torch.device(device)) else "without bfloat16"
    memory = f"{format_bytes(facts.total_memory)} of memory"
    return f"{facts.name}, compute capability {facts.major}.{facts.minor}, {memory}, {driver}, {bf16}"


def describe_hardware(device: str) -> str:
    """As in "NVIDIA H200, torch 2.15.0": figures of two trainings are comparable if this is the same."""
    return f"{device_name(torch.device(device))}, torch {torch.__version__}"


def latency_ms(experiment: Experiment) -> float:
    """Median time of a forward pass on one whole validation image, on this training's device."""
    kernels = experiment.plan.kernels
    batches = feed(experiment.loaders.validation(), kernels.device, channels_last=kernels.channels_last)
    image = next(batches).images[:1]
    batches.close()  # else it would decode on, beside what is timed
    model = experiment.state.model
    was_training = model.training
    model.eval()
    times = []
    with torch.inference_mode(), kernels.chosen(one_size=False), kernels.autocast():
        for _ in range(LATENCY_WARM_UP + LATENCY_REPEATS):
            started = time.perf_counter()
            model(image)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            times.append(1000 * (time.perf_counter() - started))
    model.train(was_training)
    return median(times[LATENCY_WARM_UP:])
