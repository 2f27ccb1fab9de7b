"""The Python API: what the package offers, what its functions take and return."""

import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml

import encsearch
from encsearch import api
from encsearch.cli.main import cli
from encsearch.config import Config, load_config
from encsearch.data.manifest import read_manifest
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.inference.evaluation import score_bundle
from encsearch.model.encnet import EncNet
from encsearch.model.encoding import Encoding
from encsearch.tracking.browse.rows import RunRow, to_frame

ROOT = Path(__file__).parents[2]
FUNCTIONS = {name for name in encsearch.__all__ if name != "__version__"}
OFFERED = FUNCTIONS | {"EncNet", "Encoding"}


def test_the_package_offers_what_the_api_defines() -> None:
    public = {name for name, value in vars(api).items() if inspect.isfunction(value) and name[0] != "_"}
    defined = {name for name in public if getattr(api, name).__module__ == api.__name__}
    assert defined == FUNCTIONS
    assert dir(encsearch) == sorted(dir(encsearch))
    assert set(dir(encsearch)) >= OFFERED
    assert (encsearch.EncNet, encsearch.Encoding) == (EncNet, Encoding)
    assert all(getattr(encsearch, name) is getattr(api, name) for name in FUNCTIONS)


def test_help_is_short_and_has_a_line_for_each_name() -> None:
    text = pydoc.plain(pydoc.render_doc(encsearch))
    assert len(text.splitlines()) < 300
    assert all(f"\n        {name} " in text for name in OFFERED)
    assert all(inspect.getdoc(getattr(encsearch, name)) for name in OFFERED)


def test_train_is_the_function_though_a_package_has_that_name() -> None:
    probe = "from encsearch import train; import encsearch.train.loop; from encsearch.train import loss\n"
    probe += "import encsearch; assert encsearch.train is train and callable(train)"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_a_recipe_is_loaded_without_torch() -> None:
    probe = "import sys; from encsearch import load_recipe; load_recipe('scenes')\n"
    probe += "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'mlflow', 'optuna')))"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_a_client_without_torch_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encsearch, "find_spec", lambda name: None)
    for name in OFFERED - {"load_recipe"}:
        with pytest.raises(
            ImportError, match=rf"encsearch\.{name} needs torch; pip install 'encsearch\[train\]'"
        ):
            getattr(encsearch, name)
    assert encsearch.load_recipe("scenes").name == "encnet-tiny-scenes"
    assert OFFERED & set(dir(encsearch)) == {"load_recipe"}


# What a function has besides the command of its name, and what the command has besides the function.
DIFFERENCES = {
    "train": ({"progress"}, set()),
    "sweep": ({"progress"}, {"dry_run"}),
    "resume": ({"progress"}, set()),
    "eval": (set(), set()),
    "promote": (set(), set()),
    "predict": ({"images", "overrides"}, {"arguments", "out", "as_ids", "skip_bad"}),
    "runs list": (set(), {"columns"}),
}


@pytest.mark.parametrize("command", DIFFERENCES)
def test_a_function_takes_what_its_command_takes(command: str) -> None:
    first, *rest = command.split()
    found = cli.get_command(click.Context(cli), first)
    for name in rest:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    assert found
    function = getattr(api, {"eval": "evaluate"}.get(first, first))
    own, others = DIFFERENCES[command]
    options = {str(option.name).removesuffix("_") for option in found.params} - {"as_json"}
    assert set(inspect.signature(function).parameters) - own == options - others


@pytest.mark.parametrize(
    "overrides",
    [
        {"optim.lr": 1e-5, "eval.scales": (0.5, 1), "search.budget.wall": None, "data.store": Path("a b")},
        {"optim.lr": np.float64(1e-5), "eval.scales": [0.5, 1], "data.store": "a b"},
        ["optim.lr=1e-5", "eval.scales=[0.5,1]", "data.store=a b"],
    ],
)
def test_overrides_are_a_mapping_or_texts(overrides: Any) -> None:
    recipe = api.load_recipe("scenes", overrides)
    assert (recipe.optim.lr, recipe.eval.scales, recipe.data.store) == (1e-5, (0.5, 1.0), "a b")
    assert api.load_recipe(load_config("scenes"), overrides) == recipe


