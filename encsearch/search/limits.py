"""Which proposals are refused before they are trained: pure."""

from dataclasses import dataclass

from encsearch.config import LimitsConfig


@dataclass(frozen=True)
class Network:
    """What a trial's network takes; a figure that no limit asks for may be None."""

    parameters: int
    memory_gib: float | None = None


@dataclass(frozen=True)
class Excess:
    """How far a trial is beyond a limit: `share` of the limit above it."""

    share: float
    reason: str


def excess(limits: LimitsConfig, network: Network) -> Excess | None:
    """The first limit that the network is beyond."""
    figures = (
        ("parameters", network.parameters, limits.parameters, "{:,.0f} parameters"),
        ("memory_gib", network.memory_gib, limits.memory_gib, "{:.3g} GiB of memory"),
    )
    for name, figure, limit, text in figures:
        if figure is not None and limit is not None and figure > limit:
            return _beyond(name, figure, limit, text)
    return None


def slow(limits: LimitsConfig, latency_ms: float) -> Excess | None:
    """Whether a measured latency is beyond the limit."""
    if limits.latency_ms is None or latency_ms <= limits.latency_ms:
        return None
    return _beyond("latency_ms", latency_ms, limits.latency_ms, "{:.3g} ms an image")


def _beyond(name: str, figure: float, limit: float, text: str) -> Excess:
    return Excess(
        figure / limit - 1,
        f"{text.format(figure)}, but search.limits.{name} is {text.format(limit).split()[0]}",
    )
