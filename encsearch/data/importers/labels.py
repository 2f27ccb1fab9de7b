"""Tables of labels: what the values or colours of a data set's masks mean.

A table is a CSV file with a header, or JSON. Its columns: `value` (or `id`), or the colour as `red, green,
blue` (`r, g, b`) or `colour` (#rrggbb); `name`; and, where the rows are not one class each in order,
`train_id`, empty for what is ignored. Rows of one `train_id` are merged; `class` names them. The tables of
the public data sets are in labels/, a file a set.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encsearch.data.datasets import IGNORE, Colour, DatasetInfo, default_palette
from encsearch.data.importers.tree import regular_file
from encsearch.errors import UserError, one_line
from encsearch.text import format_count, format_list

_ALIASES = {"id": "value", "r": "red", "g": "green", "b": "blue", "color": "colour", "trainid": "train_id"}
_MAX_CODE = 2**24  # colours; values have 16 bits
_UNKNOWN = -1


@dataclass(frozen=True)
class Label:
    """A value of the masks, or a colour as 0xRRGGBB, and the class that it is; None is ignored."""

    code: int
    name: str
    class_name: str | None
    colour: Colour | None = None


@dataclass(frozen=True)
class LabelTable:
    """All values, or with `by_colour` all colours, that a data set's masks may have.

    `classes` are in the order of their train ids. `others` is what a code becomes that no label has: None
    makes it an error, IGNORE ignores it.
    """

    labels: tuple[Label, ...]
    classes: tuple[str, ...]
    by_colour: bool = False
    others: int | None = None
    others_below: int = _MAX_CODE

    @cached_property
    def lookup(self) -> NDArray[np.int16]:
        """code -> train id, 255 for ignored ones, -1 for unknown ones."""
        size = _MAX_CODE if self.by_colour else 2**16
        table = np.full(size, _UNKNOWN, np.int16)
        if self.others is not None:
            table[: self.others_below] = self.others
        for label in self.labels:
            if 0 <= label.code < size:
                table[label.code] = (
                    IGNORE if label.class_name is None else self.classes.index(label.class_name)
                )
        return table

    def translate(self, codes: NDArray[np.int32], where: str) -> NDArray[np.uint8]:
        """Codes (H, W) -> train ids (H, W) uint8, 255 = ignored. Raises UserError for one that is unknown."""
        table = self.lookup
        outside = (codes < 0) | (codes >= len(table))  # matrices and run lengths have any number
        if outside.any():
            raise UserError(f"{where}: mask value {int(codes[outside][0])} is not in 0..{len(table) - 1}")
        ids = table[codes]
        unknown = ids == _UNKNOWN
        if unknown.any():
            first, count = self.format_code(int(codes[unknown][0])), format_count(int(unknown.sum()), "pixel")
            raise UserError(f"{where}: {first} of {count} is not in the table of labels ({self.describe()})")
        return ids.astype(np.uint8)

    def format_code(self, code: int) -> str:
        return f"colour #{code:06x}" if self.by_colour else f"mask value {code}"

    def describe(self) -> str:
        """The codes of the table in words, as in "values 0..18, 255"."""
        if self.by_colour:
            return format_count(len(self.labels), "colour")
        runs: list[list[int]] = []
        for code in sorted(label.code for label in self.labels):
            if runs and code == runs[-1][1] + 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
        shown = [str(low) if low == high else f"{low}..{high}" for low, high in runs]
        return "values " + ", ".join([*shown[:6], "..."] if len(shown) > 6 else shown)

    def info(self, name: str) -> DatasetInfo:
        """Classes, their colours, and `ids`: what stands for a class in the set's own label maps."""
        first = {
            class_name: next(label for label in self.labels if label.class_name == class_name)
            for class_name in self.classes
        }
        colours = [label.colour for label in first.values()]
        whole = all(colour is not None for colour in colours)
        palette = (
            tuple(colour for colour in colours if colour) if whole else default_palette(len(self.classes))
        )
        ids = () if self.by_colour else tuple(label.code for label in first.values())
        return DatasetInfo(name, self.classes, palette, ids=() if ids == tuple(range(len(ids))) else ids)

    def ignoring(self, values: Sequence[int]) -> "LabelTable":
        """The table with these values ignored too."""
        known = {label.code for label in self.labels}
        labels = [replace(label, class_name=None) if label.code in values else label for label in self.labels]
        labels += [Label(value, "ignored", None) for value in values if value not in known]
        kept = {label.class_name for label in labels}
        return replace(
            self, labels=tuple(labels), classes=tuple(name for name in self.classes if name in kept)
        )


def class_table(classes: Sequence[str], ignored: Sequence[int] = ()) -> LabelTable:
    """Class names for the values 0, 1, ... that are not in `ignored`, and 255, which is ignored."""
    free = (value for value in range(2**16) if value not in ignored and value != IGNORE)
    labels = [Label(value, name, name) for value, name in zip(free, classes, strict=False)]
    labels += [Label(value, "ignored", None) for value in dict.fromkeys((*ignored, IGNORE))]
    return LabelTable(tuple(labels), tuple(classes))


def shipped_table(name: str) -> LabelTable:
    """The table of a public data set."""
    text = resources.files("encsearch.data.importers").joinpath("labels", f"{name}.csv").read_text("utf-8")
    return _make_table(_read_csv(text, name), name)


