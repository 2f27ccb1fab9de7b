"""What a training takes of its machine, sampled by a thread: processor, memory, disk, network, GPU.

Names are those of MLflow's "System metrics" tab; a megabyte is 10**6 bytes. psutil and pynvml are optional:
what they would tell is absent without them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from encsearch.records import Point

INTERVAL_S = 10.0
PROCESS_MEMORY = "system/process_memory_megabytes"

Reader = Callable[[], dict[str, float]]


class SystemSampler:
    """Samples the machine and, if `device` is one, the GPU of this process.

    The first rates count from when it was made.
    """

    def __init__(self, device: torch.device, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._readers = [*_machine_readers(), *_gpu_readers(device)]

    @contextmanager
    def running(self, step: Callable[[], int]) -> Iterator[list[Point]]:
        """Sample every interval while the block runs, and once at its end, into the list that it is given.

        `step` tells the optimizer step of the moment, and is called from the thread.
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
    """Counters of bytes as megabytes a second since they were read last."""

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
    """Percent of all CPUs' time that was worked since it was read last.

    psutil.cpu_percent() remembers the last time of each thread apart, and every epoch samples in a new one.
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
        """Without work, and all. Linux counts guests in the user's time too."""
        times = self._read()
        guests: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return times.idle + getattr(times, "iowait", 0.0), sum(times) - guests


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
    return [_unless(hidden, read) for read in readers]


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
        # By UUID: NVML counts the machine's GPUs, and torch those that this process may see.
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

    # A part of a GPU (MIG) has memory alone, and a GPU may fall silent.
    return [_unless((pynvml.NVMLError,), read) for read in (utilization, memory, power)]


def _unless(errors: tuple[type[Exception], ...], read: Reader) -> Reader:
    """`read`, or nothing whenever it raises one of `errors`."""

    def guarded() -> dict[str, float]:
        try:
            return read()
        except errors:
            return {}

    return guarded
