"""The files of a finished ablation: `ablation.md` with its charts, and two CSV files for other programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.files import write_csv
from encsearch.report.charts.ablation import draw_curve, draw_rows
from encsearch.search.ablation.plan import ENCNET, FCN, GATE, AblationResult, PointFigures, shown_metrics
from encsearch.search.statistics import Estimate
from encsearch.text import (
    NOTHING,
    format_count,
    format_duration,
    format_estimate,
    format_interval,
    format_points,
)

REPORT_FILE = "ablation.md"
PICTURE_FILE = "pictures.png"


@dataclass(frozen=True)
class AblationStory:
    """The content of the report.

    `failures` are reasons by training; `pictures` is the caption of `pictures.png` beside the report, or the
    reason why there is none.
    """

    name: str
    metric: str
    store: str
    split: str
    seeds: tuple[int, ...]
    figures: tuple[PointFigures, ...]
    results: tuple[AblationResult, ...]
    failures: Mapping[str, str]
    pictures: str
    wall_seconds: float


def write_report(story: AblationStory, folder: Path) -> Path:
    """Write `ablation.md`, `ablation.csv`, `trainings.csv` and the charts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "ablation.csv", _summary_lines(story))
    write_csv(folder / "trainings.csv", _training_lines(story))
    rows, codewords, se_weights = (_select_series(story, s) for s in ("rows", "codewords", "se_weights"))
    draw_rows(rows, story.metric, folder / "rows.png")
    charts = ["rows.png"]
    if codewords:
        draw_curve(codewords, rows, story.metric, "codewords K", "pooling\n(K = 0)", folder / "codewords.png")
        charts.append("codewords.png")
    if se_weights:
        draw_curve(se_weights, rows, story.metric, "SE-loss weight alpha", "0", folder / "se_weights.png")
        charts.append("se_weights.png")
    report = folder / REPORT_FILE
    has_pictures = (folder / PICTURE_FILE).exists()
    report.write_text(_markdown(story, charts, has_pictures), encoding="utf-8")
    return report


def verdicts(story: AblationStory) -> list[str]:
    """Compare EncNet with FCN and with the pooled gate, in one sentence for each pair and budget."""
    sentences = []
    for figures in _select_series(story, "rows"):
        if figures.point.label == ENCNET and figures.over_fcn:
            sentences.append(_format_verdict(ENCNET, FCN, figures, figures.over_fcn))
        if figures.point.label == GATE and figures.over_encnet:
            sentences.append(_format_verdict(GATE, ENCNET, figures, figures.over_encnet))
    return sentences


def figure_cells(figures: PointFigures, metric: str) -> list[str]:
    """Cells of a table row, in percent: the shown metrics, then the differences from FCN and from EncNet.

    A star marks a difference whose interval excludes 0.
    """
    estimates = [figures.estimates[name] for name in shown_metrics(metric)]
    cells = [format_estimate(estimate.mean, estimate.interval) for estimate in estimates]
    for difference in (figures.over_fcn, figures.over_encnet):
        if difference is None:
            cells.append(NOTHING)
            continue
        star = " *" if difference.tells_apart else ""
        cells.append(format_estimate(difference.mean, difference.interval, signed=True) + star)
    return cells


def _select_series(story: AblationStory, series: str) -> list[PointFigures]:
    return [figures for figures in story.figures if figures.point.series == series]


def _format_verdict(row: str, other: str, figures: PointFigures, difference: Estimate) -> str:
    points = format_points(difference.mean, signed=True)
    text = f'{format_count(figures.point.epochs, "epoch")}: "{row}" minus "{other}" is {points}'
    if difference.interval is None:
        return f"{text}; one seed gives no interval."
    interval = format_interval(difference.interval, signed=True)
    result = "told apart" if difference.tells_apart else "not told apart"
    return f"{text} {interval} over {format_count(len(difference.values), 'seed')}: {result}."


