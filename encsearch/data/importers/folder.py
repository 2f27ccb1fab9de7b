"""Any folder of images and masks, or an archive of one.

Without patterns these layouts are looked for, in this order, with any suffix:

    images/{split}/{id}    masks/{split}/{id}
    {split}/images/{id}    {split}/masks/{id}
    images/{id}            masks/{id}

`{id}` is what an image and its mask have in common, folders included; `{split}` is train, val or test, or
another name that is common for one; `*` stands for anything within one name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from encsearch.data.codec import IMAGE_SUFFIXES
from encsearch.data.importers.pairs import Pairs, PairSettings, divide, plan_pairs
from encsearch.data.importers.plan import ImportPlan, MaskFile, Pair
from encsearch.data.importers.tree import MISSING, File, Tree
from encsearch.data.importers.write import OnBad
from encsearch.errors import UserError
from encsearch.text import format_count

LAYOUTS = (
    ("images/{split}/{id}", "masks/{split}/{id}"),
    ("{split}/images/{id}", "{split}/masks/{id}"),
    ("images/{id}", "masks/{id}"),
)
CLASSES_FILE = "classes.txt"
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_WILDCARDS = {"{id}": "(?P<id>.+)", "{split}": f"(?P<split>{'|'.join(SPLIT_NAMES)})", "*": "[^/]*"}
_ANY_SPLIT = {**_WILDCARDS, "{split}": "(?P<split>[^/]+)"}
_SHOWN_FOLDERS = 5


def plan_folder(
    source: Path,
    settings: PairSettings,
    *,
    images: str | None = None,
    masks: str | None = None,
    on_bad: OnBad = "fail",
    processes: int = 1,
    scratch: Path | None = None,
) -> ImportPlan:
    """Read a folder and decide what to write; `images` and `masks` are patterns of names below it.

    Raises UserError that names the file for what cannot be understood or, unless `on_bad` is skip, used.
    """
    tree = Tree([source], scratch)
    root = _common_folder(tree)
    if (given := images or masks) and any(map(_compile(given, "").fullmatch, tree.files)):
        root = ""  # the pattern names the common folder itself
    classes = f"{root}{CLASSES_FILE}"
    if settings.needs_classes and classes in tree.files:
        settings = settings.with_classes(tree.read_lines(classes))
    elif settings.needs_classes:
        raise UserError(
            f"{source / CLASSES_FILE}: no such file; write one class name a line, or give --classes a,b,c, "
            "--labels or --colours"
        )
    chosen = _choose_layout(tree, root, images, masks)
    pairs = _find_pairs(tree, root, chosen, on_bad)
    return plan_pairs("folder", divide(pairs, settings, on_bad), settings, on_bad=on_bad, processes=processes)


def _common_folder(tree: Tree) -> str:
    """The folder, with its "/", that a source holds everything in, "" if none."""
    first = {name.partition("/")[0] for name in tree.files if not _is_hidden(name)}
    (only,) = first if len(first) == 1 else ("",)
    known = {"images", "masks", *SPLIT_NAMES}
    return f"{only}/" if only and only not in known and only not in tree.files else ""


def _is_hidden(name: str) -> bool:
    """Also what a Mac adds to its archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _choose_layout(tree: Tree, root: str, images: str | None, masks: str | None) -> tuple[str, str]:
    if images or masks:
        return images or LAYOUTS[-1][0], masks or LAYOUTS[-1][1]
    for layout in LAYOUTS[:-1]:
        pattern = _compile(layout[0], root)
        matches = (pattern.fullmatch(name) for name in tree.files)
        if any(matches):
            return layout
    return LAYOUTS[-1]


def _compile(pattern: str, root: str, wildcards: Mapping[str, str] = _WILDCARDS) -> re.Pattern[str]:
    """Raises UserError unless the pattern has {id} once, and {split} once at most."""
    if pattern.count("{id}") != 1 or pattern.count("{split}") > 1:
        raise UserError(
            f"pattern {pattern!r}: needs one {{id}} and at most one {{split}}, as in images/{{split}}/{{id}}"
        )
    pattern = pattern.removesuffix(".*")
    parts = re.split(r"(\{id\}|\{split\}|\*)", pattern)
    regex = re.escape(root) + "".join(wildcards.get(part, re.escape(part)) for part in parts)
    has_suffix = PurePosixPath(pattern).suffix.lower() in IMAGE_SUFFIXES
    return re.compile(regex if has_suffix else regex + r"\.[^./]*")


