"""train.init_from: what is taken of another model, what is new, who is told, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encsearch.config import Config, from_json, to_json, with_values
from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.store import Store, write_store
from encsearch.errors import PreflightError, UserError
from encsearch.inference.bundle import checkpoint_model, write_bundle
from encsearch.model.encnet import EncNet
from encsearch.reports import MemoryRecorder, Report
from encsearch.runner.local import run_local
from encsearch.train.experiment import build
from encsearch.train.initial import read_initial
from encsearch.train.loop import fit
from encsearch.train.preflight import preflight

# The layers that have one channel a class, with the paper's preset.
CLASS_LAYERS = {"classifier.1", "context.presence", "aux_context.presence"}


@pytest.fixture
def bundle(toy_config: Config, tmp_path: Path) -> Path:
    """A model of three classes that was trained for six steps."""
    result = run_local(toy_config, tmp_path / "trained", MemoryRecorder())
    write_bundle(
        checkpoint_model(toy_config, Store(toy_config.data.store), result.best_checkpoint, result.best),
        tmp_path / "bundle",
    )
    return tmp_path / "bundle"


@pytest.fixture
def other_classes(toy_config: Config, tmp_path: Path) -> Config:
    """The recipe on a set of five classes."""
    rng = np.random.default_rng(0)
    info = DatasetInfo("five", tuple("abcde"), tuple((n, n, n) for n in range(5)))

    def samples(name: str, count: int) -> list[EncodedSample]:
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        masks = rng.integers(0, 5, (count, 32, 32), dtype=np.uint8)
        pairs = enumerate(zip(images, masks, strict=True))
        return [
            EncodedSample(f"{name}-{n}", encode_png(image), encode_png(mask), group=name)
            for n, (image, mask) in pairs
        ]

    write_store(tmp_path / "five", info, {"train": samples("t", 16), "val": samples("v", 8)})
    return with_values(toy_config, {"data.store": str(tmp_path / "five")})


def test_all_is_taken_for_the_same_classes(toy_config: Config, bundle: Path) -> None:
    e = build(with_values(toy_config, {"train.init_from": str(bundle)}))

    source = load_file(bundle / "model.safetensors")
    weights = {name: value for name, value in e.state.model.state_dict().items() if "num_batches" not in name}
    assert all(torch.equal(value, source[name]) for name, value in weights.items())
    assert f"{len(weights)} of {len(weights)} tensors are taken" in e.origin
    assert "new" not in e.origin
    assert "not used" not in e.origin


def test_class_layers_are_new_where_the_number_of_classes_differs(
    other_classes: Config, bundle: Path
) -> None:
    fresh, tuned = build(other_classes), build(with_values(other_classes, {"train.init_from": str(bundle)}))

    source = load_file(bundle / "model.safetensors")
    random = fresh.state.model.state_dict()
    for name, value in tuned.state.model.state_dict().items():
        if "num_batches" in name:
            continue
        is_new = name.rpartition(".")[0] in CLASS_LAYERS
        assert torch.equal(value, random[name] if is_new else source[name]), name
    assert tuned.origin.startswith(f"begins with the weights of {bundle / 'model.safetensors'} (SHA-256 ")
    new = tuned.origin.partition("new: ")[2].partition(";")[0]
    assert set(new.replace(" and ", ", ").split(", ")) == CLASS_LAYERS
    assert "6 tensors of the file not used" in tuned.origin


def test_the_first_report_and_the_preflight_say_it(
    other_classes: Config, bundle: Path, tmp_path: Path
) -> None:
    config = with_values(other_classes, {"train.init_from": str(bundle)})
    found = preflight(config, Store(config.data.store), tmp_path)
    lines = found.facts
    result = run_local(config, tmp_path / "tuned", MemoryRecorder())

    first, second = (report.texts.get("lineage/init_from.txt") for report in result.reports)
    assert first == f"{build(config).origin}\n" == f"{found.origin}\n"
    assert second is None
    assert lines[0] == found.origin


def test_a_checkpoint_and_a_file_are_sources_too(toy_config: Config, bundle: Path, tmp_path: Path) -> None:
    model = build(toy_config).state.model
    whole = read_initial(str(bundle), model).tensors
    for source in (bundle / "model.safetensors", tmp_path / "trained" / "best"):
        assert_equal(read_initial(str(source), model).tensors, whole)
    torch.save(dict(load_file(bundle / "model.safetensors")), tmp_path / "weights.pth")
    assert_equal(read_initial(str(tmp_path / "weights.pth"), model).tensors, whole)


def test_another_head_is_new_over_the_same_backbone(toy_config: Config, bundle: Path) -> None:
    model = EncNet.from_config(with_values(toy_config, {"model.context": "none"}).model, 3)
    found = read_initial(str(bundle), model)
    assert "context.presence.weight" not in found.tensors
    assert "classifier.1.weight" in found.tensors
    assert "of the file not used" in found.description


def test_it_trains_on_from_what_it_took(toy_config: Config, bundle: Path) -> None:
    """With a rate that changes nothing it ends with the source's weights."""
    still = {"optim.lr": 1e-12, "train.epochs": 1, "train.init_from": str(bundle)}
    e = build(with_values(toy_config, still))
    assert any(isinstance(event, Report) for event in fit(e.state, e.loaders, e.loss, e.plan))
    source = load_file(bundle / "model.safetensors")
    for name, value in e.state.model.named_parameters():
        torch.testing.assert_close(value.detach(), source[name])


