"""The one path language: what a recipe may say, and what it is told when it may not."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from encsearch.config import (
    AugmentConfig,
    Config,
    ModelConfig,
    flatten,
    from_json,
    json_schema,
    load_config,
    paths,
    to_json,
    to_yaml,
    with_values,
)
from encsearch.config.problems import find_section
from encsearch.config.recipe_text import parse_override, parse_yaml, write_yaml
from encsearch.errors import UserError

RECIPE = """
name: example
data: {store: somewhere}
model: {backbone: tiny, output_stride: 4}
search:
  space:
    model.num_codewords: {choice: [8, 16]}
    loss.se_weight: {uniform: [0.0, 1.0]}
    optim.lr: {loguniform: [1e-3, 1e-1]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_preset_replaces_the_values_of_another_in_a_recipe_that_was_written_out(
    toy_config: Config, tmp_path: Path
) -> None:
    """A sweep's folder has such a recipe; its trials must be the same networks after a resume."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(toy_config))
    for value in get_args(ModelConfig.model_fields["preset"].annotation):
        fresh = with_values(toy_config, {"model.preset": value})
        assert flatten(with_values(load_config(path), {"model.preset": value})) == flatten(fresh)
        assert flatten(load_config(path, [f"model.preset={value}"])) == flatten(fresh)
    other = load_config(path, ["model.scaling=multiply", "model.preset=mmseg"])
    assert (other.model.aggregate, other.model.scaling, other.model.encoding_conv) == (
        "mean",
        "multiply",
        True,
    )


def test_an_override_wins_over_the_recipe_and_the_recipe_over_the_default(recipe: Path) -> None:
    config = load_config(recipe, ["optim.lr=1e-3", "optim.lr=0.02", "model.weights=null"])

    assert (config.optim.lr, config.model.output_stride, config.optim.momentum) == (0.02, 4, 0.9)


def test_it_crosses_as_json_and_as_yaml_unchanged(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe, [f"data.store={tmp_path}"])
    (tmp_path / "copy.yaml").write_text(to_yaml(config))

    assert from_json(to_json(config)) == config
    assert load_config(tmp_path / "copy.yaml") == config


def test_a_worker_finds_files_that_the_recipe_names_by_relative_paths(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = from_json(to_json(load_config(recipe, ["model.weights=tiny.pth"])))

    assert config.data.store == str(tmp_path / "somewhere")
    assert config.model.weights == str(tmp_path / "tiny.pth")


def test_values_are_set_by_path(recipe: Path) -> None:
    config = with_values(load_config(recipe), {"model.num_codewords": 64, "loss.se_weight": 0.0})

    assert (config.model.num_codewords, config.loss.se_weight) == (64, 0.0)


def test_a_choice_of_1e_3_is_a_number_as_everywhere_else(recipe: Path) -> None:
    config = load_config(recipe, ["search.space.optim.lr={choice: [1e-3, 0.1]}"])

    assert config.search is not None
    assert config.search.space["optim.lr"].values == (0.001, 0.1)


def test_flatten_names_every_leaf_by_its_path(recipe: Path) -> None:
    leaves = flatten(load_config(recipe))

    assert leaves["optim.lr"] == 0.01
    assert leaves["model.num_codewords"] == 32
    assert set(json.loads(leaves["search.space"])) == {"model.num_codewords", "loss.se_weight", "optim.lr"}


def test_the_space_is_searchable_by_path_on_the_command_line(recipe: Path) -> None:
    config = load_config(recipe, ["search.space.optim.lr={uniform: [0.1, 0.2]}"])

    assert config.search is not None
    assert config.search.space["optim.lr"].values == (0.1, 0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=0.1", "unknown config path optim.lrr; did you mean optim.lr?"),
        ("modle.dropout=0.1", "unknown config path modle.dropout; did you mean model.dropout?"),
        ("optim.lr=-1", "optim.lr=-1: must be greater than 0"),
        ("model.num_codewords=0", "model.num_codewords=0: must be 1 or more"),
        ("model.output_stride=16", "output_stride=16 does not exist for tiny"),
        ("augment.scale=[2, 1]", "scale needs 0 < low <= high, but got (low=2, high=1)"),
        ("augment.crop=4", "augment.crop: is a side of 8 to 8192 px, [height, width] or null, but got 4"),
        ("augment.crop=[360]", "[height, width] or null, but got [360]"),
        ("augment.crop=[360, 480, 3]", "[height, width] or null, but got [360, 480, 3]"),
        ("augment.crop=[360, wide]", "[height, width] or null, but got [360, 'wide']"),
        ("augment.crop=true", "[height, width] or null, but got True"),
        ("augment.crop=48.5", "[height, width] or null, but got 48.5"),
        ("augment.shorter_side=4", "augment.shorter_side=4: must be 8 or more"),
        ("augment.blur=2", "augment.blur=2: must be 1 or less"),
        ("augment.class_uniform=-1", "augment.class_uniform=-1: must be 0 or more"),
        (
            "search.space.augment.crop={choice: [[360, 480], 240]}",
            "augment.crop.choice: [360, 480] is a list and not searchable; compare lists in ablate.rows",
        ),
        ("search.space.augment.crop={integer: [4, 480]}", "augment.crop=4 is not valid: is a side of 8 to"),
        (
            "scaling.num_workers=3",
            "global_batch_size=16 is not divisible by num_workers=3; try train.global_batch_size=15 or 18",
        ),
        (
            "search.confirm.num_workers=5",
            "is not divisible by num_workers=5; try train.global_batch_size=15 or 20",
        ),
        ("promote.alias=v3", "alias=v3 is reserved by MLflow"),
        ("optim.lr", "override 'optim.lr' is not of the form path=value"),
        (
            "search.space.optim.lrr={uniform: [0, 1]}",
            "search.space: unknown config path optim.lrr; did you mean optim.lr?",
        ),
        ("search.space.data.store={choice: [a, b]}", "data.store is not searchable"),
        (
            "search.space.optim.lr={uniform: [0, 1]}",
            "optim.lr=0.0 is not valid: must be greater than 0",
        ),
        ("search.space.train.seed={choice: [1, 2]}", "train.seed is not searchable"),
        ("search.space.augment.scale={choice: [1, 2]}", "augment.scale is a list and not searchable"),
        ("search.space.model.num_codewords={loguniform: [8, 64]}", "must be a whole number"),
        ("search.enqueue=[{optim.lr: 5}]", "search.enqueue[0]: optim.lr=5 is outside search.space"),
        ("search.enqueue=[{model.num_codewords: 5}]", "num_codewords=5 is outside search.space"),
        ("search.space.model.output_stride={integer: [4, 8]}", "model.output_stride=5 is not valid"),
        ("search.confirm.seeds=[1, 1]", "seeds=[1, 1] names a training twice"),
        ("search.confirm.seeds=[-1]", "must be 0 or more"),
        ("promote.alias=Latest", "alias=Latest is reserved by MLflow"),
        ("promote.alias=a b", "promote.alias='a b'"),
        ("promote.alias=best-previous", "alias=best-previous is kept for the previous model"),
        ("promote.model_name=a.decisions", "model_name=a.decisions is kept for the decisions on a; try a"),
        ("promote.class_floor={car: 2}", "2 for car is no IoU from 0 to 1"),
        ("promote.class_floor=high", "'high' for all is no IoU from 0 to 1"),
        ("promote.confidence=1", "promote.confidence=1"),
        ("augment.flip=true", "augment.flip=true: must be a number"),
        ("augment.flip=on", "augment.flip='on': must be a number"),
        ("optim.lr=true", "optim.lr=true: must be a number"),
        ("train.epochs=yes", "train.epochs='yes': must be a whole number"),
        ("train.epochs=1e1", "train.epochs=10.0: must be a whole number"),
        ("scaling.num_workers=true", "scaling.num_workers=true: must be a whole number"),
        ("train.seed=true", "train.seed=true: must be a whole number"),
        ("train.compile=yes", "train.compile='yes': must be true or false"),
        ("train.compile=1", "train.compile=1: must be true or false"),
        ("train.epochs='5'", "train.epochs='5': must be a whole number"),
        ("name=010", "name=10: must be text; put it in quotes"),
        ("name=", "name=null: must be text"),
        ("name=a #b", "YAML drops what follows #; write name='\"a #b\"'"),
        ("data.store=[a]", 'data.store=["a"]: must be text'),
        ("augment.scale=[1]", "augment.scale=[1]: must be a list of 2 values"),
        ("augment.scale=[1, 2, 3]", "augment.scale=[1, 2, 3]: must be a list of at most 2 values"),
        ("train=5", "train=5: must be a section with epochs, steps_per_epoch"),
        ("train.checkpoint_every=5", "must be a section with steps or minutes"),
        ("train.precision=fp16", "train.precision='fp16': must be fp32, bf16 or auto"),
        ("search.space.optim.lr={int: [4, 32]}", "did you mean search.space.optim.lr.integer?"),
        ("search.space.optim.lr={choice: [null]}", "choice.0=null: must be true or false, a whole number,"),
        ("search.space.optim.lr={choice: ['1e-3', 0.1]}", "optim.lr='1e-3' is not valid: must be a number"),
        ("search.budget.wall=2:30", "2:30 may mean 2h30m or 2m30s; write which"),
        ("lr=0.1", "unknown config path lr; did you mean optim.lr?"),
        ("train.epoch=5", "did you mean train.epochs?"),
        ("optim={lr: 0.1, lr: 0.2}", "line 1: lr is given a second time; keep one"),
        ("optim.lr=.nan", "must be a finite number"),
        ("search.space.optim.lr={uniform: [2, 1]}", "`low < high` must hold, but got (low=2, high=1)"),
        ("search.space.optim.lr={choice: [1], uniform: [0, 1]}", "exactly one of"),
        ("search.space.train.global_batch_size={choice: [8, 9]}", None),
        ("search.enqueue=[{optim.momentum: 0.5}]", "search.enqueue[0] names optim.momentum"),
    ],
)
def test_bad_input_is_one_line_with_the_way_out(recipe: Path, override: str, message: str | None) -> None:
    if message is None:
        load_config(recipe, [override])
        return
    with pytest.raises(UserError) as caught:
        load_config(recipe, [override])

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "advice", "followed"),
    [
        ("optim.lrr=0.1", "did you mean optim.lr?", ["optim.lr=0.1"]),
        ("modle.dropout=0.1", "did you mean model.dropout?", ["model.dropout=0.1"]),
        ("lr=0.1", "did you mean optim.lr?", ["optim.lr=0.1"]),
        ("train.epoch=5", "did you mean train.epochs?", ["train.epochs=5"]),
        ("model.output_stride=16", "try 4 or 8", ["model.output_stride=8"]),
        (
            "model.backbone=resnet5",
            "did you mean resnet50",
            ["model.backbone=resnet50", "model.output_stride=8"],
        ),
        (
            "model.backbone=resnet-50",
            "did you mean resnet50",
            ["model.backbone=resnet50", "model.output_stride=8"],
        ),
        ("model.weights=imagenet", "try null", ["model.weights=null"]),
        ("scaling.num_workers=3", "try train.global_batch_size=15 or 18", ["train.global_batch_size=18"]),
        ("scaling.gpus_per_worker=1.5", "try whole GPUs", ["scaling.gpus_per_worker=1"]),
        ("search.budget.gpu_hours=1", "give search.budget.wall", ["search.budget.wall=1h"]),
        ("search.budget.wall=2:30", "2h30m or 2m30s", ["search.budget.wall=2h30m"]),
        ("search.minimize=parameters", "set search.scheduler=none", ["search.scheduler=none"]),
        ("search.sampler=grid", "list its values", ["search.sampler=tpe"]),
        ("loss.ce_weight=0", "try dice_weight=1", ["loss.ce_weight=0", "loss.dice_weight=1"]),
        ("promote.alias=v3", "try champion", ["promote.alias=champion"]),
        ("promote.class_floor={car: 2}", "write class_floor: {car: 0.3}", ["promote.class_floor={car: 0.3}"]),
        ("name=a #b", "write name='\"a #b\"'", ['data.store="a #b"']),
        ("name=010", "put it in quotes", ["name='010'"]),
        (
            "search.space.optim.lr={int: [4, 32]}",
            "lr.integer?",
            ["search.space.model.channels={integer: [4, 32]}"],
        ),
    ],
)
def test_each_advice_that_is_followed_gets_further(
    recipe: Path, given: str, advice: str, followed: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(recipe, [given])
    assert advice in str(caught.value)
    load_config(recipe, followed)


def test_a_searched_batch_size_must_divide_by_the_workers_of_trials_and_finalists(recipe: Path) -> None:
    space = "search.space.train.global_batch_size={choice: [8, 9]}"
    message = "global_batch_size=9 is not valid: global_batch_size=9 is not divisible by num_workers=2"

    for workers in ("scaling.num_workers=2", "search.confirm.num_workers=2"):
        with pytest.raises(UserError, match=message):
            load_config(recipe, [workers, space])


def test_choices_must_be_valid_together(recipe: Path) -> None:
    overrides = ["search.space.model.backbone={choice: [tiny, resnet18]}"]
    load_config(recipe, [*overrides, "search.space.model.output_stride={choice: [8]}"])

    overrides += ["search.space.model.output_stride={choice: [8, 16]}"]
    with pytest.raises(UserError, match="output_stride=16 does not exist for tiny"):
        load_config(recipe, overrides)


def test_every_whole_number_of_a_range_must_divide(recipe: Path) -> None:
    overrides = [
        "search.confirm.num_workers=2",
        "search.space.train.global_batch_size={integer: [2, 4]}",
    ]

    with pytest.raises(UserError, match="global_batch_size=3 is not divisible by num_workers=2"):
        load_config(recipe, overrides)


def test_no_choice_of_a_large_space_is_left_unchecked(recipe: Path) -> None:
    many = list(range(8, 24))
    overrides = [
        "scaling.num_workers=2",
        "search.space.train.global_batch_size={choice: [4, 3]}",
        f"search.space.model.num_codewords={{choice: {many}}}",
        f"search.space.model.channels={{choice: {many}}}",
    ]

    with pytest.raises(UserError, match="global_batch_size=3 is not divisible"):
        load_config(recipe, overrides)


def test_an_enqueued_1e_2_is_a_number_as_everywhere_else(recipe: Path) -> None:
    config = load_config(recipe, ["search.enqueue=[{optim.lr: 1e-2}]"])

    assert config.search is not None
    assert config.search.enqueue == ({"optim.lr": 0.01},)


def test_a_log_range_of_whole_numbers_can_be_searched(recipe: Path) -> None:
    config = load_config(recipe, ["search.space.model.num_codewords={loginteger: [8, 64]}"])

    assert config.search is not None
    dimension = config.search.space["model.num_codewords"]
    assert dimension.holds(25)
    assert not dimension.holds(25.5)
    assert not dimension.holds(65)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b", "a recipe is a mapping of sections, but this is a list"),
        ("name: x", "data is missing"),
        ("data: {store: x}\nmodle: {}", "unknown config path modle; did you mean model?"),
    ],
)
def test_a_broken_recipe_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)

    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the recipe"):
        load_config(tmp_path / "none.yaml")


def test_a_key_that_is_given_twice_is_an_error_with_its_line(recipe: Path) -> None:
    recipe.write_text(RECIPE + "optim: {momentum: 0.5}\nmodel: {backbone: tiny}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: line 11: model is given a second time; keep one"):
        load_config(recipe)


def test_a_value_is_what_is_written(recipe: Path) -> None:
    recipe.write_text(RECIPE + "train: {sync_bn: off, epochs: 010}\noptim: {lr: 1e-3}\n")
    config = load_config(recipe, ["name=2026-11-27", "search.budget.wall=2h30m", "model.weights='010'"])
    assert (config.train.sync_bn, config.train.epochs, config.optim.lr) == ("off", 10, 0.001)
    assert (config.name, config.model.weights) == ("2026-11-27", "010")
    assert config.search
    assert config.search.budget.wall == 9000


def test_every_literal_of_the_schema_survives_yaml_and_an_override_without_quotes() -> None:
    literals = [
        value
        for section in sections(Config)
        for info in section.model_fields.values()
        for value in find_literals(info.annotation)
    ]
    assert {"off", "none", "auto", "tpe", 8} <= set(literals)
    for value in literals:
        assert parse_override(f"path={value}") == ("path", value)
        assert parse_yaml(f"key: {value}", "recipe") == {"key": value}


def test_every_field_of_the_schema_has_a_description() -> None:
    missing = [
        f"{section.__name__}.{name}"
        for section in sections(Config)
        for name, info in section.model_fields.items()
        if not info.description and not find_section(info.annotation)
    ]
    assert missing == []


TEXTS = ["on", "off", "yes", "true", "null", "~", "", " x ", "1e-3", ".5", "1_000", "010", "0x1f", "2:30"]
TEXTS += [
    "2026-11-27",
    "a #b",
    "a: b",
    "- x",
    "<<",
    "=",
    "%a",
    "@",
    "&a",
    "'q'",
    "!t",
    "\x1b",
    "a\tb",
    "東京",
]


@pytest.mark.parametrize("text", [*TEXTS, "x" * 400])
def test_text_survives_the_written_recipe(text: str) -> None:
    tree = {"key": text, text: 1, "numbers": [1e-6, 1e300, 1.0, 5, True, None]}
    assert parse_yaml(write_yaml(tree), "recipe") == tree


def test_a_recipe_extends_another_section_by_section(recipe: Path, tmp_path: Path) -> None:
    above = tmp_path / "above.yaml"
    above.write_text(
        "extends: recipe.yaml\nname: above\nmodel: {channels: 8}\n"
        "search: {space: {optim.lr: {uniform: [0.1, 0.2]}}}\n"
    )
    config = load_config(above, ["optim.lr=0.15"])
    assert (config.name, config.model.backbone, config.model.channels) == ("above", "tiny", 8)
    assert config.search
    assert list(config.search.space) == ["optim.lr"]  # a mapping of one's own keys is replaced
    top = tmp_path / "top.yaml"
    top.write_text("extends: above.yaml\nsearch: null\n")
    assert load_config(top).search is None


def test_what_is_extended_must_exist_and_lead_to_an_end(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("extends: second.yaml\n")
    second.write_text("extends: first.yaml\n")
    with pytest.raises(
        UserError,
        match=r"first\.yaml: extends second\.yaml: .*: first\.yaml extends this recipe",
    ):
        load_config(first)
    first.write_text("extends: camvit\n")
    with pytest.raises(UserError, match=r"camvit: cannot read the recipe .*did you mean camvid"):
        load_config(first)
    first.write_text("extends: [camvid]\n")
    with pytest.raises(UserError, match="path or name of one recipe"):
        load_config(first)


def test_another_preset_above_replaces_that_of_a_recipe_that_was_written_out(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(to_yaml(load_config("scenes")))
    (tmp_path / "above.yaml").write_text("extends: below.yaml\nmodel: {preset: reference}\n")
    extended = load_config(tmp_path / "above.yaml").model
    assert extended == load_config("scenes", ["model.preset=reference"]).model
    (tmp_path / "elastic.yaml").write_text("extends: below.yaml\nscaling: {num_workers: {min: 1, max: 4}}\n")
    elastic = load_config(tmp_path / "elastic.yaml")
    (tmp_path / "below.yaml").write_text(to_yaml(elastic))
    assert load_config(tmp_path / "elastic.yaml").scaling == elastic.scaling
    assert (
        load_config(tmp_path / "below.yaml", ["scaling.num_workers={min: 2, max: 4}"]).scaling.min_workers
        == 2
    )


def test_the_recipe_of_a_job_from_before_types_were_strict_is_read(tmp_path: Path) -> None:
    """PyYAML wrote it, of values that were taken as numbers then."""
    tree = load_config("camvid").model_dump(mode="json", exclude_none=True)
    tree["train"]["epochs"], tree["ablate"]["codewords"] = 8.0, [1.0, 16.0]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert load_config(tmp_path / "config.yaml").ablate.codewords == (1, 16)
    with pytest.raises(UserError, match=r"train\.epochs=8\.0: must be a whole number; write 8"):
        load_config((tmp_path / "config.yaml").rename(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping of sections, but this is empty"),
        ("%YAML 1.1\n---\na: 1", "begins with a directive, %YAML; leave it out"),
        ("eval: {flip: !!bool maybe}", "not valid YAML"),
        ("[[1]]: 3", "not valid YAML"),
        ("data: !foo x", "no meaning of the tag '!foo'"),
        ("data: &a [*a]", "deeper than 20 mappings and lists"),
        ("data: " + "{a: " * 300 + "1" + "}" * 300, "deeper than 20 mappings and lists"),
        ("1: 2", "the recipe: the key 1 is no text; put it in quotes"),
        ("loss: {class_weights: {1: 2}}", "loss.class_weights: the key 1 is no text"),
        ("data: !!binary aGk=", "a bytes, but a recipe holds text, numbers and lists"),
        ("ablate: {rows: {x: {optim.lr: .nan}}}", "ablate.rows.x.optim.lr=nan: must be a finite number"),
        ("train: {epochs: " + "9" * 5000 + "}", "not valid YAML"),
        ("extends: [a]", "extends is the path or name of one recipe"),
        ("extends: ''", "extends is the path or name of one recipe"),
        ("extends: nope.yaml", "extends nope.yaml: "),
        ("extends: " + "a" * 5000, "extends aaaa"),
        ('extends: "a\\0b"', "extends a\0b: "),
        ("optim.lr: 0.1", "optim.lr is one key; write optim: {lr: VALUE}, or give optim.lr=VALUE"),
        ("extend: camvid", "unknown config path extend; did you mean extends?"),
        (
            "search: {space: {optim: {lr: {uniform: [0, 1]}}}}",
            "a searched path is one key; write search: {space: {",
        ),
        ("search: {space: {}}", "search.space={}: must be a mapping of at least 1"),
        ("scaling: {num_workers: {min: '1', max: 4}}", "scaling.min_workers='1': must be a whole number"),
        ("train:", "must be a section with epochs, steps_per_epoch"),
    ],
)
def test_what_no_recipe_can_mean_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_of_aliases_are_counted_and_not_walked(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 100000 values"):
        load_config(tmp_path / "recipe.yaml")


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("camvid").mkdir()
    assert load_config("camvid").name == "encnet-r18-camvid"


def test_an_anchor_may_be_used_again_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    tree = parse_yaml("a: &x 1\nb: &x 2\nc: *x\nd: =\n", "recipe")
    assert tree == {"a": 1, "b": 2, "c": 2, "d": "="}
    assert not recwarn.list


@pytest.mark.parametrize("value", ["it's #1 o'clock", "a #b", "'a' # b", "# a"])
def test_an_override_loses_nothing_after_a_hash(value: str) -> None:
    with pytest.raises(UserError, match="YAML drops what follows #"):
        parse_override(f"name={value}")
    assert parse_override("name='a # b'") == ("name", "a # b")
    assert parse_override("name=a#b") == ("name", "a#b")


def test_a_recipe_of_the_package_is_used_and_extended_by_its_name(tmp_path: Path) -> None:
    assert load_config("camvid", ["train.epochs=3"]).train.epochs == 3
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: camvid\ndata: {store: mine}\n")
    assert load_config(mine).data.store == "mine"
    assert load_config(mine).model == load_config("camvid").model


def sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    """The section, those in it, and those that a mapping of it holds."""
    found = [section]
    for info in section.model_fields.values():
        for part in (info.annotation, *get_args(info.annotation)):
            if child := find_section(part):
                found += [other for other in sections(child) if other not in found]
    return found


def find_literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in find_literals(part)]


def test_the_schema_and_the_paths_agree() -> None:
    assert "optim.lr" in paths()
    assert "search.asha.grace_epochs" in paths()
    assert set(json_schema()["properties"]) == {path for path in paths() if "." not in path}


def test_the_shipped_recipes_are_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "encsearch" / "recipes").glob("*.yaml"))

    assert recipes
    for recipe in recipes:
        assert isinstance(load_config(recipe), Config)


def test_batch_norm_needs_more_than_one_value(recipe: Path) -> None:
    one_image = ["train.global_batch_size=1", "model.output_stride=8"]
    load_config(recipe, [*one_image, "augment.crop=9"])

    with pytest.raises(UserError, match=r"augment\.crop=8 at output_stride=8 with one image a worker"):
        load_config(recipe, [*one_image, "augment.crop=8"])
    with pytest.raises(UserError, match=r"augment\.crop=\[8, 8\] at output_stride=8"):
        load_config(recipe, [*one_image, "augment.crop=[8, 8]"])
    load_config(recipe, [*one_image, "augment.crop=[8, 9]"])


def test_a_crop_is_a_square_or_height_and_width(recipe: Path, tmp_path: Path) -> None:
    square, wide = (load_config(recipe, [f"augment.crop={crop}"]) for crop in ("480", "[360, 480]"))

    assert (square.augment.crop, square.augment.crop_size) == (480, (480, 480))
    assert wide.augment.crop == wide.augment.crop_size == (360, 480)
    assert (flatten(square)["augment.crop"], flatten(wide)["augment.crop"]) == (480, "[360, 480]")
    (tmp_path / "again.yaml").write_text(to_yaml(wide))
    assert load_config(tmp_path / "again.yaml").augment == from_json(to_json(wide)).augment == wide.augment


def test_the_size_of_training_images() -> None:
    assert AugmentConfig().image_size(300, 400) == (300, 400)
    assert AugmentConfig(shorter_side=100).image_size(300, 400) == (100, 133)
    assert AugmentConfig(shorter_side=100).image_size(400, 300) == (133, 100)
    assert AugmentConfig(shorter_side=100, crop=(50, 60)).image_size(300, 400) == (50, 60)


def test_preset_gives_what_the_recipe_leaves_open() -> None:
    paper = ModelConfig(preset="paper", scaling="residual")
    assert (paper.aggregate, paper.scaling, paper.auxiliary) == ("sum", "residual", "se")


def test_another_preset_replaces_what_the_first_one_gave() -> None:
    config = Config(data={"store": "s"}, model={"preset": "paper", "encoding_conv": True})
    changed = with_values(config, {"model.preset": "reference"}).model
    assert (changed.aggregate, changed.lateral, changed.encoding_conv) == ("mean", True, True)


def test_written_configuration_does_not_depend_on_the_presets(tmp_path: Path) -> None:
    config = Config(data={"store": "s"}, model={"preset": "paper", "context": "none"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    read = load_config(tmp_path / "config.yaml")
    assert read.model == config.model
    assert read.model.model_fields_set >= {"aggregate", "scaling", "auxiliary"}


def test_a_range_of_workers_is_two_fields_and_batch_norm_must_have_values_with_any_of_them(
    recipe: Path,
) -> None:
    elastic = load_config(recipe, ["scaling.num_workers={min: 1, max: 4}", "train.global_batch_size=8"])
    assert (elastic.scaling.min_workers, elastic.scaling.num_workers) == (1, 4)
    pooled = ["model.head=pspnet", "model.context=none", "loss.se_weight=0", "train.global_batch_size=8"]
    load_config(recipe, [*pooled, "scaling.num_workers=4"])
    with pytest.raises(UserError, match="head=pspnet pools an image to one value"):  # 3 workers: 2 parts of 3
        load_config(recipe, [*pooled, "scaling.num_workers={min: 1, max: 4}"])
    with pytest.raises(UserError, match="min_workers=3 is more than num_workers=2"):
        load_config(recipe, ["scaling.num_workers={min: 3, max: 2}", "train.global_batch_size=8"])
    with pytest.raises(UserError, match="takes a number, or min and max"):
        load_config(recipe, ["scaling.num_workers={least: 1, max: 2}"])
