"""What a `search:` block may say."""

from typing import Any

import pytest

from encsearch.config import Config, find_active, to_yaml, with_overrides, with_values
from encsearch.config.search import Dimension
from encsearch.errors import UserError

K, WEIGHT, RATE = "model.num_codewords", "loss.se_weight", "optim.lr"
CHOICE, RANGE = {"choice": [4, 8]}, {"loguniform": [1e-3, 1e-1]}
WORDS = {"choice": ["encoding", "none"]}
WEIGHTS = {"uniform": [0.0, 1.0]}


def searching(config: Config, space: dict[str, Any], **values: Any) -> Config:
    return with_values(config, {"search": {"space": space, **values}})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("2h30m", 9000), ("45s", 45), ("1.5h", 5400), (60, 60)]
)
def test_a_wall_budget_is_a_duration(toy_config: Config, text: Any, seconds: float) -> None:
    config = searching(toy_config, {RATE: RANGE}, budget={"wall": text})

    assert config.search
    assert config.search.budget.wall == seconds
    assert f"wall: {seconds:.1f}" in to_yaml(config)


@pytest.mark.parametrize(
    ("space", "values", "message"),
    [
        ({RATE: RANGE}, {"budget": {"wall": "soon"}}, "'soon' is not a duration; try 90m, 2h30m"),
        ({RATE: RANGE}, {"budget": {"gpu_hours": 2}}, "limits nothing: scaling.gpus_per_worker is 0"),
        ({RATE: RANGE}, {"sampler": "grid"}, "sampler=grid needs a choice, but optim.lr is a range"),
        ({RATE: RANGE, "model.context": WORDS}, {"sampler": "cmaes"}, "model.context is one; try tpe"),
        ({RATE: RANGE}, {"sampler": "cmaes"}, "needs two paths or more, .* there is only one path"),
        ({RATE: RANGE}, {"minimize": "parameters"}, "early stopping .* set search.scheduler=none"),
        (
            {RATE: RANGE, WEIGHT: WEIGHTS},
            {"minimize": "parameters", "scheduler": "none", "sampler": "cmaes"},
            "cmaes has one objective",
        ),
        (
            {WEIGHT: {**WEIGHTS, "when": {K: [8]}}},
            {},
            "when names model.num_codewords, which must be another searched path",
        ),
        (
            {K: CHOICE, WEIGHT: {**WEIGHTS, "when": {K: [16]}}},
            {},
            "when model.num_codewords=16 never holds",
        ),
        (
            {K: CHOICE, WEIGHT: {**WEIGHTS, "when": {K: [8]}}},
            {"sampler": "gp"},
            "sampler=gp cannot search loss.se_weight, which has `when`",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    toy_config: Config, space: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        searching(toy_config, space, **values)


def test_a_part_of_a_gpu_is_for_one_worker(toy_config: Config) -> None:
    packed = with_overrides(toy_config, ["scaling.gpus_per_worker=0.5"])
    assert packed.scaling.gpus_per_worker == 0.5
    with pytest.raises(
        UserError, match=r"gpus_per_worker=0.5 with num_workers=2: .* NCCL takes each GPU once"
    ):
        with_overrides(packed, ["scaling.num_workers=2"])


def test_a_condition_is_met_by_the_other_paths_values() -> None:
    space = {K: Dimension(choice=(4, 8)), WEIGHT: Dimension(uniform=(0.0, 1.0), when={K: (8,)})}

    assert find_active(space, {K: 8}) == [K, WEIGHT]
    assert find_active(space, {K: 4}) == [K]
    assert find_active(space, {}) == [K]


def test_a_value_that_is_invalid_only_where_it_is_not_searched_is_allowed(toy_config: Config) -> None:
    """Output stride 8 exists for resnet18 alone of the two, 4 for tiny alone."""
    stride = {"choice": [4], "when": {"model.backbone": ["tiny"]}}
    base = with_values(toy_config, {"model.output_stride": 8})

    config = searching(
        base, {"model.backbone": {"choice": ["tiny", "resnet18"]}, "model.output_stride": stride}
    )

    assert config.search
    with pytest.raises(UserError, match="output_stride=4 does not exist for resnet18"):
        searching(base, {"model.backbone": {"choice": ["tiny", "resnet18"]}, "model.output_stride": CHOICE})


def test_a_condition_names_at_least_one_value(toy_config: Config) -> None:
    with pytest.raises(UserError, match=r"when.*at least 1 value"):
        searching(toy_config, {K: CHOICE, WEIGHT: {**WEIGHTS, "when": {K: []}}})