def _markdown(story: AblationStory, charts: Sequence[str], has_pictures: bool) -> str:
    parts = [
        f"# Ablation of {story.name}",
        f"Validation split `{story.split}` of `{story.store}`, {format_count(len(story.seeds), 'seed')}. "
        "All figures are from the last epoch, in percent: choosing the best epoch would use the split that "
        "it is scored on. In brackets: the 95 % interval of the mean over seeds (Student's t)."
        + (" One seed gives no interval." if len(story.seeds) == 1 else ""),
        "\n".join(f"- {sentence}" for sentence in verdicts(story)),
    ]
    rows = _select_series(story, "rows")
    for epochs in sorted({figures.point.epochs for figures in rows}):
        of_budget = [figures for figures in rows if figures.point.epochs == epochs]
        parts += [f"## Rows, {format_count(epochs, 'epoch')}", _table(of_budget, story.metric)]
    parts += [
        f"Differences are of {story.metric}, paired by seed; a star marks those whose 95 % interval "
        "excludes 0. Each interval is separate: it is not corrected for the number of comparisons.",
        "![rows](rows.png)",
    ]
    for series, title, chart in (
        ("codewords", "Number of codewords", "codewords.png"),
        ("se_weights", "Weight of the SE-loss", "se_weights.png"),
    ):
        curve = _select_series(story, series)
        if chart in charts:
            parts += [
                f"## {title}, {format_count(curve[0].point.epochs, 'epoch')}",
                _table(curve, story.metric),
                f"![{title}]({chart})",
            ]
    parts += ["## Pictures", story.pictures]
    if has_pictures:
        parts.append(f"![pictures]({PICTURE_FILE})")
    if story.failures:
        lines = [f"- {name}: {reason}" for name, reason in story.failures.items()]
        parts += ["## Failed trainings, left out", "\n".join(lines)]
    total_s = sum(result.seconds for result in story.results)
    parts += [
        "## Cost",
        f"{format_count(len(story.results))} trainings and scorings of {format_duration(total_s)} in all; "
        f"the last run of the command took {format_duration(story.wall_seconds)}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(figures: Sequence[PointFigures], metric: str) -> str:
    names = [f"{name} %" for name in shown_metrics(metric)]
    header = ["row", "n", *names, f"minus {FCN}", f'minus "{ENCNET}"', "a training"]
    lines = [
        [
            f.point.label,
            str(len(f.estimates[metric].values)),
            *figure_cells(f, metric),
            format_duration(f.seconds),
        ]
        for f in figures
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _summary_lines(story: AblationStory) -> Iterator[Sequence[object]]:
    """One line for each point; figures in [0, 1]."""
    names = [*shown_metrics(story.metric), f"minus {FCN}", f"minus {ENCNET}"]
    yield [
        "series",
        "label",
        "epochs",
        "n",
        *(c for n in names for c in (n, f"{n} low", f"{n} high")),
        "seconds",
    ]
    for f in story.figures:
        estimates = [*(f.estimates[name] for name in shown_metrics(story.metric)), f.over_fcn, f.over_encnet]
        cells = [cell for estimate in estimates for cell in _csv_cells(estimate)]
        n = len(f.estimates[story.metric].values)
        yield [f.point.series, f.point.label, f.point.epochs, n, *cells, f.seconds]


def _csv_cells(estimate: Estimate | None) -> tuple[object, object, object]:
    if estimate is None:
        return "", "", ""
    return (estimate.mean, *(estimate.interval or ("", "")))


def _training_lines(story: AblationStory) -> Iterator[Sequence[object]]:
    """One line for each result, with every metric of its last epoch."""
    metrics = list(dict.fromkeys(name for result in story.results for name in result.metrics))
    yield ["name", "row", "epochs", "seed", "seconds", *metrics]
    for r in story.results:
        figures = (r.metrics.get(name, "") for name in metrics)
        yield [r.name, r.row, r.epochs, r.seed, r.seconds, *figures]
