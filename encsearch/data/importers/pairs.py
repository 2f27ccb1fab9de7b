"""Pairs of images and masks whose labels and splits people choose: look into them, and plan their import."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from encsearch.data.datasets import IGNORE
from encsearch.data.importers.labels import Label, LabelTable, class_table, read_table
from encsearch.data.importers.plan import ImportPlan, MaskFile, Pair
from encsearch.data.importers.scan import Scan, scan
from encsearch.data.importers.tree import LeftOut, read_lines, regular_file
from encsearch.data.importers.write import OnBad
from encsearch.errors import UserError
from encsearch.text import format_count, format_list, format_param, format_share

_SHOWN = 12  # values, forms or groups in one line
_FRAMES = 3  # names that differ in their number alone, from which on they look like frames of a video
_FRAME_WORDS = re.compile("frame|video|vid|clip|seq", re.IGNORECASE)


@dataclass(frozen=True)
class PairSettings:
    """What masks mean, and which pairs are in which split.

    `classes` are the names of the values in order; `labels` or `colours` is a table instead. `ignore` are
    values that are ignored besides 255. `split_lists` are split -> a file of names; without it and without
    split folders the hash of a name, or of what `group`, a regular expression, finds in it, decides by the
    fractions. Raises UserError for options that contradict each other.
    """

    classes: tuple[str, ...] | None = None
    labels: Path | None = None
    colours: Path | None = None
    ignore: tuple[int, ...] = ()
    split_lists: Mapping[str, Path] = field(default_factory=dict)
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    group: str | None = None

    def __post_init__(self) -> None:
        tables = {"--classes": self.classes, "--labels": self.labels, "--colours": self.colours}
        given = [option for option, value in tables.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"give one of {format_list(given, 'or')}; they contradict each other")
        if self.colours and self.ignore:
            raise UserError("--ignore is for values; in a table of colours leave train_id empty")

    @property
    def needs_classes(self) -> bool:
        return self.classes is None and self.labels is None and self.colours is None

    def with_classes(self, classes: Sequence[str]) -> "PairSettings":
        return replace(self, classes=tuple(classes))


@dataclass(frozen=True)
class Pairs:
    """The pairs of a source by split; "" is still to be divided. `lines` say how they were found."""

    name: str
    splits: Mapping[str, Sequence[Pair]]
    left_out: LeftOut
    lines: tuple[str, ...] = ()


def divide(pairs: Pairs, settings: PairSettings, on_bad: OnBad) -> Pairs:
    """Give every pair its group and split.

    Raises UserError for a group that a name does not have, a listed name that is no pair, fractions outside
    0..1, and a split that stays empty.
    """
    grouped = {
        name: [replace(pair, group=_find_group(pair.id, settings.group)) for pair in all_pairs]
        for name, all_pairs in pairs.splits.items()
    }
    all_pairs = [pair for found in grouped.values() for pair in found]
    if settings.split_lists:
        splits = _divide_by_lists(grouped, settings.split_lists, pairs.left_out, on_bad)
        how = "by lists"
    elif "" in grouped:
        if len(grouped) > 1:
            raise UserError(f"{pairs.name}: some pairs are in split folders and some are not; move them")
        splits = _divide_by_hash(all_pairs, settings)
        how = "by the hash of the " + ("group" if settings.group else "name")
        if not settings.group and (warning := _look_like_frames(all_pairs)):
            how += f"; warning: {warning}"
    else:
        splits, how = grouped, "by folders"
    counts = ", ".join(f"{name} {format_count(len(found))}" for name, found in splits.items())
    lines = [*pairs.lines, f"splits: {counts}, {how}"]
    lines += [f"warning: there is no {name} split" for name in ("train", "val") if not splits.get(name)]
    if settings.group:
        lines.append(_describe_groups(splits))
    return Pairs(pairs.name, splits, pairs.left_out, tuple(lines))


def plan_pairs(
    importer: str, pairs: Pairs, settings: PairSettings, *, on_bad: OnBad = "fail", processes: int = 1
) -> ImportPlan:
    """Read all masks, and decide what their values or colours mean.

    Raises UserError for a table that does not fit and, unless `on_bad` is skip, for a pair that is of no use.
    """
    splits = pairs.splits
    if settings.colours:
        splits = {name: [_with_colours(pair) for pair in all_pairs] for name, all_pairs in splits.items()}
    all_pairs = [pair for found in splits.values() for pair in found]
    found = scan(all_pairs, processes)
    if found.bad and on_bad == "fail":
        first = found.bad[min(found.bad)]
        raise UserError(f"{first}{_more_like_it(len(found.bad), len(all_pairs))}")
    labels, about = _choose_labels(settings, found)
    labels.info(pairs.name)  # refuses names that cannot be, before their values are looked at
    _check_known(labels, found, len(all_pairs), on_bad)
    lines = [*pairs.lines, *_describe(found, labels), *about]
    if found.bad:
        lines.append(f"{format_count(len(found.bad), 'pair')} cannot be used and will be skipped")
    return ImportPlan(importer, pairs.name, labels, splits, pairs.left_out, lines=tuple(lines))


def _find_group(sample_id: str, pattern: str | None) -> str:
    if pattern is None:
        return ""
    try:
        match = re.search(pattern, sample_id)
    except re.error as error:
        raise UserError(f"--group {pattern}: not a regular expression ({error})") from None
    group = match and (match[1] if match.re.groups else match[0])
    if not group:
        raise UserError(f"--group {pattern}: not found in the name {sample_id}; every name needs a group")
    return group


def _divide_by_lists(
    grouped: Mapping[str, Sequence[Pair]], lists: Mapping[str, Path], left_out: LeftOut, on_bad: OnBad
) -> dict[str, list[Pair]]:
    """A line of a list is a name, with or without folders and suffix; what follows a space may be a mask."""
    all_pairs: list[Pair] = []
    named: dict[str, list[int]] = {}  # each form of a name -> numbers of pairs
    for folder, pairs in grouped.items():
        for pair in pairs:
            for form in {pair.id, f"{folder}/{pair.id}", pair.name, *_forms(pair.id), *_forms(pair.name)}:
                named.setdefault(form, []).append(len(all_pairs))
            all_pairs.append(pair)
    splits: dict[str, list[Pair]] = {}
    split_of: dict[int, str] = {}
    for split, path in lists.items():
        splits[split] = []
        for line in read_lines(regular_file(path)):
            forms = (form for text in (line, line.split()[0]) for form in (text, *_forms(text)))
            numbers = next((named[form] for form in forms if form in named), [])
            exact = [number for number in numbers if all_pairs[number].id == line]
            numbers = exact if len(exact) == 1 else numbers
            if len(numbers) > 1:
                both = format_list([all_pairs[number].name for number in numbers[:2]])
                raise UserError(f"{path}: {line} can be {both}; write the name with its folder")
            if not numbers:
                if on_bad == "fail":
                    raise UserError(
                        f"{path}: {line} is not the name of a pair; correct it, or give --on-bad skip"
                    )
                left_out.add(f"in the list of {split}, but no pair has the name", [line])
                continue
            (number,) = numbers
            if number in split_of:
                raise UserError(
                    f"{path}: {line} is in the list of {split_of[number]} too; take it out of one"
                )
            split_of[number] = split
            splits[split].append(all_pairs[number])
    left_out.add(
        "a pair in no list", [p.name for number, p in enumerate(all_pairs) if number not in split_of]
    )
    return splits


def _forms(name: str) -> tuple[str, str, str]:
    """A name without its suffix, without its folders, and without both."""
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix), path.name, path.stem


def _divide_by_hash(all_pairs: Sequence[Pair], settings: PairSettings) -> dict[str, list[Pair]]:
    for option, fraction in (("val", settings.val_fraction), ("test", settings.test_fraction)):
        if not (0 < fraction < 1 or (fraction == 0 and option == "test")):
            raise UserError(
                f"--{option}-fraction {format_param(fraction)} must be between 0 and 1, as in 0.2"
            )
    parts = {"val": settings.val_fraction, "test": settings.test_fraction}
    names = ["train", "val", "test"] if settings.test_fraction else ["train", "val"]
    splits: dict[str, list[Pair]] = {name: [] for name in names}
    for pair in all_pairs:
        position = _hash_to_position(pair.group or pair.id)
        if position < parts["val"]:
            splits["val"].append(pair)
        else:
            splits["test" if position < parts["val"] + parts["test"] else "train"].append(pair)
    for name, found in splits.items():
        if not found:
            groups = len({pair.group for pair in all_pairs})
            of = format_count(groups, "group") if settings.group else format_count(len(all_pairs), "image")
            option = "test" if name == "test" else "val"
            raise UserError(
                f"--{option}-fraction {format_param(parts[option])} of {of} leaves {name} empty; change it, "
                "or make train/ and val/ folders"
            )
    return splits


def _hash_to_position(name: str) -> float:
    """A pseudo-random number in 0..1, always the same for the same name: a sample stays in its split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _look_like_frames(all_pairs: Sequence[Pair]) -> str:
    """A warning if names differ in a number only, so that neighbours of a video may be in train and val."""
    stems: Counter[str] = Counter()
    for pair in all_pairs:
        match = re.fullmatch(r"(.*\D)\d+\D*", pair.id)
        if match:
            stems[match[1]] += 1
    several = len(stems) > 1 and stems.total() >= _FRAMES * len(stems)
    named = any(_FRAME_WORDS.search(stem) for stem in stems)
    if not (several or named) or stems.total() < len(all_pairs) / 2:
        return ""
    shown = format_list([f"{stem}..." for stem, _ in stems.most_common(3)])
    way_out = r"give --group, such as --group '^(.*\D)\d+\D*$'" if len(stems) > 1 else "give --split lists"
    return (
        f"names look like frames of {format_count(len(stems), 'video')} ({shown}), so neighbours can be in "
        f"train and val; {way_out}"
    )


