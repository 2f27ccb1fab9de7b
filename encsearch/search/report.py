"""The report of a sweep: one HTML file without any other, readable offline, in light and in dark.

It says what was searched, what won and how sure that is; `verdict` holds the rules of the last part.
"""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean, stdev

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter

from encsearch.diagnostics.records import (
    ASSIGNMENT_FILE,
    CODEWORDS_FILE,
    JSON_FILE,
    LIMITS,
    SCALING_FILE,
    PresenceFigures,
    findings,
)
from encsearch.diagnostics.records import from_json as context_from_json
from encsearch.errors import UserError
from encsearch.search.charts import Axis, Chart, Dot, Line, Scale, format_param
from encsearch.search.trials import TrialRecord

WIDTH, HEIGHT = 540, 280
SLICE_WIDTH, SLICE_HEIGHT = 350, 230
# Two-sided 95 % quantiles for 1, 2, ... degrees of freedom; the last one serves above.
STUDENT_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
PAD_LEFT, PAD_RIGHT, PAD_TOP, PAD_BOTTOM = 58, 16, 14, 44


@dataclass(frozen=True)
class FinalistRow:
    """One training from scratch after the search; `trial` None is a baseline, which `label` names."""

    trial: int | None
    seed: int
    num_workers: int
    value: float
    epochs: int
    seconds: float
    class_iou: dict[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or f"trial {self.trial}"


@dataclass(frozen=True)
class SweepSummary:
    """All that the report shows; `space` is path -> kind as in the recipe, `epochs` a full trial's length.

    `picture`, and `context`, the folder of the winner's context diagnostics, are relative to the report's
    folder, so that all can move together.
    """

    name: str
    metric: str
    space: dict[str, str]
    epochs: int
    trials: tuple[TrialRecord, ...]
    finalists: tuple[FinalistRow, ...]
    winner: int | None
    config_yaml: str
    mlflow: str = ""
    links: tuple[tuple[str, str], ...] = ()
    picture: Path | None = None
    wall_seconds: float | None = None
    context: Path | None = None


def render(summary: SweepSummary, target: Path) -> Path:
    """Write the report to `target` and return it. Raises UserError if what it shows cannot be read."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"value": format_value, "duration": format_duration, "param": format_param}
    page = environment.get_template("report.html").render(
        summary=summary,
        opening=opening(summary),
        verdict=verdict(summary),
        winner=next((trial for trial in summary.trials if trial.number == summary.winner), None),
        best=best_of_search(summary.trials),
        failures=[trial for trial in summary.trials if trial.state == "FAIL"],
        history=history_chart(summary),
        curves=curves_chart(summary),
        slices=[slice_chart(summary, path, kind) for path, kind in summary.space.items()],
        classes=class_table(summary.finalists),
        cost=cost(summary),
        picture=data_uri(target.parent / summary.picture) if summary.picture else None,
        context=context_section(target.parent / summary.context) if summary.context else None,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def to_json(summary: SweepSummary) -> str:
    """The summary as JSON text; `from_json` is its inverse."""
    return json.dumps(asdict(summary), default=str, indent=2)


def from_json(text: str) -> SweepSummary:
    return TypeAdapter(SweepSummary).validate_json(text)


def opening(summary: SweepSummary) -> str:
    """What was searched, and what became of the trials."""
    states = [trial.state for trial in summary.trials]
    fates = {
        "COMPLETE": "ran to the end",
        "PRUNED": "stopped early",
        "FAIL": "failed",
        "RUNNING": "had not ended",
    }
    told = [f"{states.count(state)} {fate}" for state, fate in fates.items() if state in states]
    searched = f"{_count(len(states), 'trial')} searched {_list(list(summary.space))}"
    return f"{searched} for the highest {summary.metric}: {_list(told) or 'none was started'}."


def verdict(summary: SweepSummary) -> tuple[str, ...]:
    """How good the winner is and how sure that is, as sentences.

    The largest of many noisy values is too high on average, so the search's own maximum is never given as
    what to expect; only trainings from scratch are. Two of them are told apart if the 95 % interval of the
    difference of their means leaves out 0, which takes two seeds of each.
    """
    best = best_of_search(summary.trials)
    if best is None:
        return ("No trial has a value: there is no winner.",)
    noisy = _count(len(_valued(summary.trials)), "noisy value")
    bias = (
        f"The best value inside the search, {format_value(best.value)} of trial {best.number}, "
        f"is the largest of {noisy} and so too high on average."
    )
    values = _values_by_name(summary.finalists)
    winner_name = next((row.name for row in summary.finalists if row.trial == summary.winner), None)
    if winner_name is None:
        return (bias, "Nothing was trained again from scratch, so expect less from a new training.")
    won = values.pop(winner_name)
    seeds = _count(len(won), "seed")
    result = (
        f"Trained again from scratch with {seeds}, {winner_name} reaches {summary.metric} {_spread(won)}."
    )
    baselines = {row.name for row in summary.finalists if row.trial is None}
    comparisons = [_comparison(won, name, other, name in baselines) for name, other in values.items()]
    noise = (
        ""
        if len(won) > 1
        else "With one seed the noise between seeds is unknown: another may be better or worse."
    )
    return tuple(sentence for sentence in (result, noise, *comparisons, bias) if sentence)


def best_of_search(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest value, or None."""
    sound = [(value, trial) for value, trial in _valued(trials) if trial.state != "FAIL"]
    return max(sound, key=lambda pair: pair[0])[1] if sound else None


def difference_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """95 % interval of mean(ours) - mean(theirs), two values of each at least.

    Student's t with the smaller sample's degrees of freedom: wider than Welch's, as few seeds call for.
    """
    freedom = min(len(ours), len(theirs)) - 1
    error = math.sqrt(stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs))
    half = STUDENT_T_95[min(freedom, len(STUDENT_T_95)) - 1] * error
    gain = fmean(ours) - fmean(theirs)
    return gain - half, gain + half


