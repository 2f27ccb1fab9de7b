"""Recipes as text: where a recipe lies, what it extends, and YAML in which a value is what is written.

YAML 1.2: `on`, `off`, `yes` and 2:30 are text, 1e-3 is a number, and a key that is given twice is an error.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from io import StringIO
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
QUOTED = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"")


class _Constructor(SafeConstructor):
    """Without dates: none is a value of a recipe, and 2026-11-27 is a good name."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob(f"*{SUFFIX}"))


def find_recipe(given: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one of the package's. Raises UserError for none."""
    path, name = Path(given), str(given)
    if path.exists() or name not in recipe_names():
        return path
    return RECIPES / f"{name}{SUFFIX}"


def read_recipe(given: str | Path, whole: Collection[str] = ()) -> dict[str, Any]:
    """The tree of a recipe. Raises UserError, one line that begins with the file.

    With `extends`, its sections are merged into those of the recipe under it, key by key; every other value
    replaces the one below, lists and the mappings at the paths `whole` among them.
    """
    return _read(given, frozenset(whole), ())


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` has in YAML 1.2. Raises UserError, one line that begins with `where`."""
    try:
        return _yaml().load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)" with', str(error.problem))
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(
            f"{where}: line {line}: {key[1] if key else 'a key'} is given a second time; keep one"
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where}: not valid YAML: {place}{one_line(error.problem or error, None)}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {one_line(error, None)}") from None


def parse_override(item: str) -> tuple[str, Any]:
    """Path and value of `path=value`. Raises UserError."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise UserError(f"override {item!r} is not of the form path=value, as in optim.lr=0.02")
    if re.search(r"(^|\s)#", QUOTED.sub("", text)):
        raise UserError(f"override {item!r}: YAML drops what follows #; write {path}='\"{text}\"'")
    return path, parse_yaml(text, f"override {item!r}")


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


def _read(given: str | Path, whole: frozenset[str], above: tuple[Path, ...]) -> dict[str, Any]:
    path = find_recipe(given)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        files = [str(file) for file in sorted(path.parent.glob("*.y*ml"))]
        near = difflib.get_close_matches(str(path), files, n=1) or difflib.get_close_matches(
            path.stem, recipe_names(), n=3
        )
        hint = f"did you mean {format_list(near, 'or')}?" if near else "`encsearch recipes` lists ours"
        raise UserError(f"{given}: cannot read the recipe ({reason}); {hint}") from None
    tree = parse_yaml(text, str(given))
    if not isinstance(tree, dict):
        raise UserError(f"{given}: a recipe is a mapping of sections, but this is {type(tree).__name__}")
    below = tree.pop(EXTENDS, None)
    if below is None:
        return tree
    if not isinstance(below, str):
        raise UserError(f"{given}: {EXTENDS} is the path or name of one recipe, but got {below!r}")
    beside = path.parent / below
    base = beside if beside.exists() else find_recipe(below)
    chain = (*above, path.resolve())
    if base.resolve() in chain:
        raise UserError(f"{given}: {EXTENDS} {below}, which extends this recipe")
    merged: dict[str, Any] = _merge(_read(base, whole, chain), tree, whole)
    return merged


def _merge(below: Any, above: Any, whole: frozenset[str], path: str = "") -> Any:
    if path in whole or not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {
        key: _merge(below.get(key), value, whole, f"{path}.{key}" if path else str(key))
        for key, value in above.items()
    }
