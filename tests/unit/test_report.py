"""The report is one page that stands alone, shows every trial, and is written anew from its JSON."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encsearch.diagnostics.figures import LIMITS, ContextDiagnostics, PresenceFigures, ScalingFigures
from encsearch.diagnostics.figures import to_json as context_to_json
from encsearch.errors import UserError
from encsearch.report.charts.chart import Chart, png
from encsearch.report.charts.search import history_chart
from encsearch.report.facts import class_table
from encsearch.report.page import MAX_ROWS, render
from encsearch.report.summary import SweepSummary, from_json, to_json
from encsearch.search.budget.forecast import ForecastPoint
from encsearch.search.trials import Trial
from encsearch.style import LIGHT
from tests.unit.summaries import finalist, seeds, summary, values

FORECASTS = (ForecastPoint(10.0, 300.0, 500.0, 700.0), ForecastPoint(200.0, 350.0, 420.0, 500.0))
FILES = ("curves", "contours", "finalists", "forecasts", "history", "parallel", "rungs", "slices")


class Outside(HTMLParser):
    """Collects what a browser would fetch, and the tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [
            value or "" for name, value in attrs if name == "src" or (tag, name) == ("link", "href")
        ]


def page_of(given: SweepSummary, folder: Path) -> tuple[str, Outside]:
    text = render(given, folder / "report.html").read_text()
    parser = Outside()
    parser.feed(text)
    return text, parser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outside, Path]:
    folder = tmp_path_factory.mktemp("report")
    full = summary(
        forecasts=FORECASTS,
        flags={0: "changed midway: 1 x A, then 1 x B"},
        finalists=(*seeds(0.45, 0.46), *seeds(0.4, 0.41, trial=None, label="FCN")),
    )
    return *page_of(full, folder), folder


def empty(**changes: object) -> SweepSummary:
    """A sweep without a trial, whose page has no figure to draw."""
    return summary(**{"trials": (), "finalists": (), "winner": None, **changes})


def test_page_stands_alone(page: tuple[str, Outside, Path]) -> None:
    text, parser, _ = page
    assert {source[:22] for source in parser.fetched} == {"data:image/png;base64,"}
    assert "http" not in text
    assert "url(" not in text
    assert parser.tags.isdisjoint({"link", "iframe"})
    assert text.count("<script") == text.count("table.sortable") == 1  # the page's own, which sorts tables


def test_every_figure_is_a_png_beside_the_page_and_in_it_for_light_and_dark(
    page: tuple[str, Outside, Path],
) -> None:
    _, parser, folder = page
    assert sorted(file.stem for file in folder.glob("*.png")) == sorted(FILES)
    assert len(set(parser.fetched)) == 2 * len(FILES)
    with Image.open(folder / "history.png") as picture:
        assert picture.width > 1000


def test_page_says_why_a_figure_is_left_out(page: tuple[str, Outside, Path]) -> None:
    text, _, _ = page
    assert "<b>Which path matters</b>: too few trials to tell" in text
    assert "the sweep has one objective" in text


def test_page_gives_the_reasons_of_what_was_left_out(page: tuple[str, Outside, Path]) -> None:
    text, _, _ = page
    assert "&lt;b&gt;NaN&lt;/b&gt;" in text
    assert "changed midway: 1 x A, then 1 x B" in text


def test_the_same_json_gives_the_same_page_and_figures(tmp_path: Path) -> None:
    first = render(empty(), tmp_path / "report.html").read_bytes()
    assert render(from_json(to_json(empty())), tmp_path / "report.html").read_bytes() == first
    charts = [history_chart(given) for given in (summary(), from_json(to_json(summary())))]
    drawn = {png(chart, LIGHT) for chart in charts if isinstance(chart, Chart)}
    assert len(drawn) == 1


def test_page_of_very_many_trials_shows_the_best_and_says_so(tmp_path: Path) -> None:
    many = tuple(Trial(n, values(), "PRUNED", n / 1000, ((1, n / 1000),), 1.0) for n in range(MAX_ROWS + 20))
    failed = tuple(Trial(n, values(), "FAIL", None, (), 1.0, "broke") for n in range(600, 600 + MAX_ROWS + 1))
    text, _ = page_of(summary(trials=(*many, *failed), winner=3), tmp_path)
    table = text.split('<section id="trials">')[1].split("</section>")[0]
    rows = [int(number) for number in re.findall(r'<tr[^>]*><td class="number">(\d+)', table)]
    assert rows == [3, *range(21, MAX_ROWS + 20)], "the winner is shown in any case"
    assert "Shows the best 500 of 1,021 trials" in table
    assert "Shows the first 500 of 501 trials" in text
    assert "699 and 401 more failed" in text