def cost(summary: SweepSummary) -> list[tuple[str, str]]:
    """What the sweep used, as (name, amount)."""
    used = sum(trial.epochs for trial in summary.trials)
    planned = summary.epochs * len(summary.trials)
    rows = [
        ("Epochs of the search", f"{used} of the {planned} that it would take without early stopping"),
        ("Time in trials", format_duration(sum(trial.seconds for trial in summary.trials))),
        ("Epochs of the finalists", str(sum(row.epochs for row in summary.finalists))),
        ("Time in finalists", format_duration(sum(row.seconds for row in summary.finalists))),
    ]
    if summary.wall_seconds is not None:
        rows.append(("From start to end", format_duration(summary.wall_seconds)))
    return rows


@dataclass(frozen=True)
class ClassTable:
    """Mean IoU over seeds of each class (rows) for each finalist and baseline (columns)."""

    names: list[str]
    rows: list[tuple[str, list[float | None]]]


def class_table(finalists: Sequence[FinalistRow]) -> ClassTable:
    by_name: dict[str, list[FinalistRow]] = {}
    for row in finalists:
        by_name.setdefault(row.name, []).append(row)
    classes = dict.fromkeys(name for row in finalists for name in row.class_iou)

    def mean(rows: Iterable[FinalistRow], class_name: str) -> float | None:
        found = [row.class_iou[class_name] for row in rows if class_name in row.class_iou]
        return fmean(found) if found else None

    return ClassTable(
        list(by_name), [(name, [mean(rows, name) for rows in by_name.values()]) for name in classes]
    )


@dataclass(frozen=True)
class ContextSection:
    """What the winner's context module does; `pictures` are (title, data URI)."""

    num_images: int
    findings: tuple[str, ...]
    limits: str
    pictures: tuple[tuple[str, str], ...]
    presence: tuple[PresenceFigures, ...]