def read_table(path: Path, *, by_colour: bool) -> LabelTable:
    """A table that somebody wrote. Raises UserError that names the file and the row."""
    try:
        text = regular_file(path).read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows = _read_json(text, str(path)) if path.suffix.lower() == ".json" else _read_csv(text, str(path))
    table = _make_table(rows, str(path))
    if table.by_colour != by_colour:
        found, option = ("colours", "--colours") if table.by_colour else ("values", "--labels")
        raise UserError(f"{path}: a table of {found}; give it as {option}")
    return table


def _read_csv(text: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text), skipinitialspace=True)
    try:
        head = [name.strip().lower() for name in next(reader, [])]
        names = [_ALIASES.get(name, name) for name in head]
        _check_columns(names, where)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                place = f"{where}: line {reader.line_num}"
                if len(cells) != len(names):
                    raise UserError(f"{place} has {len(cells)} cells, but the header has {len(names)}")
                yield place, dict(zip(names, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: line {reader.line_num} is not CSV ({error})") from None


def _read_json(text: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """{"road": [128, 64, 128]}, {"road": 7}, or a list of objects with the columns' names."""
    try:
        values = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({one_line(error)})") from None
    if isinstance(values, dict):
        values = [
            {"name": name, "colour" if isinstance(v, list | str) else "value": v}
            for name, v in values.items()
        ]
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise UserError(f'{where}: give {{"name": [red, green, blue], ...}} or a list of objects')
    for number, row in enumerate(values):
        named = {_ALIASES.get(key.lower(), key.lower()): value for key, value in row.items()}
        _check_columns([_ALIASES.get(key.lower(), key.lower()) for key in row], f"{where}: entry {number}")
        yield f"{where}: entry {number}", named


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Of two equal keys Python takes the last without a word."""
    _check_columns([key for key, _ in pairs], where)
    return dict(pairs)


def _check_columns(names: Sequence[str], where: str) -> None:
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{where}: {double!r} is there twice; keep one")


def _make_table(rows: Iterator[tuple[str, Mapping[str, Any]]], where: str) -> LabelTable:
    labels: list[Label] = []
    class_of: dict[int, str] = {}
    by_colour = None
    places: dict[int, str] = {}
    for place, row in rows:
        colour = _parse_colour(row, place)
        has_value = row.get("value") not in (None, "")
        if by_colour is None:
            by_colour = not has_value
        if has_value == by_colour:
            raise UserError(f"{place}: some rows have a value and some have none; give all of them one")
        if by_colour and colour is None:
            raise UserError(
                f"{place}: needs a value, or a colour as red, green, blue or #rrggbb; the columns are "
                f"{format_list([repr(name) for name in row])}"
            )
        code = (
            _pack(colour)
            if by_colour and colour
            else _parse_int(row.get("value"), "value", place, 2**16 - 1, low=-1)  # -1: what is never drawn
        )
        name = str(row.get("name") or "").strip()
        if not name or not name.isprintable():
            raise UserError(f"{place}: name {name!r} is empty or cannot be printed")
        if code in places:
            raise UserError(f"{place}: the same value or colour as {places[code]}")
        places[code] = place.rpartition(": ")[2]
        train_id = _train_id(row, place, len(class_of))
        class_name = None
        if train_id is not None:
            class_name = class_of.setdefault(train_id, str(row.get("class") or "").strip() or name)
        labels.append(Label(code, name, class_name, colour))
    if sorted(class_of) != list(range(len(class_of))) or not class_of:
        found = format_list([str(number) for number in sorted(class_of)[:8]])
        raise UserError(f"{where}: train_id must be 0, 1, 2, ... without gaps, but has {found or 'none'}")
    classes = tuple(class_of[number] for number in range(len(class_of)))
    if len(set(classes)) != len(classes):
        double = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{where}: class {double!r} has two train ids; class names must differ")
    return LabelTable(tuple(labels), classes, by_colour=bool(by_colour))


def _train_id(row: Mapping[str, Any], place: str, next_free: int) -> int | None:
    if "train_id" not in row:
        return next_free
    given = row["train_id"]
    if given is None or str(given).strip().lower() in {"", "ignore", str(IGNORE), "-1"}:
        return None
    return _parse_int(given, "train_id", place, IGNORE - 1)


def _parse_colour(row: Mapping[str, Any], place: str) -> Colour | None:
    given = row.get("colour")
    if isinstance(given, str) and given:
        digits = re.fullmatch("#?([0-9a-fA-F]{6})", given)
        if not digits:
            raise UserError(f"{place}: colour {given!r} is not of the form #rrggbb")
        return tuple(bytes.fromhex(digits[1]))  # type: ignore[return-value]
    channels = given if given else [row.get(name) for name in ("red", "green", "blue")]
    if not isinstance(channels, list):
        raise UserError(f"{place}: colour {channels!r} is neither #rrggbb nor [red, green, blue]")
    if all(channel in (None, "") for channel in channels):
        return None
    if len(channels) != 3:
        raise UserError(
            f"{place}: a colour has red, green and blue, but this one {format_count(len(channels), 'part')}"
        )
    red, green, blue = (_parse_int(channel, "a colour's part", place, 255) for channel in channels)
    return red, green, blue


def _parse_int(given: Any, what: str, place: str, high: int, low: int = 0) -> int:
    # Not int() alone, which takes 1_0 for ten and the digits of all scripts.
    if not isinstance(given, int | str) or not re.fullmatch("-?[0-9]{1,9}", str(given)[:20].strip()):
        raise UserError(f"{place}: {what} {one_line(repr(given), 40)} is not a whole number of 0..{high}")
    number = int(given)
    if not low <= number <= high:
        raise UserError(f"{place}: {what} {number} is not in 0..{high}")
    return number


def _pack(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
