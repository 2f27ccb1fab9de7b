"""The ablation as decisions: which trainings it takes, and what their figures tell."""

from pathlib import Path
from typing import Any

import pytest

from encsearch.config import Config, with_values
from encsearch.errors import UserError
from encsearch.files import append_line, read_lines
from encsearch.report.ablation import AblationStory, verdicts, write_report
from encsearch.search.ablation.plan import (
    ENCNET,
    FCN,
    GATE,
    MULTI_SCALE,
    PRESENCE_METRICS,
    SIZE_METRICS,
    Ablation,
    AblationResult,
    Series,
    compute_figures,
    plan_ablation,
)
from encsearch.workflow.ablate.gains import chosen

SMALL = {
    "ablate.seeds": [0, 1],
    "ablate.heads": [],
    "ablate.codewords": [4, 8],
    "ablate.se_weights": [0.0, 0.2, 0.4],
}


def test_a_configuration_that_several_points_show_is_trained_once(toy_config: Config) -> None:
    """K=4 and alpha=0.2 are the recipe's EncNet, alpha=0 is "+ Encoding", K=0 the pooled gate."""
    ablation = plan_ablation(with_values(toy_config, SMALL))

    rows = [FCN, "+ Encoding", ENCNET, GATE, "K=8", "alpha=0.4"]
    assert [t.row for t in ablation.trainings] == rows * 2, "seed by seed"
    assert _names(ablation, "K=4") == _names(ablation, "alpha=0.2") == _names(ablation, ENCNET)
    assert _names(ablation, "alpha=0") == _names(ablation, "+ Encoding")
    assert _names(ablation, "K=0") == _names(ablation, GATE)
    assert len({t.name for t in ablation.trainings}) == len(ablation.trainings)


def test_rows_are_trained_at_every_budget_and_curves_at_the_shortest(toy_config: Config) -> None:
    ablation = plan_ablation(with_values(toy_config, {**SMALL, "ablate.epochs": [6, 3]}))

    assert {p.epochs for p in ablation.points if p.series == "rows"} == {3, 6}
    assert {p.epochs for p in ablation.points if p.series == "codewords"} == {3}
    config = with_values(toy_config, {**SMALL, "ablate.epochs": [6, 3], "ablate.curve_epochs": 6})
    assert {p.epochs for p in plan_ablation(config).points if p.series == "codewords"} == {6}


def test_trainings_carry_the_values_of_their_row(toy_config: Config) -> None:
    values = {"rows": {"EncNet, sum": {"model.aggregate": "sum", "optim.lr": 1e-3}}, "heads": ["unet"]}
    ablation = plan_ablation(with_values(toy_config, {"ablate": values}))

    by_row = {training.row: training.config for training in ablation.trainings}
    assert (by_row["U-Net"].model.head, by_row["U-Net"].model.context) == ("unet", "none")
    assert (by_row["+ Encoding"].loss.se_weight, by_row[ENCNET].loss.se_weight) == (0.0, 0.2)
    assert (by_row["EncNet, sum"].model.aggregate, by_row["EncNet, sum"].optim.lr) == ("sum", 1e-3)
    assert by_row["K=64"].model.num_codewords == 64


def test_the_multi_scale_row_scores_the_weights_of_encnet(toy_config: Config) -> None:
    ablation = plan_ablation(with_values(toy_config, SMALL))
    trainings = {scoring.name: scoring.training for scoring in ablation.scorings}
    assert [trainings[name] for name in _names(ablation, MULTI_SCALE)] == _names(ablation, ENCNET)
    without = plan_ablation(with_values(toy_config, {**SMALL, "ablate.scales": []}))
    assert "multi-scale" not in {scoring.kind for scoring in without.scorings}