def test_one_override_may_be_one_text() -> None:
    assert api.load_recipe("scenes", "optim.lr=0.5").optim.lr == 0.5


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("scene", (), "scene"),
        (3, (), "a recipe is a Config, a file or a name, but got int"),
        (None, (), "a recipe is a Config, a file or a name, but got NoneType"),
        ("scenes", {"optim.l": 1}, "did you mean optim.lr"),
        ("scenes", {"optim.lr": "fast"}, "optim.lr"),
        ("scenes", {"optim.lr": True}, "optim.lr"),
        ("scenes", [("optim.lr", 1)], "overrides are a mapping"),
        ("scenes", 3, "overrides are a mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe: Any, overrides: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        api.load_recipe(recipe, overrides)
    assert "\n" not in str(refused.value)


@pytest.fixture
def model(toy_config: Config, tmp_path: Path) -> Path:
    manifest = read_manifest(toy_config.data.store)
    torch.manual_seed(0)
    net = EncNet.from_config(toy_config.model, len(manifest.info.classes))
    folder = tmp_path / "bundle"
    write_bundle(Bundle(net, toy_config, manifest.info, manifest.fingerprint, metrics={}), folder)
    return folder


def test_evaluate_is_the_commands_score_on_its_store_or_another(model: Path, toy_store: Path) -> None:
    store = api.open_store(toy_store)
    expected = score_bundle(read_bundle(model), store, "val", device="cpu")
    assert api.evaluate(model, device="cpu") == expected
    assert api.evaluate(str(model), store, device="cpu", batch_size=3).class_iou == expected.class_iou
    assert api.evaluate(model, toy_store, "train", {"eval.flip": True}).mean_iou != expected.mean_iou
    with pytest.raises(UserError, match=r"optim\.lr=1: the model is trained"):
        api.evaluate(model, overrides={"optim.lr": 1})


def test_predict_takes_files_and_arrays_of_any_size(model: Path, toy_store: Path) -> None:
    image = Store(toy_store).split("val")[0].image
    first, second = api.predict(model, [image, image[:20]])
    assert (first.labels.shape, second.labels.shape, first.labels.dtype) == ((32, 32), (20, 32), np.uint8)
    assert first.presence
    assert set(first.presence) == {"ground", "red", "blue"}
    assert np.array_equal(api.load(model).predict(image)[0], first.labels)
    with pytest.raises(UserError, match=r"no\.png"):
        api.predict(model, "no.png")


def test_runs_are_a_table_with_numbers_where_all_are() -> None:
    rows = [
        RunRow("b", "two", "RUNNING", 2000, None, {"optim.lr": "0.1", "name": "1"}, {"lr": 0.1}, {}),
        RunRow(
            "a", "one", "FINISHED", 0, 1500, {"name": "x"}, {"best/mIoU": 0.5}, {"encsearch.kind": "sweep"}
        ),
    ]
    frame = to_frame(rows)
    assert list(frame.columns[:8]) == [
        *("run_id", "name", "kind", "status", "start_time", "end_time", "seconds", "parent_run_id")
    ]
    assert list(frame.columns[8:]) == [
        *("metrics.best/mIoU", "metrics.lr", "params.optim.lr", "params.name", "tags.encsearch.kind")
    ]
    assert frame["params.optim.lr"].dtype == float
    assert list(frame["params.name"]) == ["1", "x"]
    assert (frame["seconds"][1], str(frame["start_time"][1])) == (1.5, "1970-01-01 00:00:00+00:00")
    assert list(to_frame([]).columns) == list(frame.columns[:8])


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_page_is_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(_leaves(yaml.safe_load(text)["nav"]))
    assert {path for path in listed if path.startswith("docs/")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("**/*.md")
    }
    assert all((ROOT / path).exists() for path in listed)


def _leaves(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [leaf for child in (tree.values() if isinstance(tree, dict) else tree) for leaf in _leaves(child)]