def test_page_escapes_what_it_shows(tmp_path: Path) -> None:
    links = (("run", "javascript:alert(1)"), ("site", "https://mlflow/run?a=1&b=2"))
    text, _ = page_of(empty(name="<script>x</script>", links=links), tmp_path)
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;x" in text
    assert re.findall(r'href="([^#"]+)"', text) == ["https://mlflow/run?a=1&amp;b=2"]


def test_page_of_a_sweep_that_never_began(tmp_path: Path) -> None:
    text, parser = page_of(empty(), tmp_path)
    assert "there is no winner" in text
    assert "None was started" in text
    assert parser.fetched == []


def test_page_of_trials_that_cost_nothing_yet_and_have_no_value(tmp_path: Path) -> None:
    refused = Trial(0, values(), "PRUNED", None, (), 0.0, "too large", refused=True)
    text, parser = page_of(empty(trials=(refused,)), tmp_path)
    assert "refused by a limit" in text
    assert parser.fetched == []


def test_picture_sheet_is_shown(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "sheet.png")
    _, parser = page_of(empty(picture=Path("sheet.png")), tmp_path)
    assert [source[:22] for source in parser.fetched] == ["data:image/png;base64,"]


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: the report's picture cannot be read"):
        page_of(empty(picture=Path("gone.png")), tmp_path)


def gate_diagnostics(folder: Path) -> Path:
    """What a training with the pooled gate leaves: no codewords, one picture."""
    presence = (
        PresenceFigures("<i>Road", 0.4, 0.5, 0.25, 0.625),
        PresenceFigures("Sky", 0, None, None, None),
    )
    diagnostics = ContextDiagnostics(9, None, ScalingFigures(0.7, 0.1, ()), presence)
    folder.mkdir()
    (folder / "context.json").write_text(context_to_json(diagnostics))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "scaling.png")
    return folder


def test_page_shows_the_inside_of_the_winner_and_what_it_cannot_prove(tmp_path: Path) -> None:
    gate_diagnostics(tmp_path / "context")
    text, parser = page_of(empty(context=Path("context")), tmp_path)
    assert "Inside the winner" in text
    assert "on 9 validation images" in text
    assert LIMITS in text
    assert "mean average precision of 62." in text
    assert [source[:22] for source in parser.fetched] == ["data:image/png;base64,"]
    assert "&lt;i&gt;Road" in text


def test_page_of_a_winner_without_context_has_no_such_section(page: tuple[str, Outside, Path]) -> None:
    assert "Inside the winner" not in page[0]


@pytest.mark.parametrize("damage", [None, "{}", "[", "\xff"])
def test_damaged_diagnostics_are_named(damage: str | None, tmp_path: Path) -> None:
    folder = gate_diagnostics(tmp_path / "context")
    if damage is None:
        (folder / "context.json").unlink()
    else:
        (folder / "context.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(UserError, match=r"context\.json: the winner's diagnostics cannot be read") as caught:
        page_of(empty(context=Path("context")), tmp_path)
    assert "\n" not in str(caught.value)


def test_json_gives_the_summary_back() -> None:
    whole = summary(
        picture=Path("sheet.png"),
        context=Path("context"),
        links=(("run", "http://mlflow"),),
        flags={3: "changed midway"},
        forecasts=FORECASTS,
        ended_by="the wall budget of 2 h is spent",
        next_values=(values(64),),
        warm_started="older",
        cost_unit="GPU",
    )
    assert from_json(to_json(whole)) == whole


def test_json_holds_a_diverged_curve() -> None:
    diverged = Trial(0, values(), "FAIL", None, ((1, float("nan")),), 1.0)
    (trial,) = from_json(to_json(summary(trials=(diverged,)))).trials
    assert np.isnan(trial.curve[0][1])


def test_json_whose_recipe_is_not_that_of_a_sweep_is_refused() -> None:
    with pytest.raises(ValueError, match="no search block"):
        from_json(to_json(summary(config_yaml="data: {store: data}")))


def test_class_table_means_over_seeds_and_leaves_gaps() -> None:
    rows = (finalist(0.4, 1), finalist(0.6, 2), finalist(0.3, trial=None, label="FCN"))
    del rows[2].class_iou["Car"]
    table = class_table(rows)
    assert table.names == ["trial 2", "FCN"]
    assert table.rows == [("Road", [pytest.approx(0.5), 0.3]), ("Car", [pytest.approx(0.25), None])]
