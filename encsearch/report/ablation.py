"""The files of a finished ablation: `ablation.md` with its charts, and two CSV files for other programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encsearch.files import write_csv
from encsearch.report.charts.ablation import draw_curve, draw_rows
from encsearch.search.ablation.plan import (
    ENCNET,
    FCN,
    GATE,
    MAX_WORD_IMAGES,
    PRESENCE_METRICS,
    SIZE_METRICS,
    AblationResult,
    PointFigures,
    Series,
    shown_metrics,
)
from encsearch.search.statistics import Estimate
from encsearch.text import (
    NOTHING,
    format_count,
    format_duration,
    format_estimate,
    format_interval,
    format_points,
    format_share,
)

REPORT_FILE = "ablation.md"
PICTURE_FILE = "pictures.png"
WORDS_FILES = {"patches": "words_of_patches.png", "features": "words_of_features.png"}


@dataclass(frozen=True)
class AblationStory:
    """The content of the report.

    `object_sizes` are the shares of the image where medium and large objects begin. `failures` are reasons
    by training or scoring; `pictures` is the caption of `pictures.png` beside the report, or the reason why
    there is none.
    """

    name: str
    metric: str
    store: str
    split: str
    seeds: tuple[int, ...]
    object_sizes: tuple[float, float]
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
    rows, codewords, se_weights = (
        select_series(story, "rows"),
        select_series(story, "codewords"),
        select_series(story, "se_weights"),
    )
    charts = []
    if rows:
        draw_rows(rows, story.metric, folder / "rows.png")
        charts.append("rows.png")
    if codewords:
        draw_curve(codewords, rows, story.metric, "codewords K", "pooling\n(K = 0)", folder / "codewords.png")
        charts.append("codewords.png")
    if se_weights:
        draw_curve(se_weights, rows, story.metric, "SE-loss weight alpha", "0", folder / "se_weights.png")
        charts.append("se_weights.png")
    report = folder / REPORT_FILE
    has_pictures = (folder / PICTURE_FILE).exists()
    words = [name for name in WORDS_FILES.values() if (folder / name).exists()]
    report.write_text(_markdown(story, charts, has_pictures, words), encoding="utf-8")
    return report


def verdicts(story: AblationStory) -> list[str]:
    """Compare EncNet with FCN, also on small objects, with the pooled gate, and with the words.

    One sentence for each pair and budget.
    """
    sentences = []
    small, presence = SIZE_METRICS[0], PRESENCE_METRICS[0]
    for figures in story.figures:
        point = figures.point
        compared: tuple[str, str, Estimate | None] | None = None
        match point.series:
            case "rows" if point.label == ENCNET:
                compared = FCN, story.metric, figures.over_fcn.get(story.metric)
            case "rows" if point.label == GATE:
                compared = ENCNET, story.metric, figures.over_encnet.get(story.metric)
            case "sizes" if point.label == ENCNET:
                compared = FCN, small, figures.over_fcn.get(small)
            case "presence":
                compared = ENCNET, presence, figures.over_encnet.get(presence)
            case _:
                pass
        if compared and compared[2]:
            sentences.append(_format_verdict(figures, *compared[:2], compared[2]))
    return sentences


def figure_table(figures: Sequence[PointFigures], metric: str) -> tuple[list[str], list[list[str]]]:
    """The titles and the rows of a table of points of a series or of like ones, without empty columns."""
    titles = _column_titles(figures[0].point.series, metric)
    rows = [_figure_cells(one, metric) for one in figures]
    kept = [index for index, column in enumerate(zip(*rows, strict=True)) if set(column) != {NOTHING}]
    return [titles[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _column_titles(series: Series, metric: str) -> list[str]:
    """Titles of the cells that `_figure_cells` gives for the points of a series."""
    names = [f"{name} %" for name in shown_metrics(metric, series)]
    match series:
        case "rows" | "codewords" | "se_weights":
            return [*names, f"minus {FCN}", f'minus "{ENCNET}"']
        case "sizes":
            return [*names, *(f"{name} minus {FCN}" for name in SIZE_METRICS)]
        case "presence":
            return [*names, f'{PRESENCE_METRICS[0]} minus "{ENCNET}"']


def _figure_cells(figures: PointFigures, metric: str) -> list[str]:
    """Cells of a table row, in percent: the shown metrics, then differences from FCN and from EncNet.

    A star marks a difference whose interval excludes 0.
    """
    series = figures.point.series
    estimates = [figures.estimates.get(name) for name in shown_metrics(metric, series)]
    differences: list[Estimate | None]
    match series:
        case "rows" | "codewords" | "se_weights":
            differences = [figures.over_fcn.get(metric), figures.over_encnet.get(metric)]
        case "sizes":
            differences = [figures.over_fcn.get(name) for name in SIZE_METRICS]
        case "presence":
            differences = [figures.over_encnet.get(PRESENCE_METRICS[0])]
    cells = [format_estimate(e.mean, e.interval) if e else NOTHING for e in estimates]
    for difference in differences:
        if difference is None:
            cells.append(NOTHING)
            continue
        star = " *" if difference.tells_apart else ""
        cells.append(format_estimate(difference.mean, difference.interval, signed=True) + star)
    return cells


def select_series(story: AblationStory, *series: Series) -> list[PointFigures]:
    """The figures of some series, in their order."""
    return [figures for figures in story.figures if figures.point.series in series]


def _format_verdict(figures: PointFigures, other: str, metric: str, difference: Estimate) -> str:
    points = format_points(difference.mean, signed=True)
    epochs, row = format_count(figures.point.epochs, "epoch"), figures.point.label
    text = f'{epochs}, {metric}: "{row}" minus "{other}" is {points}'
    if difference.interval is None:
        return f"{text}; one seed gives no interval."
    interval = format_interval(difference.interval, signed=True)
    result = "told apart" if difference.tells_apart else "not told apart"
    return f"{text} {interval} over {format_count(len(difference.values), 'seed')}: {result}."


def _markdown(story: AblationStory, charts: Sequence[str], has_pictures: bool, words: Sequence[str]) -> str:
    parts = [
        f"# Ablation of {story.name}",
        f"Validation split `{story.split}` of `{story.store}`, {format_count(len(story.seeds), 'seed')}. "
        "All figures are from the last epoch, in percent: choosing the best epoch would use the split that "
        "it is scored on. In brackets: the 95 % interval of the mean over seeds (Student's t)."
        + (" One seed gives no interval." if len(story.seeds) == 1 else ""),
        "\n".join(f"- {sentence}" for sentence in verdicts(story)),
    ]
    parts += [*_tables_by_budget(story, "rows", "Rows")]
    parts += [
        f"Differences are of {story.metric}, paired by seed; a star marks those whose 95 % interval "
        "excludes 0. Each interval is separate: it is not corrected for the number of comparisons.",
        "![rows](rows.png)" if "rows.png" in charts else "",
    ]
    if sizes := list(_tables_by_budget(story, "sizes", "Objects by size")):
        medium, large = (format_share(share) for share in story.object_sizes)
        parts += [*sizes, f"Medium objects begin at {medium} of the image, large ones at {large}."]
    if presence := list(_tables_by_budget(story, "presence", "Which classes are present")):
        parts += [*presence, _describe_presence(story), *(f"![{name}]({name})" for name in words)]
    curves: tuple[tuple[Series, str, str], ...] = (
        ("codewords", "Number of codewords", "codewords.png"),
        ("se_weights", "Weight of the SE-loss", "se_weights.png"),
    )
    for series, title, chart in curves:
        curve = select_series(story, series)
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
        parts += ["## Failed trainings and scorings, left out", "\n".join(lines)]
    total_s = sum(result.seconds for result in story.results)
    parts += [
        "## Cost",
        f"{format_count(len(story.results))} trainings and scorings of {format_duration(total_s)} in all; "
        f"the last run of the command took {format_duration(story.wall_seconds)}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tables_by_budget(story: AblationStory, series: Series, title: str) -> Iterator[str]:
    rows = select_series(story, series)
    for epochs in sorted({figures.point.epochs for figures in rows}):
        of_budget = [figures for figures in rows if figures.point.epochs == epochs]
        yield f"## {title}, {format_count(epochs, 'epoch')}"
        yield _table(of_budget, story.metric)


def _describe_presence(story: AblationStory) -> str:
    rows = select_series(story, "presence")
    sentences = ["A class that every image has counts with an average precision of 1."]
    if any("words" in figures.point.label for figures in rows):
        sentences.append(
            "Words are the centres of k-means, of patches of the training images or of the features of the "
            f'backbone of "{FCN}"; a logistic regression for each class takes their histogram. They see at '
            f"most {format_count(MAX_WORD_IMAGES, 'training image')}, the networks all."
        )
    if any(PRESENCE_METRICS[-1] in figures.estimates for figures in rows):
        sentences.append(
            "The scene is told by a linear layer from the predicted presence, fitted on the training images."
        )
    return " ".join(sentences)


def _table(figures: Sequence[PointFigures], metric: str) -> str:
    is_scored = figures[0].point.series in ("sizes", "presence")
    titles, cells = figure_table(figures, metric)
    header = ["row", "n", *titles, "a scoring" if is_scored else "a training"]
    lines = [
        [f.point.label, str(num_values(f)), *own, format_duration(f.seconds)]
        for f, own in zip(figures, cells, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _summary_lines(story: AblationStory) -> Iterator[Sequence[object]]:
    """One line for each metric of each point; figures in [0, 1]."""
    columns = ("mean", f"minus {FCN}", f"minus {ENCNET}")
    bounds = [cell for name in columns for cell in (name, f"{name} low", f"{name} high")]
    yield ["series", "label", "epochs", "metric", "n", *bounds, "seconds"]
    for f in story.figures:
        for name, found in f.estimates.items():
            estimates = (found, f.over_fcn.get(name), f.over_encnet.get(name))
            cells = [cell for estimate in estimates for cell in _csv_cells(estimate)]
            point = f.point
            yield [point.series, point.label, point.epochs, name, len(found.values), *cells, f.seconds]


def num_values(figures: PointFigures) -> int:
    """How many seeds a point has."""
    return max((len(estimate.values) for estimate in figures.estimates.values()), default=0)


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
