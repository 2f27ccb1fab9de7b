"""Numbers, times and lists as people read them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def format_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"  # noqa: RUF001


def format_param(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def format_cost(seconds: float, unit: str) -> str:
    """Device time: seconds of all GPUs, or CPUs, together."""
    hours = seconds / 3600
    return f"{hours:.3g} {unit}-hours" if hours >= 0.1 else f"{seconds:.0f} {unit}-seconds"


def format_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {format_param(value)}" for path, value in values.items())


def counted(number: int, noun: str) -> str:
    """ "1 trial", "2 trials"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(items: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return f" {last} ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def short_names(paths: Collection[str]) -> dict[str, str]:
    """Each path's last part, or the whole path where two share it."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}
