"""Format numbers, shares, times and lists for people; no other module of encsearch does so.

Programs get raw numbers: JSON, CSV, MLflow's metrics and params. NOTHING stands for a missing value.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

NOTHING = "-"
MAX_NAMES = 12  # in a sentence

# Metrics that are shares in [0, 1] begin like this; the rows of an ablation end with its budget.
_SCORES: tuple[str, ...] = ("mIoU", "pixAcc", "mAcc", "fwIoU", "IoU/", "foreground/", "boundary/", "size/")
_SCORES += ("presence/", "over_seeds/")
_BUDGET = " epochs"


def format_number(value: float) -> str:
    """As in 0.01235, 12.34, 1,234,567: four significant digits, or a whole number from 1,000 on."""
    # Four digits would round 999.95 up to 1000 without its comma.
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def format_count(number: float | None, noun: str = "") -> str:
    """As in 1 trial, 2 trials, 3 classes, 1,234."""
    if number is None:
        return NOTHING
    shown = format_number(number)
    plural = "" if shown == "1" or not noun else "es" if noun.endswith("s") else "s"
    return f"{shown} {noun}{plural}".rstrip()


def format_param(value: Any) -> str:
    """As in 0.01235, 16, poly: as a recipe could have it, four significant digits at most."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def round_figure(value: Any) -> Any:
    """A figure with six significant digits, more than any is known with: MLflow shows all that it gets."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def format_given(value: float) -> str:
    """As in 2 or 0.123456789: a number that is refused, with the digits that it was given with."""
    return f"{value:.12g}"


def format_params(values: Mapping[str, Any]) -> str:
    """As in model.num_codewords=8, optim.lr=0.05: rounded, to be read."""
    return ", ".join(f"{path}={format_param(value)}" for path, value in values.items())


def is_score(metric: str) -> bool:
    """Whether a metric is a share of pixels, objects or images, by its name."""
    # An own metric is named module:Object.
    return metric.removeprefix("best/").startswith(_SCORES) or metric.endswith(_BUDGET) or ":" in metric


def format_metric(name: str, value: float | None) -> str:
    """As in 81.42 % for a score, 0.6931 for anything else."""
    if value is None:
        return NOTHING
    return format_score(value) if is_score(name) else format_number(value)


def format_score(share: float | None) -> str:
    """As in 81.42 %, for sentences and where units differ."""
    return NOTHING if share is None else f"{format_percent(share)} %"


def format_percent(share: float | None, *, signed: bool = False) -> str:
    """As in 81.42 or, signed, +0.52: under a heading that says %."""
    return NOTHING if share is None else f"{100 * share:{'+' if signed else ''}z.2f}"


def format_points(difference: float, *, signed: bool = False) -> str:
    """As in 0.52 points or, signed, +0.52 points: the difference of two scores."""
    return f"{format_percent(difference, signed=signed)} points"


def format_interval(interval: tuple[float, float], *, signed: bool = False) -> str:
    """As in [80.90, 81.94], in percent or points: beside a figure that has the unit."""
    low, high = interval
    return f"[{format_percent(low, signed=signed)}, {format_percent(high, signed=signed)}]"


def format_estimate(mean: float, interval: tuple[float, float] | None, *, signed: bool = False) -> str:
    """As in 81.42 [80.90, 81.94], or 81.42 without an interval: under a heading that says %."""
    shown = format_percent(mean, signed=signed)
    return f"{shown} {format_interval(interval, signed=signed)}" if interval else shown


def format_share(share: float, *, signed: bool = False) -> str:
    """As in 12.5 %, 0.31 % or, signed, +12 %: any share but a score, three significant digits at most."""
    percent, sign = 100 * share, "+" if signed else ""
    return f"{percent:{sign}.0f} %" if abs(percent) >= 100 else f"{percent:{sign}.3g} %"


def format_duration(seconds: float) -> str:
    """As in 0.31 s, 45 s, 12 min, 1 h 32 min, 2 d 3 h; NOTHING for an endless one."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return _format_two(minutes, 60, "h", "min")
    return _format_two(hours, 24, "d", "h")


def format_clock(seconds: float) -> str:
    """As in 03:07: the minutes and seconds since a start, before the lines of a log."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def format_time(seconds: float | None) -> str:
    """As in 2026-11-22 23:17:12: local time from seconds since 1970."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else NOTHING


def format_cost(seconds: float, unit: str) -> str:
    """As in 1.25 GPU-hours, 90 GPU-seconds: the sum over all devices."""
    if seconds < 360:
        return format_count(round(seconds), f"{unit}-second")
    return format_count(seconds / 3600, f"{unit}-hour")


def format_price(amount: float | None, unit: str = "") -> str:
    """As in ", 1,204.50 in money" or ", 0.12 in money a point"; nothing without a price."""
    return "" if amount is None else f", {format_money(amount)} in money{unit}"


def format_money(amount: float) -> str:
    """As in 1,204.50: in the currency of the price that was given."""
    return f"{amount:,.2f}"


def format_bytes(size: float) -> str:
    """As in 512 bytes, 24.3 MiB, 1.25 GiB."""
    if size < 1000:
        return format_count(size, "byte")
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 999.5:
            return f"{size:.3g} {unit}"
    size /= 1024
    return f"{size:.3g} GiB" if size < 999.5 else f"{size:,.0f} GiB"


def metric_name(name: str) -> str:
    """Replace what MLflow does not take in a metric's name: it takes letters, digits and _-. :/."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def printable(text: str) -> str:
    """The text with what could command a terminal, or cannot be shown, written as an escape, as in \\x1b."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def format_list(items: Sequence[str], last: str = "and") -> str:
    """As in a, b and c."""
    return f" {last} ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def format_names(names: Sequence[str]) -> str:
    """As in sky, car, road; of many the first ones and 150 more."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {format_count(more)} more" if more > 0 else "")


def capitalize(text: str) -> str:
    """As in Trial 3 wins, from trial 3 wins; the rest of the text stays."""
    return text[:1].upper() + text[1:]


def short_names(paths: Collection[str]) -> dict[str, str]:
    """As in lr for optim.lr: each path's last part, or the whole path where two share it."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}


def _format_two(number: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(number, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
