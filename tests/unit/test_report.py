"""The sweep report says how sure the winner is, shows every trial, and stands alone."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encsearch.diagnostics.records import LIMITS, ContextDiagnostics, PresenceFigures, ScalingFigures
from encsearch.diagnostics.records import to_json as context_to_json
from encsearch.errors import UserError
from encsearch.search.charts import Axis
from encsearch.search.report import (
    FinalistRow,
    SweepSummary,
    best_of_search,
    class_table,
    cost,
    curves_chart,
    difference_interval,
    from_json,
    history_chart,
    opening,
    render,
    slice_chart,
    to_json,
    verdict,
)
from encsearch.search.trials import TrialRecord

TRIALS = (
    TrialRecord(
        0,
        {"model.num_codewords": 8, "optim.lr": 0.001},
        "COMPLETE",
        0.40,
        ((1, 0.2), (2, 0.3), (3, 0.4)),
        30,
    ),
    TrialRecord(1, {"model.num_codewords": 32, "optim.lr": 0.1}, "PRUNED", 0.10, ((1, 0.1),), 10),
    TrialRecord(2, {"model.num_codewords": 16, "optim.lr": 0.01}, "COMPLETE", 0.50, ((1, 0.3), (3, 0.5)), 30),
    TrialRecord(
        3,
        {"model.num_codewords": 64, "optim.lr": 0.05},
        "FAIL",
        0.90,
        ((1, float("nan")),),
        5,
        "<b>NaN</b>",
    ),
)


def finalist(value: float, seed: int = 1, trial: int | None = 2, label: str = "") -> FinalistRow:
    return FinalistRow(trial, seed, 2, value, 3, 60, {"Road": value, "Car": value / 2}, label)


def summary(**changes: Any) -> SweepSummary:
    base = SweepSummary(
        name="camvid",
        metric="mIoU",
        space={"model.num_codewords": "choice", "optim.lr": "loguniform"},
        epochs=3,
        trials=TRIALS,
        finalists=(finalist(0.45),),
        winner=2,
        config_yaml="name: camvid\n",
        mlflow="mlflow ui",
    )
    return dataclasses.replace(base, **changes)


def test_opening_counts_every_fate() -> None:
    assert opening(summary()) == (
        "4 trials searched model.num_codewords and optim.lr for the highest mIoU: "
        "2 ran to the end, 1 stopped early and 1 failed."
    )


def test_expected_value_is_the_finalists_not_the_searchs_maximum() -> None:
    first, *rest = verdict(summary())
    assert "0.4500" in first
    assert "0.5000" not in first
    assert any("0.5000" in sentence and "too high" in sentence for sentence in rest)


def test_one_seed_says_that_the_noise_is_unknown() -> None:
    assert any("noise between seeds is unknown" in sentence for sentence in verdict(summary()))


def test_nothing_confirmed_says_so() -> None:
    assert "expect less" in verdict(summary(finalists=()))[-1]


def test_sweep_without_a_value_has_no_winner() -> None:
    nothing = summary(trials=(TRIALS[3],), finalists=(), winner=None)
    assert verdict(nothing) == ("No trial has a value: there is no winner.",)


@pytest.mark.parametrize(
    ("others", "expected"),
    [((0.44, 0.46, 0.45), "cannot be told apart"), ((0.30, 0.31, 0.29), "leaves out 0")],
)
def test_finalists_are_compared_over_seeds(others: tuple[float, ...], expected: str) -> None:
    won = [finalist(value, seed) for seed, value in enumerate((0.45, 0.46, 0.47))]
    other = [finalist(value, seed, trial=0) for seed, value in enumerate(others)]
    (comparison,) = (s for s in verdict(summary(finalists=(*won, *other))) if s.startswith("Trial 0"))
    assert expected in comparison


def test_baseline_of_one_seed_may_be_chance() -> None:
    rows = (finalist(0.45), finalist(0.40, trial=None, label="FCN"))
    (comparison,) = (s for s in verdict(summary(finalists=rows)) if "baseline FCN" in s)
    assert "0.0500 below" in comparison
    assert "chance" in comparison


def test_difference_interval_is_students() -> None:
    low, high = difference_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    # Standard error sqrt(1/3 + 1/3), quantile 4.303 for two degrees of freedom.
    assert (low, high) == pytest.approx((-3.5134, 3.5134), abs=1e-3)


def test_failed_trial_is_never_the_best() -> None:
    best = best_of_search(TRIALS)
    assert best is not None
    assert best.number == 2


def test_json_gives_the_summary_back() -> None:
    links = (("run", "http://mlflow"),)
    plain = summary(trials=TRIALS[:3], picture=Path("sheet.png"), context=Path("context"), links=links)
    assert from_json(to_json(plain)) == plain


def test_json_holds_a_diverged_curve() -> None:
    (failed,) = from_json(to_json(summary(trials=TRIALS[3:]))).trials
    assert np.isnan(failed.curve[0][1])


def test_class_table_means_over_seeds_and_leaves_gaps() -> None:
    rows = (finalist(0.4, 1), finalist(0.6, 2), FinalistRow(None, 1, 2, 0.3, 3, 9, {"Road": 0.3}, "FCN"))
    table = class_table(rows)
    assert table.names == ["trial 2", "FCN"]
    assert table.rows == [("Road", [pytest.approx(0.5), 0.3]), ("Car", [pytest.approx(0.25), None])]


def test_cost_compares_with_no_early_stopping() -> None:
    assert cost(summary())[0] == (
        "Epochs of the search",
        "8 of the 12 that it would take without early stopping",
    )


def test_history_climbs_over_cumulative_epochs() -> None:
    chart = history_chart(summary())
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True), "SVG's y grows downwards"
    assert len(chart.dots) == len(TRIALS)


def test_stopped_curves_are_marked() -> None:
    kinds = {line.title.split(":")[0]: line.kind for line in curves_chart(summary()).lines}
    assert kinds == {
        "trial 0 (complete)": "complete",
        "trial 1 (pruned)": "pruned",
        "trial 2 (complete)": "winner",
    }


def test_slice_of_choices_is_ordered_and_even() -> None:
    ticks = slice_chart(summary(), "model.num_codewords", "choice").x_ticks
    gaps = np.diff([x for x, _ in ticks])
    assert [label for _, label in ticks] == ["8", "16", "32", "64"]
    assert gaps == pytest.approx(gaps[0], abs=0.2)


def test_log_axis_spaces_decades_evenly() -> None:
    axis = Axis.over([1e-3, 1e-1], (0, 100), "log")
    assert axis.px(1e-2) == pytest.approx(50, abs=0.1)
    assert "0.01" in [label for _, label in axis.ticks()]


@pytest.mark.parametrize("values", [[], [0.01], [0.011, 0.014], [1e-6, 1.0]])
def test_log_axis_holds_its_values_and_some_ticks(values: list[float]) -> None:
    axis = Axis.over(values, (0, 100), "log")
    assert all(0 <= axis.px(value) <= 100 for value in values)
    assert 2 <= len(axis.ticks()) <= 12


@pytest.mark.parametrize("values", [[], [0.5], [0.0, 0.0], [-3.0, 4.0], [0.6101, 0.6102]])
def test_linear_axis_holds_its_values_and_some_ticks(values: list[float]) -> None:
    axis = Axis.over(values, (0, 100))
    assert all(0 <= axis.px(value) <= 100 for value in values)
    assert 3 <= len(axis.ticks()) <= 12


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


def test_page_stands_alone_with_its_picture(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "sheet.png")
    text, parser = page_of(summary(picture=Path("sheet.png")), tmp_path)
    assert [source[:22] for source in parser.fetched] == ["data:image/png;base64,"]
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert parser.tags.isdisjoint({"script", "link", "iframe"})


def test_page_escapes_what_it_shows(tmp_path: Path) -> None:
    links = (("run", "javascript:alert(1)"), ("site", "https://mlflow/run?a=1&b=2"))
    text, parser = page_of(summary(name="<script>x</script>", links=links), tmp_path)
    assert "script" not in parser.tags
    assert "b" not in parser.tags
    assert "&lt;b&gt;NaN&lt;/b&gt;" in text
    assert re.findall(r'href="([^"]*)"', text) == ["https://mlflow/run?a=1&amp;b=2"]


def test_page_of_a_sweep_that_never_began(tmp_path: Path) -> None:
    text, _ = page_of(summary(trials=(), finalists=(), winner=None), tmp_path)
    assert "0 trials" in text
    assert "there is no winner" in text


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: the report's picture cannot be read"):
        page_of(summary(picture=Path("gone.png")), tmp_path)


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
    text, parser = page_of(summary(context=Path("context")), tmp_path)
    assert "Inside the winner" in text
    assert "on 9 validation images" in text
    assert LIMITS in text
    assert "mean average precision of 0.62" in text
    assert [source[:22] for source in parser.fetched] == ["data:image/png;base64,"]
    assert "&lt;i&gt;Road" in text


def test_page_of_a_winner_without_context_has_no_such_section(tmp_path: Path) -> None:
    text, _ = page_of(summary(), tmp_path)
    assert "Inside the winner" not in text


@pytest.mark.parametrize("damage", [None, "{}", "[", "\xff"])
def test_damaged_diagnostics_are_named(damage: str | None, tmp_path: Path) -> None:
    folder = gate_diagnostics(tmp_path / "context")
    if damage is None:
        (folder / "context.json").unlink()
    else:
        (folder / "context.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(UserError, match=r"context\.json: the winner's diagnostics cannot be read") as caught:
        page_of(summary(context=Path("context")), tmp_path)
    assert "\n" not in str(caught.value)