def _find_pairs(tree: Tree, root: str, patterns: tuple[str, str], on_bad: OnBad) -> Pairs:
    images, masks = _match(tree, root, patterns)
    odd = next((name for name in tree.odd if any(_compile(p, root).fullmatch(name) for p in patterns)), None)
    if odd and on_bad == "fail":
        raise UserError(f"{tree}/{odd}: {tree.odd[odd]}; remove it, or give --on-bad skip")
    if not images:
        folders = sorted({name.rpartition("/")[0] or "." for name in tree.files})
        there = f"; it has files in {', '.join(folders[:_SHOWN_FOLDERS])}" if folders else ""
        raise UserError(
            f"{tree}: no files like {patterns[0]} that end in {', '.join(IMAGE_SUFFIXES)}{there}; "
            "give --images and --masks"
        )
    lone = [
        (kind, files[key], pattern)
        for kind, pattern, files, others in (
            ("mask", patterns[1], images, masks),
            ("image", patterns[0], masks, images),
        )
        for key in sorted(files.keys() - others.keys())
    ]
    if lone and on_bad == "fail":
        kind, name, pattern = lone[0]
        count = sum(one == kind for one, _, _ in lone)
        files = images if kind == "mask" else masks
        of = format_count(len(files), "image" if kind == "mask" else "mask")
        way_out = "give --images and --masks" if count == len(files) else "add it, or give --on-bad skip"
        counts = f"{format_count(count)} of {of} without"
        raise UserError(f"{tree.files[name]}: no {kind} {pattern} for it ({counts}); {way_out}")
    splits: dict[str, list[Pair]] = {}
    for key in sorted(images.keys() | masks.keys()):
        split, sample_id = key
        # With --on-bad skip a file without its partner is a pair that cannot be read, and is listed as one.
        image, mask = (
            tree.files.get(files.get(key, "")) or File(Path(f"{kind} of {sample_id}"), MISSING, 0)
            for kind, files in (("image", images), ("mask", masks))
        )
        pair = Pair(sample_id, image, MaskFile(mask), name=images.get(key, sample_id))
        splits.setdefault(split, []).append(pair)
    ordered = {name: splits[name] for name in ("", *SPLIT_NAMES) if name in splits}
    line = f"{format_count(sum(map(len, splits.values())), 'pair')} of {' and '.join(patterns)}"
    return Pairs(tree.sources[0].resolve().name.partition(".")[0], ordered, tree.left_out, (line,))


def _match(
    tree: Tree, root: str, patterns: Sequence[str]
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """(split, id) -> name, of the images and of the masks; what is neither is left out, with the reason."""
    image_pattern, mask_pattern = (_compile(pattern, root) for pattern in patterns)
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], str] = {}
    loose = [_compile(pattern, root, _ANY_SPLIT) for pattern in patterns]
    for name in tree.names():
        path = PurePosixPath(name)
        mask, image = mask_pattern.fullmatch(name), image_pattern.fullmatch(name)
        # If both fit, as {id}.png and {id}_mask.png do, the one that says more.
        is_mask = mask and (not image or len(mask["id"]) <= len(image["id"]))
        match, found = (mask, masks) if is_mask else (image, images)
        if _is_hidden(name):
            tree.left_out.add("hidden", [name])
        elif match is None:
            other = next(filter(None, (each.fullmatch(name) for each in loose)), None)
            if other:
                tree.left_out.add(f"{other['split']} is not the name of a split", [name])
            elif name != f"{root}{CLASSES_FILE}":
                tree.left_out.add(f"neither {patterns[0]} nor {patterns[1]}", [name])
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            tree.left_out.add(f"its suffix is not one of {', '.join(IMAGE_SUFFIXES)}", [name])
        else:
            key = SPLIT_NAMES.get(match.groupdict().get("split") or "", ""), match["id"]
            if key in found:
                twin = PurePosixPath(found[key]).name
                raise UserError(f"{tree.files[name]}: {twin} has the same name; rename one of them")
            found[key] = name
    return images, masks
