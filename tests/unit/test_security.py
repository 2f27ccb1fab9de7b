"""Nothing that is read can run code, and no name that is read leads out of its folder."""

import ast
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pytest

from encsearch.config import Config, load_config
from encsearch.data.importers.folder import plan_folder
from encsearch.data.importers.pairs import PairSettings
from encsearch.data.importers.write import write_plan
from encsearch.data.manifest import read_manifest
from encsearch.errors import UserError
from encsearch.files import sha256
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.model.backbones.weights import read_tensors
from encsearch.model.encnet import EncNet
from encsearch.reports import Point
from encsearch.submit.package import package_files
from encsearch.tracking.outbox.events import Ended, Filed, Started
from encsearch.tracking.outbox.forward import Missing, refused_parts
from encsearch.tracking.outbox.record import own_record
from encsearch.train.checkpoint import load_checkpoint, save_checkpoint
from encsearch.train.experiment import build
from tests.forward import send_all

ROOT = Path(__file__).parents[2]

# Modules that run what they read, or calls that do unless an argument forbids it.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "torch.export.load",
    "torch.hub.load",
    "torch.jit.load",
    "os.system",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "shutil.unpack_archive",
}
METHODS = {"extractall", "extract"}
KNOWN = {
    ("encsearch/inference/export.py", "torch.export.load"): "of the file that this process has just written",
    ("encsearch/model/backbones/weights.py", "import pickle"): "for the name of the error of weights_only",
}


def test_the_package_runs_nothing_that_it_reads() -> None:
    found = {
        (str(file.relative_to(ROOT)), use)
        for file in (ROOT / "encsearch").rglob("*.py")
        for use in dangerous(file.read_text(encoding="utf-8"))
    }
    assert found == set(KNOWN)


def dangerous(source: str) -> set[str]:
    """What of a module's code could run what it reads."""
    return {use for node in ast.walk(ast.parse(source)) for use in _uses(node)}


def _uses(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {f"import {name.name}" for name in node.names if name.name.partition(".")[0] in MODULES}
    if isinstance(node, ast.ImportFrom):
        return {f"import {node.module}"} if (node.module or "").partition(".")[0] in MODULES else set()
    if not isinstance(node, ast.Call):
        return set()
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    is_open = {
        "torch.load": given.get("weights_only") != "True",
        "np.load": "allow_pickle" in given,
        "numpy.load": "allow_pickle" in given,
    }
    if is_open.get(name, name in CALLS or name.rpartition(".")[2] in METHODS or given.get("shell") == "True"):
        return {name}
    return set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "archive.extractall(folder)",
        "def f():\n    return eval(text)",
    ],
)
def test_the_search_for_such_code_finds_it(source: str) -> None:
    assert dangerous(source)
    assert not dangerous("torch.load(f, weights_only=True)\nnp.load(f)\nyaml.safe_load(f)\nmodel.eval()")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    return tmp_path / "crater"


def test_the_bomb_works(crater: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors", "weights"])
def test_a_pickle_as_weights_is_not_run(tmp_path: Path, crater: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": Bomb(crater)}, protocol=2))
    with pytest.raises(UserError):
        read_tensors(tmp_path / name)
    assert not crater.exists()


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, crater: Path, toy_config: Config) -> None:
    state = build(toy_config).state
    save_checkpoint(state, tmp_path)
    file = tmp_path / "optimizer.pt"
    file.write_bytes(pickle.dumps(Bomb(crater), protocol=2))
    content = json.loads((tmp_path / "checkpoint.json").read_text())
    content["sha256"][file.name] = sha256(file)  # whoever plants it would write this too
    (tmp_path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="optimizer state cannot be read"):
        load_checkpoint(state, tmp_path)
    assert not crater.exists()


@pytest.fixture
def bundle(tmp_path: Path, toy_config: Config, toy_store: Path) -> Path:
    folder = tmp_path / "bundle"
    info = read_manifest(toy_store).info
    model = EncNet.from_config(toy_config.model, len(info.classes))
    write_bundle(Bundle(model, toy_config, info, "abc", metrics={}), folder)
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.yaml", "dataset.json", "metrics.json", "preprocessing.json"]
)
def test_no_file_of_a_bundle_is_run(crater: Path, bundle: Path, name: str) -> None:
    read_bundle(bundle)
    (bundle / name).write_bytes(pickle.dumps(Bomb(crater), protocol=2))
    with pytest.raises(UserError):
        read_bundle(bundle)
    assert not crater.exists()