def _describe_groups(splits: Mapping[str, Sequence[Pair]]) -> str:
    places: dict[str, set[str]] = {}
    for split, all_pairs in splits.items():
        for pair in all_pairs:
            places.setdefault(pair.group, set()).add(split)
    line = f"groups: {format_count(len(places))}"
    if len(places) == sum(map(len, splits.values())):
        line += "; warning: every sample is a group of its own"
    apart = [group for group, found in places.items() if len(found) > 1]
    if apart:
        line += f"; warning: {format_count(len(apart))} are in more than one split, such as {apart[0]}"
    return line


def _with_colours(pair: Pair) -> Pair:
    assert isinstance(pair.mask, MaskFile)
    return replace(pair, mask=replace(pair.mask, colours=True))


def _choose_labels(settings: PairSettings, found: Scan) -> tuple[LabelTable, list[str]]:
    """The table of labels, and lines about what was assumed."""
    if settings.colours:
        return read_table(settings.colours, by_colour=True), []
    if settings.labels:
        return read_table(settings.labels, by_colour=False).ignoring(settings.ignore), []
    names = settings.classes or ()
    values = set(found.pixels)
    if len(names) == 1 and values <= {0, IGNORE} and IGNORE in values and not settings.ignore:
        raise UserError(
            f"the masks hold 0 and {IGNORE}, of which one is {names[0]}; name both: --classes "
            f"background,{names[0]} takes {IGNORE} for {names[0]}"
        )
    if len(names) == 2 and not settings.ignore and values <= {0, IGNORE} and IGNORE in values:
        labels = tuple(Label(code, name, name) for code, name in zip((0, IGNORE), names, strict=True))
        line = f"the masks are binary: 0 is class {names[0]}, and 255 is class {names[1]}, not ignored"
        return LabelTable(labels, names), [line]
    return _with_palette(class_table(names, settings.ignore), found), []


