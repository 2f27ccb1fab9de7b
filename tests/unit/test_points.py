"""The points that a search begins with."""

from typing import Any

import pytest

from encsearch.config import Config, require_search, with_values
from encsearch.search.study.study import known_points

K, WEIGHT, RATE = "model.num_codewords", "loss.se_weight", "optim.lr"


def points(config: Config, space: dict[str, Any], enqueue: list[dict[str, Any]] | None = None) -> list[Any]:
    search = {"space": space, "enqueue": enqueue or []}
    recipe = with_values(config, {RATE: 0.02, "search": search})
    return list(known_points(recipe, require_search(recipe)))


def test_the_papers_values_come_first_and_the_recipes_own_beside_them(toy_config: Config) -> None:
    space = {
        K: {"choice": [8, 16, 32]},
        WEIGHT: {"uniform": [0.0, 1.0]},
        RATE: {"loguniform": [1e-3, 1e-1]},
    }
    other = {K: 8, WEIGHT: 0.5, RATE: 0.1}

    assert points(toy_config, space, [other]) == [{K: 32, WEIGHT: 0.2, RATE: 0.02}, other]


@pytest.mark.parametrize(("choices", "first"), [([1, 4, 64], 4), ([1, 64], None)])
def test_where_the_space_lacks_the_papers_value_the_recipes_stands_or_none(
    toy_config: Config, choices: list[int], first: int | None
) -> None:
    (point,) = points(toy_config, {K: {"choice": choices}, WEIGHT: {"uniform": [0.0, 1.0]}})

    assert point.get(K) == first
    assert point[WEIGHT] == 0.2


def test_no_point_is_tried_twice(toy_config: Config) -> None:
    paper = {K: 32, WEIGHT: 0.2}
    found = points(toy_config, {K: {"choice": [32]}, WEIGHT: {"uniform": [0, 1]}}, [paper, paper])

    assert found == [paper]


def test_a_part_of_an_earlier_point_is_that_point(toy_config: Config) -> None:
    space = {
        K: {"choice": [16, 32]},
        WEIGHT: {"uniform": [0, 1]},
        "train.global_batch_size": {"choice": [8, 16]},
    }

    first, *others = points(toy_config, space, [{K: 32, WEIGHT: 0.2}, {K: 16}])

    assert first == {K: 32, WEIGHT: 0.2, "train.global_batch_size": 8}
    assert others == [{K: 16}], "the first of them would draw the batch, and may draw 8"


def test_points_that_differ_in_a_path_that_does_not_hold_are_one(toy_config: Config) -> None:
    space = {
        "model.context": {"choice": ["none", "encoding"]},
        WEIGHT: {"uniform": [0.0, 1.0], "when": {"model.context": ["encoding"]}},
    }
    enqueue = [{"model.context": "none", WEIGHT: 0.3}, {"model.context": "none", WEIGHT: 0.5}]

    first, *others = points(toy_config, space, enqueue)
    assert first == {"model.context": "encoding", WEIGHT: 0.2}
    assert others == [{"model.context": "none"}]
