"""What is wrong with a recipe, in its own words: path, value and what is allowed."""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from encsearch.config.sections import Section
from encsearch.text import format_given, format_list

MAX_VALUE = 80  # characters of a value in a message
# What a place takes, by pydantic's name of the problem and its limits; others keep pydantic's words.
WORDS = {
    "literal_error": "{expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "none_required": "null",
    "dict_type": "a mapping of KEY: VALUE",
    "tuple_type": "a list, as in [A, B]",
    "list_type": "a list, as in [A, B]",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}


def describe_problem(error: ValidationError, root: type[Section], tree: Any) -> str:
    """The first problem of `tree`, which is not a `root`, in one line."""
    _, place, message = find_problem(error, root, tree)
    return f"{place}: {message}" if place else message


def find_problem(error: ValidationError, root: type[Section], tree: Any) -> tuple[str, str, str]:
    """Path of the first problem, the path as it is shown, often with its value, and what is wrong."""
    # Last what is missing: an unknown key may be what it was to be.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")
    first = problems[0]
    parts = _locate(tree, first, known := set(section_paths(root)))
    path = ".".join(map(str, parts))
    match first["type"]:
        case "extra_forbidden":
            return path, "", _describe_extra(parts, root)
        case "value_error":
            return path, path, first["msg"].removeprefix("Value error, ")
        case "missing" if first["loc"] == tuple(parts):
            return path, "", f"{path} is missing; add it to the recipe or give {path}=VALUE"
    # Each branch of a union has its own error.
    here = [problem for problem in problems if _locate(tree, problem, known) == parts]
    allowed = list(dict.fromkeys(_describe_allowed(problem, root, parts) for problem in here))
    return path, f"{path}={format_value(first['input'])}", f"must be {format_list(allowed, 'or')}"


def describe_unknown_path(path: str, known: Sequence[str]) -> str:
    """What a path that is not one of `known` may have meant."""
    section, _, leaf = path.rpartition(".")
    leaves = {other.rpartition(".")[2]: other for other in known}
    beside = [other for other in known if other.rpartition(".")[0] == section]
    by_leaf = {other.rpartition(".")[2]: other for other in beside}
    near = _close(leaf.lower(), by_leaf, 0.75)
    near = near or [other for other in known if other.rpartition(".")[2].lower() == leaf.lower()]
    near = near or _close(leaf, by_leaf, 0.5)
    near = near or _close(path, {other: other for other in known}, 0.7) or _close(leaf, leaves, 0.8)
    if near:
        return f"unknown config path {path}; did you mean {format_list(near, 'or')}?"
    if section and beside:
        names = format_list([other.rpartition(".")[2] for other in beside])
        return f"unknown config path {path}; {section} has {names}"
    return f"unknown config path {path}; `encsearch schema --paths` lists them"


def section_paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every path of a section, those of the sections in it included."""
    for name, info in section.model_fields.items():
        yield prefix + name
        if child := find_section(info.annotation):
            yield from section_paths(child, f"{prefix}{name}.")


def format_value(value: Any) -> str:
    """A value as a recipe writes it: text in quotes, true, null."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def find_section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, not one for each key; None for a value."""
    candidates = [annotation, *get_args(annotation)] if get_origin(annotation) is not dict else []
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _close(given: str, known: Mapping[str, str], cutoff: float) -> list[str]:
    return [known[name] for name in difflib.get_close_matches(given, known, n=1, cutoff=cutoff)]


def _locate(tree: Any, problem: ErrorDetails, known: Collection[str]) -> list[str | int]:
    """Where the problem is; pydantic's own place also names the branch of a union, or what is missing."""
    parts: list[str | int] = []
    for part in problem["loc"]:
        is_index = isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if is_index or (isinstance(tree, Mapping) and part in tree):
            tree = tree[part]
        elif ".".join(map(str, (*parts, part))) in known:  # missing, or put there by a short form
            tree = None
        else:
            break
        parts.append(part)
    return parts


def _describe_extra(parts: Sequence[str | int], root: type[Section]) -> str:
    path, known = ".".join(map(str, parts)), _known_beside(root, parts)
    if path in known:  # a path as one key
        section, _, leaf = path.rpartition(".")
        return f"{path} is one key; write {section}: {{{leaf}: VALUE}}, or give {path}=VALUE as an override"
    searched = ".".join(map(str, parts[2:]))
    if parts[:2] == ["search", "space"] and searched in section_paths(root):
        return f"{path}: a searched path is one key; write search: {{space: {{{searched}: ...}}}}"
    return describe_unknown_path(path, [*known, "extends"] if len(parts) == 1 else known)


def _known_beside(root: type[Section], parts: Sequence[str | int]) -> list[str]:
    """The paths that a key at `parts` may have: all, or those of the section of a key that people choose."""
    section, names = root, iter(parts[:-1])
    for name in names:
        info = section.model_fields.get(str(name))
        found = info and find_section(info.annotation)
        if info and not found:
            next(names, None)  # the chosen key
            found = next(filter(None, map(find_section, get_args(info.annotation))), None)
            if found:
                return list(section_paths(found, ".".join(map(str, parts[:-1])) + "."))
        if not found:
            break
        section = found
    return list(section_paths(root))


def _describe_allowed(problem: ErrorDetails, root: type[Section], parts: Sequence[str | int]) -> str:
    """What the place takes, as words after "must be"."""
    kind, limits, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"a whole number; write {int(value)}"
    if kind == "string_type" and isinstance(value, int | float):
        return "text; put it in quotes"
    if kind in ("model_type", "model_attributes_type"):
        prefix = ".".join(map(str, parts)) + "."
        below = [path.removeprefix(prefix) for path in _known_beside(root, [*parts, ""]) if prefix in path]
        named = format_list([name for name in below if "." not in name], "or")
        return f"a section with {named}" + ("; leave an empty one out" if value is None else "")
    if kind == "missing":
        return f"a list of {int(problem['loc'][-1]) + 1} values"
    if kind not in WORDS:
        return problem["msg"].removeprefix("Input should be ")
    if kind == "too_short" and limits.get("field_type") == "Dictionary":
        return f"a mapping of at least {limits['min_length']}"
    given = {k: format_given(v) if isinstance(v, int | float) else str(v) for k, v in limits.items()}
    return WORDS[kind].format(**given).replace("'", "")