def test_sizes_and_presence_score_the_same_weights_once_and_words_those_of_fcn(toy_config: Config) -> None:
    values = {**SMALL, "ablate.epochs": [2, 5], "ablate.words": [16, 64]}
    ablation = plan_ablation(with_values(toy_config, values))
    planned = {scoring.name: scoring for scoring in ablation.scorings}
    assert len(planned) == len(ablation.scorings)
    points = {(p.series, p.label, p.epochs): p.trainings[1] for p in ablation.points}
    for epochs in (2, 5):
        assert points["sizes", ENCNET, epochs] == points["presence", ENCNET, epochs]
        assert planned[points["sizes", FCN, epochs]].training == points["rows", FCN, epochs]
        features = planned[points["presence", "64 words of features", epochs]]
        assert (features.kind, features.num_words, features.seed) == ("features", 64, 1)
        assert features.training == points["rows", FCN, epochs]
    # Patches do not depend on a training.
    (patches,) = {points["presence", "16 words of patches", epochs] for epochs in (2, 5)}
    assert planned[patches].training is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ablate.rows": {"odd": {"model.num_codewords": 0}}}, "ablation row 'odd': model.num_codewords=0"),
        ({"ablate.rows": {"odd": {"model.codewords": 8}}}, "did you mean model.num_codewords"),
        ({"ablate.rows": {"odd": {"data.store": "x"}}}, "data.store is none of augment, model"),
        ({"ablate.rows": {"odd": {"model": {"dropout": 0.5}}}}, "model would set every value of its section"),
        ({"ablate.rows": {"odd": {"train.seed": 3}}}, "train.seed is set by ablate.seeds"),
        ({"ablate.rows": {"FCN": {"model.dropout": 0.5}}}, "'FCN' is a row of every ablation"),
        ({"ablate.codewords": [2000]}, "ablation row 'K=2000': model.num_codewords=2000"),
        ({"train.early_stop.patience": 2}, "train.early_stop.patience=2 would let rows end at other epochs"),
        ({"ablate.rows": {"K=8": {"model.num_codewords": 9}}}, "'K=8' and 'K=8' are different, but"),
        ({"ablate.rows": {"SE-loss": {"model.dropout": 0.5}}}, "'\\+ SE-loss' and 'SE-loss' are different"),
        ({"ablate.se_weights": [0.1, 0.10000001]}, "'alpha=0.1' and 'alpha=0.1' are different, but"),
        ({"loss.se_weight": 0.0}, 'the row "\\+ SE-loss" needs a weight'),
        ({"model.head": "unet"}, "model.head=unet: the ablation goes from FCN to EncNet"),
        ({"ablate.seeds": [1, 1]}, "names a training twice"),
        ({"ablate.words": [1]}, "must be 2 or more"),
        (
            {"ablate.words": [8], "ablate.rows": {"8 words of features": {"model.dropout": 0.5}}},
            "'8 words of features' and '8 words of features' are different, but",
        ),
        ({"ablate.scene_pattern": "-(\\w+"}, "is no regular expression"),
        ({"ablate.scene_pattern": "-\\w+$"}, "has 0 groups; put the scene in one"),
    ],
)
def test_what_cannot_be_ablated_is_refused_by_name(
    toy_config: Config, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_ablation(with_values(toy_config, values))


def test_differences_are_paired_by_seed(toy_config: Config) -> None:
    """Seeds that vary by 0.2 hide no gain that is 0.1 with each."""
    ablation = plan_ablation(with_values(toy_config, SMALL))
    results = [
        *_results(ablation, FCN, {0: 0.2, 1: 0.4}),
        *_results(ablation, ENCNET, {0: 0.3, 1: 0.502}),
    ]
    by_label = {f.point.label: f for f in compute_figures(ablation, results, "mIoU")}

    gain = by_label[ENCNET].over_fcn["mIoU"]
    assert gain.values == pytest.approx((0.1, 0.102))
    assert gain.tells_apart
    assert not by_label[FCN].over_fcn
    assert by_label[FCN].estimates["mIoU"].mean == pytest.approx(0.3)
    assert by_label["K=4"].estimates == by_label[ENCNET].estimates, "the same trainings"


def test_a_seed_that_failed_is_left_out_of_the_pairs(toy_config: Config) -> None:
    ablation = plan_ablation(with_values(toy_config, SMALL))
    results = [*_results(ablation, FCN, {0: 0.2, 1: 0.4}), *_results(ablation, ENCNET, {1: 0.5})]
    by_label = {f.point.label: f for f in compute_figures(ablation, results, "mIoU")}

    assert by_label[ENCNET].over_fcn["mIoU"].values == pytest.approx((0.1,))
    assert GATE not in by_label


def test_the_report_shows_every_row_and_says_what_is_told_apart(toy_config: Config, tmp_path: Path) -> None:
    ablation = plan_ablation(with_values(toy_config, SMALL))
    results = [
        *_results(ablation, FCN, {0: 0.2, 1: 0.4}),
        *_results(ablation, ENCNET, {0: 0.3, 1: 0.502}),
        *_results(ablation, GATE, {0: 0.35, 1: 0.45}),
        *_scores(ablation, "sizes", FCN, SIZE_METRICS[:2], {0: 0.1, 1: 0.2}),
        *_scores(ablation, "sizes", ENCNET, (*SIZE_METRICS[:2], *PRESENCE_METRICS[:1]), {0: 0.3, 1: 0.402}),
        *_scores(ablation, "presence", "256 words of patches", PRESENCE_METRICS[:1], {0: 0.5, 1: 0.45}),
    ]
    story = AblationStory(
        name="toy",
        metric="mIoU",
        store="toy",
        split="val",
        seeds=(0, 1),
        object_sizes=(0.01, 0.1),
        figures=compute_figures(ablation, results, "mIoU"),
        results=tuple(results),
        failures={"K=8-2-epochs-seed0": "non-finite gradient by step 3"},
        pictures="No pictures.",
        wall_seconds=60.0,
    )
    page = write_report(story, tmp_path).read_text()

    told, not_told, small, words = verdicts(story)
    assert told.endswith("over 2 seeds: told apart.")
    assert not_told.endswith("over 2 seeds: not told apart.")
    assert small.startswith(f'2 epochs, size/small/mIoU: "{ENCNET}" minus "FCN" is +20.10 points')
    assert words.startswith(
        f'2 epochs, presence/mAP: "256 words of patches" minus "{ENCNET}" is +12.40 points'
    )
    assert f"| {ENCNET} | 2 | 40.10 [" in page
    assert "| FCN | 2 | 15.00 [" in page, "the table by size"
    assert "Medium objects begin at 1 % of the image, large ones at 10 %." in page
    assert "256 words of features" not in page, "a row without results"
    assert "K=8-2-epochs-seed0: non-finite gradient" in page
    for chart in ("rows.png", "codewords.png", "se_weights.png"):
        assert f"({chart})" in page
        assert (tmp_path / chart).read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "trainings.csv").read_text().splitlines()
    assert len(lines) == 1 + len(results)


