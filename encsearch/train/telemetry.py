"""The machine of a training, how much of it the training uses, and where its time goes.

System figures (processor, memory, disk, network, GPU) are sampled by a thread.

The names come from MLflow's "System metrics" tab; a megabyte is 10**6 bytes. psutil and pynvml are optional:
their figures are absent without them.
"""

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule

from encsearch.data.loading import Batch
from encsearch.reports import Point

INTERVAL_S = 10.0
PROCESS_MEMORY = "system/process_memory_megabytes"
WARM_UP_STEPS = 5  # the first steps choose algorithms and fill caches
TOP_OPERATORS = 30

Reader = Callable[[], dict[str, float]]


class SystemSampler:
    """Samples the machine and, if `device` is one, the GPU of this process.

    The first rates are measured from its creation on.
    """

    def __init__(self, device: torch.device, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._readers = [*_machine_readers(), *_gpu_readers(device)]

    @contextmanager
    def running(self, step: Callable[[], int]) -> Iterator[list[Point]]:
        """Sample every interval while the block runs, and once at its end, into the list that is yielded.

        `step` returns the current optimizer step; the thread calls it.
        """
        points: list[Point] = []
        stop = threading.Event()

        def sample() -> None:
            values = {name: value for read in self._readers for name, value in read().items()}
            if values:
                points.append(Point(step(), int(time.time() * 1000), values))

        def keep_sampling() -> None:
            while not stop.wait(self._interval_s):
                sample()

        thread = threading.Thread(target=keep_sampling, name="system metrics", daemon=True)
        thread.start()
        try:
            yield points
        finally:
            stop.set()
            thread.join()
        sample()


class _Rates:
    """Byte counters as megabytes per second since the last reading."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read
        self._before, self._read_at = read(), time.monotonic()

    def __call__(self) -> dict[str, float]:
        now, read_at = self._read(), time.monotonic()
        seconds = max(read_at - self._read_at, 1e-3)
        known = now.keys() & self._before.keys()  # a counter may appear while we run
        rates = {name: (now[name] - self._before[name]) / 1e6 / seconds for name in known}
        self._before, self._read_at = now, read_at
        return rates


class _Utilization:
    """Percentage of all CPUs' time that was busy since the last reading.

    psutil.cpu_percent() remembers the last reading per thread, and every epoch samples in a new thread.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._idle, self._all = self._seconds()
        self._percent = 0.0

    def __call__(self) -> float:
        idle, passed = self._seconds()
        if passed > self._all:  # the clock is coarse
            share = (idle - self._idle) / (passed - self._all)
            self._percent = min(max(100 * (1 - share), 0.0), 100.0)
            self._idle, self._all = idle, passed
        return self._percent

    def _seconds(self) -> tuple[float, float]:
        """Idle time and total time. Linux counts guests in the user's time too, so they are subtracted."""
        times = self._read()
        guests: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return times.idle + getattr(times, "iowait", 0.0), sum(times) - guests


def device_name(device: torch.device) -> str:
    """The model of the GPU or CPU, as in "NVIDIA H200"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def describe_machine(device: torch.device) -> str:
    """One fact per line: host, system, Python, CPU, and, for a GPU, its model and libraries."""
    facts = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": f"{os.cpu_count()} x {_cpu_name()}",
    }
    if device.type == "cuda":
        facts |= {
            "gpu": device_name(device),
            "cuda": torch.version.cuda or "none",
            "cudnn": str(torch.backends.cudnn.version()),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return "".join(f"{name}: {fact}\n" for name, fact in facts.items())


class TimedBatches(Iterator[Batch]):
    """Passes batches on and adds up in `waited_s` the time spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.waited_s = 0.0

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - started
        return batch


def largest_over_ranks(
    figures: Mapping[str, float], device: torch.device, world_size: int
) -> dict[str, float]:
    """The largest value of each figure over the ranks, without figures that are 0 on all of them.

    A collective: every rank calls it with the same names.
    """
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return {name: value for name, value in zip(figures, values.tolist(), strict=True) if value > 0}


@dataclass(frozen=True)
class Window:
    """Numbers of steps of an epoch that are skipped, profiled only to warm up, and kept."""

    skipped: int
    warm_up: int
    kept: int


def window(num_steps: int, num_kept: int) -> Window:
    """`num_kept` steps after the warm-up; in a short epoch the warm-up is cut first."""
    kept = max(1, min(num_kept, num_steps - 1))
    skipped = max(0, min(WARM_UP_STEPS, num_steps - kept - 1))
    return Window(skipped, min(1, num_steps - kept), kept)


def step_profiler(num_steps: int, num_kept: int, device: torch.device) -> profile:
    """A profiler context for an epoch of `num_steps`; its `step()` is called after each step."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    watched = window(num_steps, num_kept)
    steps = schedule(wait=watched.skipped, warmup=watched.warm_up, active=watched.kept, repeat=1)
    return profile(activities=activities, schedule=steps, acc_events=True)


def profile_table(profiler: profile, device: torch.device) -> str:
    """The operators with the most time of their own on the CPU and, if there is one, on the GPU."""
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


def _machine_readers() -> list[Reader]:
    try:
        import psutil
    except ImportError:
        return []
    process = psutil.Process()
    utilization = _Utilization(psutil.cpu_times)

    def processor() -> dict[str, float]:
        return {"system/cpu_utilization_percentage": utilization()}

    def memory() -> dict[str, float]:
        whole = psutil.virtual_memory()
        return {
            "system/system_memory_usage_megabytes": whole.used / 1e6,
            "system/system_memory_usage_percentage": whole.percent,
            PROCESS_MEMORY: process.memory_info().rss / 1e6,
        }

    def disk() -> dict[str, int]:
        moved = psutil.disk_io_counters()
        if moved is None:
            return {}
        return {
            "system/disk_read_megabytes_per_second": moved.read_bytes,
            "system/disk_write_megabytes_per_second": moved.write_bytes,
        }

    def network() -> dict[str, int]:
        moved = psutil.net_io_counters()
        if moved is None:
            return {}
        return {
            "system/network_receive_megabytes_per_second": moved.bytes_recv,
            "system/network_transmit_megabytes_per_second": moved.bytes_sent,
        }

    # Containers and sandboxes hide some of these.
    hidden = (OSError, NotImplementedError, psutil.Error)
    readers: list[Reader] = [processor, memory]
    for counters in (disk, network):
        with suppress(*hidden):
            readers.append(_Rates(counters))
    return [_guard(hidden, read) for read in readers]


def _gpu_readers(device: torch.device) -> list[Reader]:
    if device.type != "cuda":
        return []
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return []
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        pynvml.nvmlInit()
        # By UUID: NVML numbers all GPUs of the machine, torch only the GPUs that this process may see.
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return []
    prefix = f"system/gpu_{index}"

    def utilization() -> dict[str, float]:
        return {f"{prefix}_utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu}

    def memory() -> dict[str, float]:
        found = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        return {
            f"{prefix}_memory_usage_megabytes": found.used / 1e6,
            f"{prefix}_memory_usage_percentage": 100 * found.used / found.total,
        }

    def power() -> dict[str, float]:
        return {f"{prefix}_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000}

    # A part of a GPU (MIG) reports only memory, and a GPU may stop answering.
    return [_guard((pynvml.NVMLError,), read) for read in (utilization, memory, power)]


def _guard(errors: tuple[type[Exception], ...], read: Reader) -> Reader:
    """A reader that returns nothing when `read` raises one of `errors`."""

    def guarded() -> dict[str, float]:
        try:
            return read()
        except errors:
            return {}

    return guarded


def _cpu_name() -> str:
    """The CPU model on Linux; elsewhere the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
