"""Any folder of images and masks, or an archive of one.

Without patterns these layouts are looked for, in this order, with any suffix:

    images/{split}/{id}    masks/{split}/{id}
    {split}/images/{id}    {split}/masks/{id}
    images/{id}            masks/{id}

`{id}` is what an image and its mask have in common, folders included; `{split}` is train, val or test, or
another name that is common for one; `*` stands for anything within one name.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from encsearch.data.codec import IMAGE_SUFFIXES
from encsearch.data.importers.pairs import Pairs, PairSettings, divide, plan_pairs
from encsearch.data.importers.plan import ImportPlan, MaskFile, Pair
from encsearch.data.importers.tree import Tree
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
_WILDCARDS = {"{id}": "(?P<id>.+)", "{split}": "(?P<split>[^/]+)", "*": "[^/]*"}
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
    root = _common_folder(tree) if source.is_file() else ""
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
    """The folder, with its "/", that an archive holds everything in, "" if none."""
    first = {name.partition("/")[0] for name in tree.files}
    (only,) = first if len(first) == 1 else ("",)
    known = {"images", "masks", *SPLIT_NAMES}
    return f"{only}/" if only and only not in known and only not in tree.files else ""


def _choose_layout(tree: Tree, root: str, images: str | None, masks: str | None) -> tuple[str, str]:
    if images or masks:
        return images or LAYOUTS[-1][0], masks or LAYOUTS[-1][1]
    for layout in LAYOUTS[:-1]:
        pattern = _compile(layout[0], root)
        matches = (pattern.fullmatch(name) for name in tree.files)
        if any(match and match["split"] in SPLIT_NAMES for match in matches):
            return layout
    return LAYOUTS[-1]


def _compile(pattern: str, root: str) -> re.Pattern[str]:
    """Raises UserError unless the pattern has {id} once, and {split} once at most."""
    if pattern.count("{id}") != 1 or pattern.count("{split}") > 1:
        raise UserError(
            f"pattern {pattern!r}: needs one {{id}} and at most one {{split}}, as in images/{{split}}/{{id}}"
        )
    parts = re.split(r"(\{id\}|\{split\}|\*)", pattern)
    regex = re.escape(root) + "".join(_WILDCARDS.get(part, re.escape(part)) for part in parts)
    has_suffix = PurePosixPath(pattern).suffix.lower() in IMAGE_SUFFIXES
    return re.compile(regex if has_suffix else regex + r"\.[^./]*")


def _find_pairs(tree: Tree, root: str, patterns: tuple[str, str], on_bad: OnBad) -> Pairs:
    images, masks = _match(tree, root, patterns)
    odd = next((name for name in tree.odd if any(_compile(p, root).fullmatch(name) for p in patterns)), None)
    if odd and on_bad == "fail":
        raise UserError(f"{tree}/{odd}: {tree.odd[odd]}; remove it, or give --on-bad skip")
    shown = " and ".join(patterns)
    if not images:
        folders = sorted({name.rpartition("/")[0] or "." for name in tree.files})
        there = f"; it has files in {', '.join(folders[:_SHOWN_FOLDERS])}" if folders else ""
        raise UserError(
            f"{tree}: no files like {patterns[0]} that end in {', '.join(IMAGE_SUFFIXES)}{there}; "
            "give --images and --masks"
        )
    without_mask = sorted(images.keys() - masks.keys())
    without_image = sorted(masks.keys() - images.keys())
    if on_bad == "fail":
        for kind, own, pattern, lone, files in (
            ("mask", "image", patterns[1], without_mask, images),
            ("image", "mask", patterns[0], without_image, masks),
        ):
            if lone:
                split, sample_id = lone[0]
                wanted = pattern.replace("{id}", sample_id).replace("{split}", split)
                count = f"{format_count(len(lone))} of {format_count(len(files), own)} have none"
                first = tree.files[files[lone[0]]]
                raise UserError(f"{first}: no {kind} {wanted} ({count}); add it, or give --on-bad skip")
    tree.left_out.add("an image without a mask", [images[key] for key in without_mask])
    tree.left_out.add("a mask without an image", [masks[key] for key in without_image])
    splits: dict[str, list[Pair]] = {}
    for split, sample_id in sorted(images.keys() & masks.keys()):
        image, mask = (tree.files[files[split, sample_id]] for files in (images, masks))
        splits.setdefault(split, []).append(Pair(sample_id, image, MaskFile(mask)))
    if not splits:
        raise UserError(f"{tree}: no image has a mask, by the patterns {shown}")
    ordered = {name: splits[name] for name in ("", *SPLIT_NAMES) if name in splits}
    line = f"{format_count(sum(map(len, splits.values())), 'pair')} of {shown}"
    return Pairs(tree.sources[0].resolve().name.partition(".")[0], ordered, tree.left_out, (line,))


def _match(
    tree: Tree, root: str, patterns: Sequence[str]
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """(split, id) -> name, of the images and of the masks; what is neither is left out, with the reason."""
    image_pattern, mask_pattern = (_compile(pattern, root) for pattern in patterns)
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], str] = {}
    for name in tree.names():
        path = PurePosixPath(name)
        mask, image = mask_pattern.fullmatch(name), image_pattern.fullmatch(name)
        match, found = (mask, masks) if mask else (image, images)
        if any(part.startswith(".") for part in path.parts):
            tree.left_out.add("hidden", [name])
        elif match is None:
            if name != f"{root}{CLASSES_FILE}":
                tree.left_out.add(f"neither {patterns[0]} nor {patterns[1]}", [name])
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            tree.left_out.add(f"its suffix is not one of {', '.join(IMAGE_SUFFIXES)}", [name])
        else:
            given = match.groupdict().get("split") or ""
            split = SPLIT_NAMES.get(given)
            if given and split is None:
                tree.left_out.add(f"{given} is not the name of a split", [name])
                continue
            key = split or "", match["id"]
            if key in found:
                other = PurePosixPath(found[key]).name
                raise UserError(f"{tree.files[name]}: {other} has the same name; rename one of them")
            found[key] = name
    return images, masks