def test_a_recipe_cannot_make_objects(tmp_path: Path, crater: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.mkdir ['{crater}']\n")
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_config(recipe)
    assert not crater.exists()


def _shard_outside(values: dict[str, Any]) -> None:
    values["splits"]["train"]["shards"][0]["file"] = "../outside.parquet"


def _shard_at_a_path(values: dict[str, Any]) -> None:
    values["splits"]["train"]["shards"][0]["file"] = "/etc/passwd"


def _cache_outside(values: dict[str, Any]) -> None:
    values["splits"]["train"]["shards"][0]["sha256"] = "../../outside"


@pytest.mark.parametrize("damage", [_shard_outside, _shard_at_a_path, _cache_outside])
def test_a_manifest_names_no_file_outside_its_store(
    tmp_path: Path, toy_store: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    values = json.loads((toy_store / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    read_manifest(tmp_path)
    damage(values)
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="damaged, not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("target", ["../secret.txt", ".env", "data/large.bin"])
def test_a_link_takes_no_file_into_a_package_that_would_not_travel(tmp_path: Path, target: str) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "data").mkdir(parents=True)
    (checkout / target).write_text("content")
    (checkout / "train.py").write_text("print()")
    (checkout / "same.py").symlink_to("train.py")
    assert sorted(package_files(checkout)) == ["same.py", "train.py"]

    (checkout / "notes.txt").symlink_to(target)
    with pytest.raises(UserError, match=r"notes\.txt: a link to .*, which does not travel"):
        package_files(checkout)


def test_an_importer_shows_nothing_of_a_file_that_a_link_leads_to(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2-Zx")
    source = tmp_path / "source"
    for folder in ("images", "masks"):
        (source / folder).mkdir(parents=True)
        (source / folder / "0001.png").symlink_to(secret)
    with pytest.raises(UserError) as refused:
        write_plan(plan_folder(source, PairSettings(classes=("a", "b"))), tmp_path / "store")
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "store").exists()


class Shelf:
    """A store that takes files."""

    shown_uri, experiment_id = "shelf", "1"

    def __init__(self) -> None:
        self.files: list[str] = []

    def begin(self, event: Started, parent_id: str | None, known_id: str | None) -> str:
        return event.key

    def describe(self, run_id: str, event: Started) -> None: ...

    def log(self, run_id: str, points: Sequence[Point]) -> None: ...

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None: ...

    def store_files(self, run_id: str, path: Path, target: str) -> None:
        self.files.append(path.name)

    def find_missing(self, run_id: str, params: Set[str], tags: Set[str], points: Sequence[Point]) -> Missing:
        return Missing()

    def end(self, run_id: str, event: Ended) -> None: ...


@pytest.mark.parametrize("path", ["../id_rsa", "linked", "folder"])
def test_a_record_uploads_nothing_from_outside_its_job(tmp_path: Path, path: str) -> None:
    """A runs folder is shared, and the jobs of others send what a dead one has left."""
    job = tmp_path / "job"
    (job / "folder").mkdir(parents=True)
    (job / "config.yaml").write_text("name: toy")
    (tmp_path / "id_rsa").write_text("key")
    (job / "linked").symlink_to("../id_rsa")
    (job / "folder" / "linked").symlink_to("../../id_rsa")
    shelf = Shelf()
    with own_record(job) as record:
        record.start("job", params={}, tags={})
        for name in (path, str(tmp_path / "id_rsa"), "config.yaml"):
            record.append(Filed("job", name))
    send_all(job, shelf)
    assert shelf.files == ["config.yaml"]
    assert refused_parts(job) == 2
