"""Train EncNet on a Ray cluster, search its hyperparameters, and promote the best model.

`EncNet` and `load` are imported on first use: `import encsearch` alone loads neither torch nor mlflow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encsearch.model.encnet import EncNet
    from encsearch.tracking.registry.fetch import load

__version__ = "0.1.0"
__all__ = ["EncNet", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "EncNet":
        from encsearch.model.encnet import EncNet

        return EncNet
    if name == "load":
        from encsearch.tracking.registry.fetch import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
