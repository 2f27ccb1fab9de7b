"""The experiment as one frozen tree of values; every default lives here.

sections.py and search.py hold the sections, tree.py the whole and the path language.
"""

from encsearch.config.search import (
    AblateConfig,
    Dimension,
    SearchConfig,
)
from encsearch.config.sections import (
    BACKBONES,
    DEEP_STEM_BACKBONES,
    IMAGENET,
    TIMM_PREFIX,
    TORCHVISION_BACKBONES,
    AugmentConfig,
    Context,
    DataConfig,
    EvalConfig,
    Head,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScalingConfig,
)
from encsearch.config.tree import (
    Config,
    flatten,
    from_json,
    json_schema,
    load_config,
    model_config,
    paths,
    to_json,
    to_yaml,
    with_overrides,
    with_values,
)

__all__ = [
    "BACKBONES",
    "DEEP_STEM_BACKBONES",
    "IMAGENET",
    "TIMM_PREFIX",
    "TORCHVISION_BACKBONES",
    "AblateConfig",
    "AugmentConfig",
    "Config",
    "Context",
    "DataConfig",
    "Dimension",
    "EvalConfig",
    "Head",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ScalingConfig",
    "SearchConfig",
    "flatten",
    "from_json",
    "json_schema",
    "load_config",
    "model_config",
    "paths",
    "to_json",
    "to_yaml",
    "with_overrides",
    "with_values",
]
