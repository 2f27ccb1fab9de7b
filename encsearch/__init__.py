"""Train EncNet on a Ray cluster, search its hyperparameters, and promote the best model.

What the commands do, as functions:

    from encsearch import evaluate, load, open_store, predict, promote, resume, runs, sweep, train
    from encsearch.data.scenes import generate_scenes

    generate_scenes("scenes")                                    # a data set, in some seconds
    trained = train("scenes", {"data.store": "scenes"}, in_process=True, progress=print)
    evaluate(trained).mean_iou                                   # a share in [0, 1]
    labels = predict(trained, open_store("scenes").split("test")[0].image)[0].labels     # (H, W) uint8

    swept = sweep("scenes", {"data.store": "scenes", "search.budget.trials": 10}, progress=print)
    champion = load(promote(swept).uri)                          # for many images
    runs(sweep=swept)                                            # a pandas DataFrame

    load_recipe  read a recipe, change values by their paths
    train        train one configuration, record it, keep the best checkpoint
    sweep        search hyperparameters, train the finalists again, write a report
    resume       go on with a job that was interrupted, or extend a sweep
    evaluate     score a model on a split
    predict      label maps of images
    promote      make a model the champion, if it is better than the one that is
    runs         what MLflow has recorded, as a table
    load         a model, ready to predict again and again
    open_store   a data set
    EncNet       the network, a torch.nn.Module
    Encoding     the paper's encoding layer, a torch.nn.Module

`help(encsearch.train)` says more of each. What a person can mend raises `encsearch.errors.UserError` with one
line; `PreflightError` and `GateRefusedError` are kinds of it, and a training that fails raises
`TrainingError`.

Nothing heavy is imported before it is used. All but `load_recipe` need what `pip install 'encsearch[train]'`
brings.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encsearch.api import (
        evaluate,
        load,
        load_recipe,
        open_store,
        predict,
        promote,
        resume,
        runs,
        sweep,
        train,
    )
    from encsearch.model.encnet import EncNet as EncNet
    from encsearch.model.encoding import Encoding as Encoding

__version__ = "0.1.0"
# Without the networks, of which `help` would print 2,000 lines of torch.nn.Module.
__all__ = [
    "__version__",
    "evaluate",
    "load",
    "load_recipe",
    "open_store",
    "predict",
    "promote",
    "resume",
    "runs",
    "sweep",
    "train",
]
_MODULES = {"EncNet": "encsearch.model.encnet", "Encoding": "encsearch.model.encoding"}
_OFFERED = frozenset(__all__) - {"__version__"} | frozenset(_MODULES)


class _Package(ModuleType):
    """Imports what is offered when it is asked for.

    And keeps `encsearch.train` the function: Python would set the package of that name when it imports it.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _OFFERED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if not _is_usable(name):
            raise ImportError(f"encsearch.{name} needs torch; pip install 'encsearch[train]'")
        return getattr(import_module(_MODULES.get(name, "encsearch.api")), name)

    def __dir__(self) -> list[str]:
        return sorted(
            {name for name in self.__dict__ if name.startswith("__")} | set(filter(_is_usable, _OFFERED))
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _OFFERED and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def _is_usable(name: str) -> bool:
    return name == "load_recipe" or find_spec("torch") is not None


sys.modules[__name__].__class__ = _Package