def context_section(folder: Path) -> ContextSection:
    """Of the files that `write_diagnostics` left. Raises UserError if one cannot be read."""
    try:
        diagnostics = context_from_json((folder / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / JSON_FILE}: the winner's diagnostics cannot be read ({reason})") from None
    titles = {
        CODEWORDS_FILE: "Codewords",
        ASSIGNMENT_FILE: "Where the codewords take part",
        SCALING_FILE: "Scaling factors by class",
    }
    return ContextSection(
        diagnostics.num_images,
        findings(diagnostics),
        LIMITS,
        # Which pictures there are depends on the model.
        tuple((title, data_uri(folder / name)) for name, title in titles.items() if (folder / name).exists()),
        diagnostics.presence,
    )


def history_chart(summary: SweepSummary) -> Chart:
    """Each trial's value, and the best so far, against the epochs spent until its end."""
    spent = list(accumulate(trial.epochs for trial in summary.trials))
    end_of = {trial.number: end for trial, end in zip(summary.trials, spent, strict=True)}
    told = [(float(end_of[trial.number]), value, trial) for value, trial in _valued(summary.trials)]
    values = [value for _, value, _ in told]
    x_axis = Axis.over([0, *spent], (PAD_LEFT, WIDTH - PAD_RIGHT))
    y_axis = Axis.over(values, (HEIGHT - PAD_BOTTOM, PAD_TOP))
    steps: list[tuple[float, float]] = []
    for x, value, trial in told:
        if trial.state == "FAIL":
            continue
        best = max(value, steps[-1][1]) if steps else value
        steps += [(x, steps[-1][1] if steps else value), (x, best)]
    if steps:
        steps.append((spent[-1], steps[-1][1]))
    return Chart(
        title="Best so far",
        x_label="epochs spent",
        y_label=summary.metric,
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        lines=[Line(_polyline(steps, x_axis, y_axis), "best", "best so far")] if steps else [],
        dots=[
            Dot(x_axis.px(x), y_axis.px(value), _kind(trial, summary.winner), _trial_title(trial))
            for x, value, trial in told
        ],
    )


def curves_chart(summary: SweepSummary) -> Chart:
    """The metric of each trial by epoch; stopped ones end in a dot."""
    curves = [
        (trial, points)
        for trial in summary.trials
        if (points := [(float(epoch), value) for epoch, value in trial.curve if math.isfinite(value)])
    ]
    # The winner is drawn last, over the others.
    curves.sort(key=lambda item: item[0].number == summary.winner)
    x_axis = Axis.over([x for _, points in curves for x, _ in points], (PAD_LEFT, WIDTH - PAD_RIGHT))
    y_axis = Axis.over([y for _, points in curves for _, y in points], (HEIGHT - PAD_BOTTOM, PAD_TOP))
    return Chart(
        title="Learning curves",
        x_label="epoch",
        y_label=summary.metric,
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        lines=[
            Line(_polyline(points, x_axis, y_axis), _kind(trial, summary.winner), _trial_title(trial))
            for trial, points in curves
        ],
        dots=[
            Dot(*_place(points[-1], x_axis, y_axis), _kind(trial, summary.winner), _trial_title(trial))
            for trial, points in curves
            if trial.state in ("PRUNED", "FAIL") or len(points) == 1
        ],
    )


def slice_chart(summary: SweepSummary, path: str, kind: str) -> Chart:
    """The trials' values against one searched path."""
    told = [
        (trial.values[path], value, trial) for value, trial in _valued(summary.trials) if path in trial.values
    ]
    span = (PAD_LEFT, SLICE_WIDTH - PAD_RIGHT)
    if kind == "choice":
        x_axis = Axis.of_categories([x for x, _, _ in told], span)
    else:
        scale: Scale = "log" if kind.startswith("log") else "linear"
        x_axis = Axis.over([x for x, _, _ in told], span, scale)
    y_axis = Axis.over([y for _, y, _ in told], (SLICE_HEIGHT - PAD_BOTTOM, PAD_TOP))
    return Chart(
        title=path,
        x_label=path + (" (log)" if kind.startswith("log") else ""),
        y_label=summary.metric,
        width=SLICE_WIDTH,
        height=SLICE_HEIGHT,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        lines=[],
        dots=[
            Dot(x_axis.px(x), y_axis.px(y), _kind(trial, summary.winner), _trial_title(trial))
            for x, y, trial in told
        ],
    )


def format_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"  # noqa: RUF001


def format_duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def data_uri(picture: Path) -> str:
    try:
        content = picture.read_bytes()
    except OSError as error:
        raise UserError(f"{picture}: the report's picture cannot be read ({error.strerror})") from None
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _comparison(won: Sequence[float], other: str, values: Sequence[float], is_baseline: bool) -> str:
    gain = fmean(won) - fmean(values)
    against = f"the baseline {other}" if is_baseline else other
    lead = f"{against[0].upper()}{against[1:]} reaches {_spread(values)}, {abs(gain):.4f} {_side(gain)}: "
    if min(len(won), len(values)) < 2:
        return lead + "without several seeds of both, that may be chance."
    low, high = difference_interval(won, values)
    interval = f"the 95 % interval of the difference, {low:+.4f} to {high:+.4f},"
    if low <= 0 <= high:
        return f"{lead}{interval} holds 0, so the two cannot be told apart."
    return f"{lead}{interval} leaves out 0."


def _side(gain: float) -> str:
    return "below" if gain >= 0 else "above"


def _values_by_name(finalists: Sequence[FinalistRow]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in finalists:
        values.setdefault(row.name, []).append(row.value)
    return values


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return format_value(values[0])
    return f"{fmean(values):.4f} ± {stdev(values):.4f} (mean ± standard deviation)"


def _kind(trial: TrialRecord, winner: int | None) -> str:
    return "winner" if trial.number == winner else trial.state.lower()


def _trial_title(trial: TrialRecord) -> str:
    params = ", ".join(f"{path}={format_param(value)}" for path, value in trial.values.items())
    return f"trial {trial.number} ({trial.state.lower()}): {format_value(trial.value)}; {params}"


def _polyline(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join("{},{}".format(*_place(point, x_axis, y_axis)) for point in points)


def _place(point: tuple[float, float], x_axis: Axis, y_axis: Axis) -> tuple[float, float]:
    return x_axis.px(point[0]), y_axis.px(point[1])


def _valued(trials: Sequence[TrialRecord]) -> list[tuple[float, TrialRecord]]:
    """The trials that have a finite value, with it."""
    return [(t.value, t) for t in trials if t.value is not None and math.isfinite(t.value)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _list(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