def test_a_resumed_training_is_the_uninterrupted_one(
    toy_config: Config, bundle: Path, tmp_path: Path
) -> None:
    config = with_values(toy_config, {"train.init_from": str(bundle)})

    class Killed(MemoryRecorder):
        def log(self, report: Report) -> None:
            raise KeyboardInterrupt

    whole = run_local(config, tmp_path / "whole", MemoryRecorder())
    with pytest.raises(KeyboardInterrupt):
        run_local(config, tmp_path / "killed", Killed())
    resumed = run_local(config, tmp_path / "killed", MemoryRecorder())
    assert [r.confusion for r in resumed.reports] == [r.confusion for r in whole.reports]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "nowhere",
            PreflightError,
            r"train\.init_from=nowhere: no such file as nowhere; name a model's folder",
        ),
        ("", PreflightError, r"no such file as .*model\.safetensors; name a model's folder"),
        ("junk.safetensors", UserError, r"junk\.safetensors: cannot be read as weights"),
        (
            "stranger.safetensors",
            UserError,
            r"not a model with this recipe's model\.backbone: 2\d of its 2\d t",
        ),
        ("wider.safetensors", UserError, r"do not fit, the first is backbone.*, of another shape"),
        ("int.safetensors", UserError, r"do not fit, the first is backbone.*, of another shape or kind"),
    ],
)
def test_what_cannot_be_begun_with_is_one_line(
    toy_config: Config, tmp_path: Path, source: str, error: type[UserError], message: str
) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"a": torch.zeros(1)}, tmp_path / "stranger.safetensors")
    model = EncNet.from_config(toy_config.model, 3)
    wider = {name: torch.zeros(3, 3, 3) for name in model.state_dict() if name.startswith("backbone.")}
    save_file(wider, tmp_path / "wider.safetensors")
    save_file({name: value.int() for name, value in model.state_dict().items()}, tmp_path / "int.safetensors")
    place = source if source == "nowhere" else str(tmp_path / source) if source else str(tmp_path)
    config = with_values(toy_config, {"train.init_from": place})

    for act in (
        lambda: build(config),
        lambda: preflight(config, Store(config.data.store), tmp_path),
    ):
        with pytest.raises(error, match=message) as raised:
            act()
        assert "\n" not in str(raised.value)


def test_weights_of_the_backbone_beside_it_are_refused(toy_config: Config) -> None:
    values: dict[str, Any] = {"train.init_from": "bundle", "model.weights": "file.pth"}
    with pytest.raises(UserError, match=r"model\.weights=file\.pth and train\.init_from=bundle both give"):
        with_values(toy_config, values)


def test_a_worker_gets_its_absolute_path(toy_config: Config) -> None:
    config = with_values(toy_config, {"train.init_from": "runs/a/artifacts/bundle"})
    assert from_json(to_json(config)).train.init_from == str(Path("runs/a/artifacts/bundle").absolute())


def test_every_source_that_is_searched_is_checked(toy_config: Config, bundle: Path, tmp_path: Path) -> None:
    space = {"train.init_from": {"choice": [str(bundle), "nowhere"]}}
    config = with_values(toy_config, {"search": {"space": space}})
    with pytest.raises(PreflightError, match="init_from=nowhere"):
        preflight(config, Store(config.data.store), tmp_path)


def test_a_source_is_checked_where_it_is_searched(toy_config: Config, bundle: Path, tmp_path: Path) -> None:
    """One for the tiny network alone, beside another network; the condition on what is not read holds."""
    space = {
        "model.backbone": {"choice": ["tiny", "resnet18"]},
        "train.init_from": {"choice": [str(bundle)], "when": {"model.backbone": ["tiny"]}},
        "optim.name": {"choice": ["sgd", "adamw"]},
    }
    config = with_values(toy_config, {"model.output_stride": 8, "search": {"space": space}})
    preflight(config, Store(config.data.store), tmp_path)
    space["train.init_from"]["when"] = {"optim.name": ["adamw"]}
    config = with_values(toy_config, {"model.output_stride": 8, "search": {"space": space}})
    with pytest.raises(UserError, match=r"not a model with this recipe's model\.backbone"):
        preflight(config, Store(config.data.store), tmp_path)


def test_an_address_is_refused(toy_config: Config) -> None:
    with pytest.raises(UserError, match=r"train\.init_from=s3://a/model is an address; fetch the model"):
        with_values(toy_config, {"train.init_from": "s3://a/model"})


def test_a_few_new_layers_are_named(toy_config: Config, bundle: Path) -> None:
    model = EncNet.from_config(with_values(toy_config, {"model.head": "refinenet"}).model, 3)
    (names,) = re.findall("new: ([^;]*)", read_initial(str(bundle), model).description)
    assert re.search(r"^(\S+, ){4}\S+ and \d+ more$", names)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
