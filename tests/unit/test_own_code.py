"""The code of own parts stays with jobs and models, and is run only as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from encsearch.config import CONFIG_FILE, Config, load_config, to_yaml, with_overrides, with_values
from encsearch.data.own import with_own_store
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, checkpoint_model, read_bundle, read_files, write_bundle
from encsearch.inference.evaluation import find_own_metric
from encsearch.inference.predictor import Predictor
from encsearch.parts import code_from, find_code
from encsearch.reports import BEGUN_FILE, MemoryRecorder
from encsearch.runner.local import run_local
from encsearch.tracking.lineage import code_tags
from encsearch.train.preflight import preflight
from encsearch.workflow.job import keep_code, kept_code
from encsearch.workflow.resume import find_changes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_parts.py", "own.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return with_own_store(load_config("own.yaml", ["train.epochs=1"]), tmp_path / "runs")


@pytest.fixture
def bundle(config: Config, tmp_path: Path) -> Bundle:
    job = tmp_path / "job"
    config = keep_code(config.model_copy(update={"search": None}), job)
    Path("my_parts.py").unlink()  # the job's copy is used from here on
    result = run_local(config, job / "training", MemoryRecorder())
    return checkpoint_model(config, Store(config.data.store), result.best_checkpoint, result.best)


def test_a_model_with_own_parts_is_the_same_in_another_folder(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "bundle")
    read = read_bundle(tmp_path / "bundle")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    first, second = (Predictor(one).predict(image) for one in (bundle, read))
    assert np.array_equal(first, second)
    write_bundle(read, tmp_path / "again")
    assert (tmp_path / "again" / "code.json").read_text() == (tmp_path / "bundle" / "code.json").read_text()
    assert "own loss `my_parts:boundary`" in (tmp_path / "bundle" / "README.md").read_text()


def test_two_models_with_other_code_of_one_name_work_side_by_side(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "one")
    changed = dict(bundle.code.files) if bundle.code else {}
    changed["my_parts.py"] = changed["my_parts.py"].replace(b"torch.relu(self.mix", b"torch.tanh(self.mix")
    assert bundle.code
    other = type(bundle.code)(bundle.code.root, changed)
    write_bundle(Bundle(**{**vars(bundle), "code": other}), tmp_path / "two")
    images = torch.rand(1, 3, 48, 64)
    one, two = (read_bundle(tmp_path / name).model for name in ("one", "two"))
    with torch.no_grad():
        first = one(images).logits
        assert not torch.equal(first, two(images).logits)
        assert torch.equal(first, one(images).logits)


def test_code_that_is_not_named_or_not_the_same_is_not_run(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(bundle, folder)
    source = folder / "code" / "my_parts.py"
    kept = source.read_text()
    source.write_text(f"open('{tmp_path}/ran', 'w')\n{kept}")
    with pytest.raises(UserError, match=r"my_parts\.py: changed, its SHA-256 is not the one in code\.json"):
        read_bundle(folder)
    source.write_text(kept)
    (folder / "code" / "torch.py").write_text(f"open('{tmp_path}/ran', 'w')\n")
    with pytest.raises(UserError, match=r"torch\.py: not named in code\.json"):
        read_bundle(folder)
    (folder / "code" / "torch.py").unlink()
    source.unlink()
    with pytest.raises(UserError, match=r"my_parts\.py: missing"):
        read_bundle(folder)
    source.write_text(kept)
    listed = json.loads((folder / "code.json").read_text())
    (folder / "code.json").write_text(json.dumps(listed | {"sha256": 64 * "0"}))
    with pytest.raises(UserError, match="its SHA-256 is not that of the files"):
        read_bundle(folder)
    (folder / "code.json").unlink()
    with pytest.raises(UserError, match=r"code\.json of its own parts is missing"):
        read_bundle(folder)
    assert not (tmp_path / "ran").exists()


def test_the_files_that_go_to_a_server_are_the_whole_model(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "bundle")
    for path, data in read_files(tmp_path / "bundle").items():
        target = tmp_path / "replica" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert read_files(tmp_path / "replica") == read_files(tmp_path / "bundle")
    assert read_bundle(tmp_path / "replica").code


@pytest.mark.parametrize(
    ("kind", "name", "args", "line"),
    [
        ("model.backbone", "os:system", {"command": "touch ran"}, "is of Python itself"),
        (
            "model.head",
            "mlflow.utils.process:_exec_cmd",
            {"cmd": ["touch", "ran"]},
            "only a class that is one",
        ),
        ("metric", "numpy:save", {"file": "ran", "arr": 1}, "only a class that is one"),
    ],
)
def test_a_model_cannot_have_any_function_called(
    bundle: Bundle, tmp_path: Path, kind: str, name: str, args: dict[str, object], line: str
) -> None:
    """Loaded and scored: what it names is not called with the arguments that it gives."""
    write_bundle(bundle, tmp_path / "bundle")
    given = {f"{'eval' if kind == 'metric' else 'model'}.args": {name: args}, kind: name}
    changed = with_values(bundle.config.model_copy(update={"code": None}), given)
    (tmp_path / "bundle" / "config.yaml").write_text(to_yaml(changed))
    with pytest.raises(UserError, match=line):
        find_own_metric(read_bundle(tmp_path / "bundle"))
    assert not list(tmp_path.glob("ran*"))


def test_a_line_says_whose_code_runs_before_it_does(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(bundle, tmp_path / "bundle")
    read_bundle(tmp_path / "bundle")
    assert bundle.code
    assert caplog.messages == [
        f"the model's own parts run code: my_parts.py (SHA-256 {bundle.code.digest[:12]})"
    ]


def test_a_job_that_goes_on_has_the_code_that_it_began_with(config: Config, tmp_path: Path) -> None:
    job = tmp_path / "job"
    begun = keep_code(config, job)
    assert begun.code == str(job / "code")
    assert kept_code(config, job) == begun
    source = Path("my_parts.py")
    source.write_text(source.read_text() + "\n# another\n")
    with pytest.raises(UserError, match=r"my_parts\.py is not what it was when the job began"):
        kept_code(config, job)
    source.unlink()  # it need not be there
    assert kept_code(config, job) == begun
    shutil.rmtree(job / "code")
    with pytest.raises(UserError, match="code: lacks modules of the job's own parts, my_parts:Backbone"):
        kept_code(config, job)


def test_a_job_that_is_started_again_under_its_name_has_the_same_data(config: Config, tmp_path: Path) -> None:
    job = tmp_path / "runs" / "mine"
    job.mkdir()
    (job / CONFIG_FILE).write_text(to_yaml(config))
    (job / BEGUN_FILE).touch()
    again = load_config("own.yaml", ["train.epochs=1"])
    assert find_changes(tmp_path / "runs", "mine", "training", again) == []


@pytest.mark.parametrize(
    "change",
    [
        "loss.args.my_parts:bundary.radius=2",
        'search.space={"loss.args.my_parts:bundary.radius": {"choice": [1, 2]}}',
        'ablate.rows={"wide": {"loss.args.my_parts:bundary.radius": 2}}',
    ],
)
def test_arguments_of_a_part_that_is_not_named_are_those_of_a_mistyped_one(
    config: Config, tmp_path: Path, change: str
) -> None:
    config = with_overrides(config, [change])
    with pytest.raises(UserError, match="argument of my_parts:bundary, which the recipe does not name"):
        preflight(config, Store(config.data.store), tmp_path)


def test_runs_have_the_hash_of_the_code_as_a_tag(config: Config, toy_config: Config) -> None:
    tags = code_tags(config)
    with code_from(Path.cwd()):
        assert tags["code.sha256"] == find_code(["my_parts:Backbone"]).digest  # type: ignore[list-item]
    assert tags["code.files"] == "my_parts.py"
    assert "my_parts:sampler" in tags["code.parts"]
    assert code_tags(toy_config) == {}
