"""What a process trains on, in words."""

import os
import platform
import socket
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The model of the GPU or CPU, as in "NVIDIA H200"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def describe_machine(device: torch.device) -> str:
    """One fact a line: host, system, Python, CPU, and of a GPU its model and its libraries."""
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


def _cpu_name() -> str:
    """Linux alone tells the model; elsewhere it is the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
