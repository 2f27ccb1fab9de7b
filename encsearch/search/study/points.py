"""The points that a search begins with: pure."""

from collections.abc import Mapping
from typing import Any

from encsearch.config import Config, flatten

# Zhang et al., CVPR 2018, section 4.1 and table 1.
PAPER = {"model.num_codewords": 32, "loss.se_weight": 0.2}


def known_points(config: Config) -> tuple[Mapping[str, Any], ...]:
    """The paper's K and SE-weight within the recipe's own values, then `search.enqueue`, none twice.

    Where the space does not hold the paper's value the recipe's stands, and where it does not hold that
    either, the sampler draws one.
    """
    assert config.search
    recipe, space = flatten(config), config.search.space
    first = {
        path: value
        for path in space
        for value in [
            v for v in (PAPER.get(path), recipe.get(path)) if v is not None and space[path].holds(v)
        ][:1]
    }
    points: list[Mapping[str, Any]] = [first]
    for point in config.search.enqueue:
        if point not in points:
            points.append(point)
    return tuple(points)
