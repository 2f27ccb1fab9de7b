"""Recipes as text: where a recipe lies, what it extends, and YAML in which a value is what is written.

YAML 1.2: `on`, `off`, `yes` and 2:30 are text, 1e-3 is a number, and a key that is given twice is an error.
"""

import difflib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from encsearch.errors import UserError, one_line
from encsearch.text import format_list

RECIPES = Path(__file__).parents[1] / "recipes"
SUFFIX = ".yaml"
EXTENDS = "extends"  # the key of a recipe whose value is the recipe under it
MAX_DEPTH = 20  # of mappings and lists; the deepest in a recipe of ours has five
MAX_VALUES = 100_000
KINDS = {dict: "a mapping", list: "a list", str: "text", type(None): "empty"}


class _Constructor(SafeConstructor):
    """Without dates: none is a value of a recipe, and 2026-11-27 is a good name. And `=` is text."""


for _kind in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_yaml_str)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob(f"*{SUFFIX}"))


def find_recipe(given: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one of the package's. A folder of that name is none."""
    path, name = Path(given), str(given)
    return RECIPES / f"{name}{SUFFIX}" if name in recipe_names() and not path.is_file() else path


def describe_near(name: str) -> str:
    """What a recipe that does not exist may have meant."""
    path, names = Path(name), recipe_names()
    files = {file.name: str(file) for file in path.parent.glob("*.y*ml") if file != path}
    near = [path.stem] if path.stem in names else []
    near = near or [files[each] for each in difflib.get_close_matches(path.name, files, n=1, cutoff=0.75)]
    near = near or difflib.get_close_matches(path.stem, names, n=3)
    return f"did you mean {format_list(near, 'or')}?" if near else "`encsearch recipes` lists ours"


def read_layers(given: str | Path) -> list[dict[str, Any]]:
    """The tree of a recipe, after those that it extends. Raises UserError that begins with the file."""
    return _read(given, find_recipe(given), ())


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` has in YAML 1.2. Raises UserError, one line that begins with `where`."""
    if text.lstrip("\ufeff").startswith("%"):
        raise UserError(f"{where}: begins with a directive, {text.split()[0]}; leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an anchor that is used again, which is allowed
            value = _yaml().load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*)" with value', str(error.problem))
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(
            f"{where}: line {line}: {key[1] if key else 'a key'} is given a second time; keep one"
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = str(error.problem or error).replace("could not determine a constructor for", "no meaning of")
        raise UserError(f"{where}: not valid YAML: {place}{one_line(reason, None)}") from None
    except RecursionError:
        raise UserError(f"{where}: deeper than {MAX_DEPTH} mappings and lists") from None
    # KeyError of `!!bool maybe`, TypeError of a list as a key, ValueError of a number of 5000 digits.
    except (YAMLError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{where}: not valid YAML: {one_line(error)}") from None
    _check_values(value, where, (), count(1))
    return value


def parse_override(item: str) -> tuple[str, Any]:
    """Path and value of `path=value`. Raises UserError."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise UserError(f"override {item!r} is not of the form path=value, as in optim.lr=0.02")
    value = parse_yaml(text, f"override {item!r}")
    if json.dumps(value).count("#") < text.count("#"):
        raise UserError(f"override {item!r}: YAML drops what follows #; write {path}='\"{text}\"'")
    return path, value


def write_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as YAML that `parse_yaml` reads back, in its own order."""
    text = StringIO()
    _yaml().dump(dict(tree), text)
    return text.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style = False
    # None by ruamel's annotations.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 2**16
    return yaml


def _read(given: str | Path, path: Path, above: tuple[Path, ...]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        resolved = path.resolve()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{given}: cannot read the recipe ({reason}); {describe_near(str(given))}") from None
    tree = parse_yaml(text, str(given))
    if not isinstance(tree, dict):
        kind = KINDS.get(type(tree), "a number")
        raise UserError(f"{given}: a recipe is a mapping of sections, but this is {kind}")
    below = tree.pop(EXTENDS, None)
    if below is None:
        return [tree]
    if not isinstance(below, str) or not below:
        raise UserError(f"{given}: {EXTENDS} is the path or name of one recipe, but got {below!r}")
    try:
        # Beside this file, wherever the command is run.
        base = path.parent / below
        base = base if base.is_file() or below not in recipe_names() else find_recipe(below)
        if base.resolve() in (*above, resolved):
            raise UserError(f"{below} extends this recipe")
        return [*_read(base, base, (*above, resolved)), tree]
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{given}: {EXTENDS} {below}: {error}") from None


def _check_values(value: Any, where: str, path: tuple[str, ...], counter: Iterator[int]) -> None:
    """Raise UserError for what no recipe holds, so that everything else is JSON."""
    place = f"{where}: {'.'.join(path) or 'the recipe'}"
    if next(counter) > MAX_VALUES:  # aliases of aliases: a few lines stand for millions
        raise UserError(f"{where}: more than {MAX_VALUES} values, aliases counted as often as they stand")
    if len(path) > MAX_DEPTH:
        raise UserError(f"{where}: {'.'.join(path[:3])}...: deeper than {MAX_DEPTH} mappings and lists")
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                raise UserError(f"{place}: the key {key!r} is no text; put it in quotes")
            _check_values(child, where, (*path, key), counter)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            _check_values(child, where, (*path, str(number)), counter)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}={value}: must be a finite number")
    elif isinstance(value, str):
        if not value.isprintable() and not value.encode("utf-8", "replace").decode() == value:
            raise UserError(f"{place}: text that is no Unicode")
    elif not isinstance(value, int | float | None):
        raise UserError(f"{place}: a {type(value).__name__}, but a recipe holds text, numbers and lists")
