"""A few steps under torch's profiler, as a table of the operators that take most time."""

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP_STEPS = 5  # the first steps choose algorithms and fill caches
TOP_OPERATORS = 30


@dataclass(frozen=True)
class Window:
    """So many steps of an epoch are passed over, run with the profiler on but not kept, and kept."""

    skipped: int
    warm_up: int
    kept: int


def window(num_steps: int, num_kept: int) -> Window:
    """`num_kept` steps after the warm-up; in a short epoch the warm-up is cut first."""
    kept = max(1, min(num_kept, num_steps - 1))
    skipped = max(0, min(WARM_UP_STEPS, num_steps - kept - 1))
    return Window(skipped, min(1, num_steps - kept), kept)


def step_profiler(num_steps: int, num_kept: int, device: torch.device) -> profile:
    """A context for an epoch of `num_steps`; its `step()` is called after each."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    watched = window(num_steps, num_kept)
    steps = schedule(wait=watched.skipped, warmup=watched.warm_up, active=watched.kept, repeat=1)
    return profile(activities=activities, schedule=steps, acc_events=True)


def profile_table(profiler: profile, device: torch.device) -> str:
    """The operators with the most time of their own on the CPU, and where there is one on the GPU."""
    averages = profiler.key_averages()
    orders = {"CPU": "self_cpu_time_total"}
    if device.type == "cuda":
        orders["CUDA"] = "self_cuda_time_total"
    tables = [
        f"Top {TOP_OPERATORS} operators by their own {name} time\n"
        + averages.table(sort_by=order, row_limit=TOP_OPERATORS)
        for name, order in orders.items()
    ]
    return "\n".join(tables)
