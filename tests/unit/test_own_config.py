"""Own parts in the recipe: their paths, what is searched of them, and what is said of names that are none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from encsearch.config import (
    Config,
    PromoteConfig,
    flatten,
    from_json,
    from_yaml,
    load_config,
    named_parts,
    to_json,
    to_yaml,
    with_overrides,
    with_values,
)
from encsearch.errors import UserError
from encsearch.parts import ENTRY_POINTS, PartName, _entry_points, code_from
from encsearch.search.study.samplers import check_sampler

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def own() -> Config:
    return load_config(EXAMPLES / "own.yaml")


@pytest.fixture
def short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that names a part of each kind `short`."""
    info = tmp_path / "short_parts-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: short-parts\nVersion: 1\n")
    groups = [f"[{group}]\nshort = short_parts:{kind.title()}\n" for kind, group in ENTRY_POINTS.items()]
    (info / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(tmp_path)
    _entry_points.cache_clear()
    yield
    _entry_points.cache_clear()


def searching(config: Config, **search: Any) -> Config:
    return with_values(config, {"search": {"budget": {"trials": 1}, **search}})


def test_the_example_names_a_part_of_each_kind(own: Config) -> None:
    kinds = {kind for kind, _ in named_parts(own).values()}
    assert kinds == set(ENTRY_POINTS)


def test_it_is_the_same_after_every_journey(own: Config) -> None:
    assert from_yaml(to_yaml(own), "here") == own
    assert from_json(to_json(own)).model_dump(exclude={"code"}) == own.model_dump(exclude={"code"})
    assert own.data.store == from_json(to_json(own)).data.store, "a data set of one's own is no path"


def test_arguments_and_weights_are_leaves_with_paths(own: Config) -> None:
    leaves = flatten(own)
    assert leaves["model.args.my_parts:Backbone.width"] == 8
    assert leaves["loss.terms.my_parts:boundary"] == 0.5
    assert leaves["loss.args.my_parts:boundary.radius"] == 2
    assert leaves["data.args.my_parts:Stripes.number"] == 16
    paths = {path: value for path, value in leaves.items() if ".my_parts:" in path and "search" not in path}
    assert flatten(with_values(own, paths)) == leaves


def test_arguments_are_overrides(own: Config) -> None:
    overrides = [
        "model.args.my_parts:Backbone.width=4",
        "loss.terms.my_parts:other=0.25",
        "loss.args.my_parts:other.names=[a, b]",
        "augment.extra=[my_parts:Cutout, my_parts:Cutout]",
    ]
    changed = with_overrides(own, overrides)
    assert changed.model.args == {"my_parts:Backbone": {"width": 4}}
    assert changed.loss.terms == {"my_parts:boundary": 0.5, "my_parts:other": 0.25}
    assert changed.loss.args["my_parts:other"] == {"names": ["a", "b"]}
    assert changed.augment.extra == ("my_parts:Cutout", "my_parts:Cutout")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.head=my_parts", "model.head"),
        (
            "model.head=timm:resnet18",
            "unet, refinenet or module:Object",
        ),
        ("optim.name=adma", "must be sgd, adamw or module:Object"),
        ("optim.schedule=3", "optim.schedule"),
        ("search.sampler=bayes", "module:Object"),
        ("augment.extra=[flip]", "augment.extra"),
        ("loss.terms={focal: 1}", "'focal' is no own part; name it as module:Object"),
        ("loss.terms={'m:f': -1}", "loss.terms"),
        ("loss.terms={'m:f': true}", "loss.terms"),
        ("loss.args={'m:f': 3}", "loss.args"),
        ("model.backbone=my_parts.Backbone", "there is no backbone my_parts.Backbone"),
        ("model.weights=imagenet", "my_parts:Backbone is your own; give a file of it instead"),
        ("train.args.m:f.x=1", "train.args.m:f.x"),
        ("promote.args.m:f.x=1", "promote.args.m:f.x"),
    ],
)
def test_what_is_no_part_is_one_line(own: Config, override: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        with_overrides(own, [override])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_parts_are_named_by_search_enqueue_and_rows(toy_config: Config) -> None:
    config = searching(
        toy_config,
        space={
            "model.head": {"choice": ["fcn", "m:Head"]},
            "loss.terms.m:searched": {"uniform": [0, 1]},
            "optim.schedule": {"choice": ["poly", "m:schedule"]},
        },
        enqueue=[{"model.head": "m:Head", "loss.terms.m:searched": 0.5, "optim.schedule": "poly"}],
        sampler="m:sampler",
    )
    rows = {
        "one": {"augment.extra": ["m:T", "n:T"], "model.context": "m:Context"},
        "two": {"loss.terms.m:row": 1.0},
        "three": {"loss.terms": {"m:whole": 1.0}, "optim.lr": 0.1},
    }
    config = with_values(config, {"ablate.rows": rows})
    assert {name: kind for name, (kind, _) in named_parts(config).items()} == {
        "m:Head": "head",
        "m:searched": "loss",
        "m:schedule": "schedule",
        "m:sampler": "sampler",
        "m:T": "transform",
        "n:T": "transform",
        "m:Context": "context",
        "m:row": "loss",
        "m:whole": "loss",
    }
    assert named_parts(toy_config) == {}


def test_a_searched_argument_reaches_the_part(own: Config) -> None:
    space = {"loss.args.my_parts:boundary.radius": {"integer": [1, 3]}}
    config = searching(own, space=space)
    assert config.search
    trial = with_values(config.model_copy(update={"search": None}), {"loss.args.my_parts:boundary.radius": 3})
    assert trial.loss.args == {"my_parts:boundary": {"radius": 3}}
    with pytest.raises(UserError, match=r"only augment, model, loss, optim and train are"):
        searching(own, space={"eval.args.my_parts:ImageMIoU.x": {"integer": [1, 3]}})
    with pytest.raises(UserError, match=r"search\.enqueue\[0\]: loss\.args\.my_parts:boundary\.radius=9"):
        searching(own, space=space, enqueue=[{"loss.args.my_parts:boundary.radius": 9}])


def test_short_names_are_written_out(toy_config: Config, short_names: None) -> None:
    values = {
        "data.store": "short",
        "model.backbone": "short",
        "model.head": "short",
        "model.context": "short",
        "loss.terms": {"short": 1.0},
        "augment.extra": ["short"],
        "optim.name": "short",
        "optim.schedule": "short",
        "metric": "short",
        "model.args": {"short": {"width": 3}},
        "loss.args.short.factor": 2,
    }
    config = searching(
        with_values(toy_config, values), space=SPACE, sampler="short", args={"short": {"n": 1}}
    )
    assert {kind for kind, _ in named_parts(config).values()} == set(ENTRY_POINTS)
    assert set(named_parts(config)) == {f"short_parts:{kind.title()}" for kind in ENTRY_POINTS}
    assert config.loss.terms == {"short_parts:Loss": 1.0}
    assert config.loss.args == {"short_parts:Loss": {"factor": 2}}


def test_short_names_in_a_search_are_parts(toy_config: Config, short_names: None) -> None:
    space = {"model.head": {"choice": ["fcn", "short"]}, "loss.terms.short": {"uniform": [0, 1]}}
    config = searching(toy_config, space=space)
    assert set(named_parts(config)) == {"short_parts:Head", "short_parts:Loss"}


def test_the_gate_goes_by_an_own_metric_where_there_is_one(own: Config, toy_config: Config) -> None:
    assert toy_config.promote.figure == PromoteConfig().figure == "mIoU"
    assert with_values(own, {"promote.figure": "metric"}).promote.figure == "metric"
    for metric in ("mIoU", "pixAcc", "mIoU/objects"):
        with pytest.raises(UserError) as refused:
            with_values(toy_config, {"promote.figure": "metric", "metric": metric})
        assert f"promote.figure=metric needs an own metric, as module:Object, but metric={metric};" in str(
            refused.value
        )
        assert refused.value.exit_code == 2


SAMPLER = """
import itertools
import optuna
calls = itertools.count()
def sampler(seed, startup=2): return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
def unseeded(seed): return optuna.samplers.RandomSampler()
def counting(seed): return optuna.samplers.RandomSampler(seed=next(calls))
def none(seed): return "tpe"
def no_seed(): pass
class Failing(optuna.samplers.RandomSampler):
    def sample_independent(self, *_): raise RuntimeError("cannot\\nsample")
"""
SPACE = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "model.num_codewords": {"choice": [4, 8]}}


