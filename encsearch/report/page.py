"""The page of a sweep: the template filled with sentences, charts, tables and the winner's context module."""

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from encsearch.diagnostics.figures import (
    ASSIGNMENT_FILE,
    CODEWORDS_FILE,
    JSON_FILE,
    LIMITS,
    SCALING_FILE,
    PresenceFigures,
    describe_findings,
    from_json,
)
from encsearch.errors import UserError, one_line
from encsearch.report.charts.chart import Chart, Omitted, png
from encsearch.report.charts.finalists import finalist_chart
from encsearch.report.charts.importance import importance_chart
from encsearch.report.charts.rungs import rung_chart
from encsearch.report.charts.search import curves_chart, eta_chart, history_chart, pareto_chart
from encsearch.report.charts.space import contour_chart, parallel_chart, slice_chart
from encsearch.report.facts import KIND_LABELS, class_table, classify_trial, find_stragglers
from encsearch.report.summary import SweepSummary
from encsearch.report.verdict import headline, tiles
from encsearch.report.words import describe_stragglers, paragraphs
from encsearch.search.trials import Trial
from encsearch.style import DARK, LIGHT
from encsearch.text import (
    format_count,
    format_duration,
    format_param,
    format_params,
    format_percent,
    format_share,
)

TEMPLATE = "report.html"
# Rows of a table; a browser sorts so many at once.
MAX_ROWS = 500
TITLES = {
    CODEWORDS_FILE: "Codewords",
    ASSIGNMENT_FILE: "Where the codewords take part",
    SCALING_FILE: "Scaling factors by class",
}


@dataclass(frozen=True)
class ContextSection:
    """`pictures` are (title, data URI)."""

    num_images: int
    findings: tuple[str, ...]
    limits: str
    pictures: tuple[tuple[str, str], ...]
    presence: tuple[PresenceFigures, ...]


@dataclass(frozen=True)
class Shown:
    """A chart on the page as data URIs, or the reason why it is left out."""

    title: str
    caption: str
    light: str = ""
    dark: str = ""


def render(summary: SweepSummary, target: Path) -> Path:
    """Write the report to `target`, its charts as PNG beside it, and return `target`.

    Raises UserError if the pictures or diagnostics cannot be read.
    """
    page = environment().get_template(TEMPLATE)
    picture = _picture_uri(target.parent / summary.picture) if summary.picture else None
    context = _context_section(target.parent / summary.context) if summary.context else None
    winner = next((trial for trial in summary.trials if trial.number == summary.winner), None)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page.render(
        summary=summary,
        headline=headline(summary),
        tiles=tiles(summary),
        paragraphs=paragraphs(summary),
        winner=winner,
        figures={
            section: [show(chart, target.parent) for chart in charts]
            for section, charts in _charts(summary).items()
        },
        kinds={trial.number: classify_trial(trial, summary) for trial in summary.trials},
        kind_labels=KIND_LABELS,
        trials=shown_trials(summary),
        excluded=[t for t in summary.trials if t.state == "FAIL" or t.refused or t.number in summary.flags],
        max_rows=MAX_ROWS,
        slow=describe_stragglers(find_stragglers(summary.trials)),
        classes=class_table(summary.finalists),
        picture=picture,
        context=context,
    )
    target.write_text(text, encoding="utf-8")
    return target


def shown_trials(summary: SweepSummary) -> list[Trial]:
    """The rows of the table of trials, by number: all, or the MAX_ROWS best of more."""
    best_first = sorted(
        summary.trials, key=lambda t: (t.number != summary.winner, t.value is None, -(t.value or 0.0))
    )
    return sorted(best_first[:MAX_ROWS], key=lambda trial: trial.number)


def _charts(summary: SweepSummary) -> dict[str, list[Chart | Omitted]]:
    """The charts of each section of the page."""
    return {
        "confirmed": [finalist_chart(summary)],
        "search": [history_chart(summary), pareto_chart(summary), curves_chart(summary), rung_chart(summary)],
        "space": [
            importance_chart(summary),
            parallel_chart(summary),
            slice_chart(summary),
            contour_chart(summary),
        ],
        "forecast": [eta_chart(summary)],
    }


def show(chart: Chart | Omitted, folder: Path | None = None) -> Shown:
    """Draw a chart for light and for dark paper; with a folder the light one is written there too."""
    if isinstance(chart, Omitted):
        return Shown(chart.title, chart.reason)
    light = png(chart, LIGHT)
    if folder:
        (folder / chart.file).write_bytes(light)
    return Shown(chart.title, chart.caption, png_uri(light), png_uri(png(chart, DARK)))


def _context_section(folder: Path) -> ContextSection:
    """Read the files that `write_diagnostics` wrote. Raises UserError if one cannot be read."""
    try:
        diagnostics = from_json((folder / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / JSON_FILE}: the winner's diagnostics cannot be read ({one_line(error)})"
        ) from None
    return ContextSection(
        diagnostics.num_images,
        describe_findings(diagnostics),
        LIMITS,
        # The set of pictures depends on the model.
        tuple(
            (title, _picture_uri(folder / name)) for name, title in TITLES.items() if (folder / name).exists()
        ),
        diagnostics.presence,
    )


def _picture_uri(picture: Path) -> str:
    """A PNG file as a data URI. Raises UserError if it cannot be read."""
    try:
        return png_uri(picture.read_bytes())
    except OSError as error:
        raise UserError(f"{picture}: the report's picture cannot be read ({error.strerror})") from None


def png_uri(content: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def environment() -> Environment:
    """The templates of this folder, with the filters that write numbers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (format_count, format_duration, format_param, format_params, format_percent, format_share)
    environment.filters |= {each.__name__: each for each in formats}
    return environment
