"""The page: words, figures and tables put into the template."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from encsearch.search.report.answer import headline, tiles
from encsearch.search.report.classes import class_table
from encsearch.search.report.context import context_section, picture_uri, png_uri
from encsearch.search.report.facts import KIND_LABELS, kind_of, stragglers
from encsearch.search.report.figures import figures
from encsearch.search.report.style import DARK, LIGHT, Chart, Omitted, png
from encsearch.search.report.summary import SweepSummary
from encsearch.search.report.text import format_cost, format_duration, format_param, format_value
from encsearch.search.report.words import paragraphs, straggler_words

TEMPLATE = "report.html"


def render(summary: SweepSummary, target: Path) -> Path:
    """Write the report to `target`, its figures as PNG beside it, and return `target`.

    Raises UserError if what it shows cannot be read.
    """
    page = _environment().get_template(TEMPLATE)
    picture = picture_uri(target.parent / summary.picture) if summary.picture else None
    context = context_section(target.parent / summary.context) if summary.context else None
    winner = next((trial for trial in summary.trials if trial.number == summary.winner), None)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page.render(
        summary=summary,
        headline=headline(summary),
        tiles=tiles(summary),
        paragraphs=paragraphs(summary),
        winner=winner,
        figures={
            section: [_shown(chart, target.parent) for chart in charts]
            for section, charts in figures(summary).items()
        },
        kinds={trial.number: kind_of(trial, summary) for trial in summary.trials},
        kind_labels=KIND_LABELS,
        excluded=[t for t in summary.trials if t.state == "FAIL" or t.refused or t.number in summary.flags],
        slow=straggler_words(stragglers(summary.trials)),
        classes=class_table(summary.finalists),
        picture=picture,
        context=context,
    )
    target.write_text(text, encoding="utf-8")
    return target


@dataclass(frozen=True)
class Shown:
    """A figure on the page as data URIs, or, without them, why it is left out."""

    title: str
    caption: str
    light: str = ""
    dark: str = ""


def _shown(chart: Chart | Omitted, folder: Path) -> Shown:
    if isinstance(chart, Omitted):
        return Shown(chart.title, chart.reason)
    light = png(chart, LIGHT)
    (folder / chart.file).write_bytes(light)
    return Shown(chart.title, chart.caption, png_uri(light), png_uri(png(chart, DARK)))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "duration": format_duration,
        "param": format_param,
        "cost": format_cost,
    }
    return environment