def checked(config: Config, folder: Path, name: str, **args: Any) -> None:
    (folder / "tried_samplers.py").write_text(SAMPLER)
    part = PartName(f"tried_samplers:{name}")
    found = searching(config, space=SPACE, sampler=part, args={part: args} if args else {})
    assert found.search
    with code_from(folder):
        check_sampler(found.search)


def test_a_sampler_of_ones_own_is_made_of_the_seed(toy_config: Config, tmp_path: Path) -> None:
    checked(toy_config, tmp_path, "sampler")
    checked(toy_config, tmp_path, "sampler", startup=1)
    built_in = searching(toy_config, space=SPACE).search
    assert built_in
    check_sampler(built_in)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("unseeded", "proposes other values at the second time with the same seed and trials"),
        ("counting", "proposes other values at the second time with the same seed and trials"),
        ("none", "must make an optuna.samplers.BaseSampler, but got str"),
        ("no_seed", "got an unexpected keyword argument 'seed'; it takes ()"),
        ("Failing", "fails on trial 0 of search.space (cannot sample)"),
    ],
)
def test_a_sampler_that_breaks_its_contract(toy_config: Config, tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        checked(toy_config, tmp_path, name)
    assert str(refused.value).startswith(f"sampler tried_samplers:{name}: {line}")