def _with_palette(table: LabelTable, found: Scan) -> LabelTable:
    """With the colours of the masks' palette, if all have the same one and it tells the classes apart."""
    if len(found.palettes) != 1:
        return table
    (palette,) = found.palettes
    labels = [
        replace(label, colour=palette[label.code]) if label.code < len(palette) else label
        for label in table.labels
    ]
    colours = {label.colour for label in labels if label.class_name}
    return replace(table, labels=tuple(labels)) if len(colours) == len(table.classes) else table


def _check_known(labels: LabelTable, found: Scan, num_masks: int, on_bad: OnBad) -> None:
    """Raises UserError for values that are in the masks but not in the table, unless those are skipped."""
    unknown = [code for code in found.pixels if labels.lookup[code] < 0]
    if unknown and on_bad == "fail":
        code = max(unknown, key=lambda code: found.masks[code])
        shown = format_list([labels.format_code(code).split()[-1] for code in sorted(unknown)[:_SHOWN]])
        # Many colours, most of them rare, are edges that a drawing program has smoothed.
        way_out = "; save masks without anti-aliasing" if labels.by_colour and len(unknown) > _SHOWN else ""
        if labels.by_colour and not way_out:
            way_out = "; to ignore one, give it a row with an empty train_id in the table of --colours"
        raise UserError(
            f"{found.first[code]}: {labels.format_code(code)} is not a class; known are {labels.describe()}; "
            f"{format_count(found.masks[code])} of {format_count(num_masks, 'mask')} have it; "
            f"not known {'are, among others,' if len(unknown) > _SHOWN else 'are'} {shown}{way_out}"
        )


def _describe(found: Scan, labels: LabelTable) -> Iterator[str]:
    yield f"masks: {_count_all(found.forms)}"
    if found.changes:
        yield f"images: {_count_all(found.changes)}"
    if found.turned_apart:
        count = format_count(len(found.turned_apart), "pair")
        yield (
            f"warning: {count} with an EXIF orientation in the image or the mask only, such as "
            f"{found.turned_apart[0]}: each file is turned by its own; look at the sheet"
        )
    total = found.pixels.total()
    names = {
        label.code: label.name if label.class_name or label.name == "ignored" else f"{label.name} (ignored)"
        for label in labels.labels
    }
    shares = [
        f"{labels.format_code(code).split()[-1]} {names.get(code, 'unknown')} {format_share(count / total)}"
        for code, count in sorted(found.pixels.items())
    ]
    more = f" and {format_count(len(shares) - _SHOWN)} more" if len(shares) > _SHOWN else ""
    yield f"{'colours' if labels.by_colour else 'values'}: {', '.join(shares[:_SHOWN])}{more}"
    present = {label.class_name for label in labels.labels if found.pixels[label.code]}
    absent = [name for name in labels.classes if name not in present]
    if absent:
        more = f" and {format_count(len(absent) - _SHOWN)} more" if len(absent) > _SHOWN else ""
        yield f"warning: no mask has a pixel of class {', '.join(absent[:_SHOWN])}{more}"


def _count_all(counts: Counter[str]) -> str:
    return ", ".join(f"{format_count(count)} {name}" for name, count in counts.most_common(_SHOWN))


def _more_like_it(count: int, total: int) -> str:
    if count == 1:
        return "; mend it, or give --on-bad skip"
    of = format_count(total, "pair")
    return f"; {format_count(count)} of {of} cannot be used; mend them, or give --on-bad skip"
