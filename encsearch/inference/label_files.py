"""Label maps of image files: find the images, place the results, and write two files for each."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encsearch.data.codec import IMAGE_SUFFIXES
from encsearch.data.datasets import DatasetInfo
from encsearch.data.pictures import overlay
from encsearch.errors import UserError
from encsearch.files import beside
from encsearch.inference.predictor import Prediction, Predictor, read_image

OVERLAY = ".overlay.png"


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its two results: the label map, and the image overlaid with its classes' colours."""

    image: Path
    labels: Path

    @property
    def overlay(self) -> Path:
        return self.labels.with_name(self.labels.stem + OVERLAY)


@dataclass(frozen=True)
class Labels:
    """The classes in a file's label map, and the presence of all classes as in `Prediction.presence`."""

    file: LabelledFile
    classes: tuple[str, ...]
    presence: dict[str, float]


def find_images(paths: Sequence[Path], out: Path) -> tuple[list[LabelledFile], list[str]]:
    """Every image in files and folders once, with its results below `out`; and what was left out, and why.

    Raises UserError if one does not exist, or a result would overwrite another file.
    """
    left_out: list[str] = []
    files = [
        LabelledFile(image, out / image.relative_to(folder).with_suffix(".png"))
        for path in paths
        for folder, image in _images(path, out, left_out)
    ]
    taken = {file.image.resolve(): file.image for file in files}
    for file in files:
        for result in (file.labels, file.overlay):
            other = taken.setdefault(result.resolve(), result)
            if other is not result:
                raise UserError(
                    f"{file.image}: its result {result} would overwrite {other}; choose another --out, and "
                    "predict images with the same name one by one"
                )
    return files, left_out


def find_damaged(files: Sequence[LabelledFile], skip_bad: bool) -> dict[Path, str]:
    """The images that cannot be read, with the reason; all are decoded before anything is written.

    Raises UserError for a damaged image unless `skip_bad`, and if all are damaged.
    """
    damaged: dict[Path, str] = {}
    for file in files:
        try:
            read_image(file.image)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}, or leave such images out with --skip-bad") from None
            damaged[file.image] = str(error)
    if len(damaged) == len(files):
        raise UserError(
            f"none of the {len(files)} images can be read; the first: {next(iter(damaged.values()))}"
        )
    return damaged


def write_labels(
    predictor: Predictor, files: Sequence[LabelledFile], *, as_ids: bool = False
) -> Iterator[Labels]:
    """Segment the files and write their results, in order; each is yielded once it is written.

    A label map is a palette PNG of class numbers or, with `as_ids`, of the data set's own ids, 16-bit grey
    where an id is over 255.
    """
    waiting: deque[tuple[LabelledFile, NDArray[np.uint8]]] = deque()  # read, and not yet segmented

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for file in files:
            pixels = read_image(file.image)
            waiting.append((file, pixels))
            yield pixels

    for found in predictor.segment(pictures()):
        file, pixels = waiting.popleft()
        yield _write(file, pixels, found, predictor, as_ids=as_ids)


def draw_label_map(labels: NDArray[np.uint8], info: DatasetInfo, *, as_ids: bool = False) -> Image.Image:
    """The label map (H, W) as a picture; see `write_labels`."""
    ids = np.array(info.ids if as_ids and info.ids else range(len(info.classes)), dtype=np.uint16)
    if ids.max() > 255:
        return Image.fromarray(ids[labels])
    colours = np.zeros((256, 3), np.uint8)
    colours[ids] = info.palette
    picture = Image.fromarray(ids[labels].astype(np.uint8))
    picture.putpalette(colours.tobytes())
    return picture


def _images(path: Path, out: Path, left_out: list[str]) -> list[tuple[Path, Path]]:
    """(folder, file) of one image, or of all images below a folder, without earlier results."""
    if not path.exists():
        raise UserError(f"{path}: no such image or folder of images")
    if not path.is_dir():
        return [(path.parent, path)]
    is_inside = path.resolve() in out.resolve().parents
    found = []
    for file in sorted(path.rglob("*")):
        if file.is_dir() or (is_inside and out.resolve() in file.resolve().parents):
            continue
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            left_out.append(f"{file}: its suffix is not one of {', '.join(IMAGE_SUFFIXES)}")
        elif file.name.endswith(OVERLAY):
            left_out.append(f"{file}: named as an overlay that an earlier prediction wrote")
        elif not file.is_file():
            left_out.append(f"{file}: not a regular file")
        else:
            found.append((path, file))
    if not found:
        raise UserError(f"{path}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _write(
    file: LabelledFile, pixels: NDArray[np.uint8], found: Prediction, predictor: Predictor, *, as_ids: bool
) -> Labels:
    palette = np.array(predictor.info.palette, dtype=np.uint8)
    _make_folder(file.labels.parent)
    _save(draw_label_map(found.labels, predictor.info, as_ids=as_ids), file.labels)
    _save(Image.fromarray(overlay(pixels, found.labels, palette)), file.overlay)
    classes = tuple(predictor.info.classes[int(label)] for label in np.unique(found.labels))
    return Labels(file, classes, dict(found.presence or {}))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot make this folder ({error.strerror}); choose another --out"
        ) from None


def _save(picture: Image.Image, target: Path) -> None:
    """Write whole or not at all, and not through a link that somebody left in the folder."""
    try:
        with beside(target) as scratch:
            picture.save(scratch, "PNG")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None