def test_pictures_are_the_largest_the_median_and_the_worst_gain() -> None:
    gains = [0.0, 0.5, -0.3, 0.1, 0.2, -0.1, 0.3]
    assert chosen(gains) == {"largest": [1, 6], "median": [4, 3], "worst": [5, 2]}
    assert chosen([0.1, 0.2, 0.3]) == {"largest": [2], "median": [1], "worst": [0]}


def test_a_torn_line_of_a_killed_run_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "trainings.jsonl"
    assert read_lines(path) == []
    append_line(path, {"name": "a"})
    with path.open("a") as file:
        file.write('{"name": "b"')
    assert read_lines(path) == [{"name": "a"}]
    append_line(path, {"name": "c"})
    assert read_lines(path) == [{"name": "a"}, {"name": "c"}]


def _names(ablation: Ablation, label: str) -> list[str]:
    base = ("rows", "codewords", "se_weights")
    (point,) = (p for p in ablation.points if p.label == label and p.series in base)
    return list(point.trainings.values())


def _results(ablation: Ablation, label: str, values: dict[int, float]) -> list[AblationResult]:
    """Results of a row, the metric by seed."""
    return _scores(ablation, "rows", label, ("mIoU", "pixAcc"), values)


def _scores(
    ablation: Ablation, series: Series, label: str, metrics: tuple[str, ...], values: dict[int, float]
) -> list[AblationResult]:
    (point,) = (p for p in ablation.points if (p.series, p.label) == (series, label))
    return [
        AblationResult(point.trainings[seed], label, seed, 2, dict.fromkeys(metrics, value), 10.0)
        for seed, value in values.items()
    ]
