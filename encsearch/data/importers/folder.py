"""Any data set of images and masks that have the same names.

    source/
      classes.txt                    one name a line, in the order of the mask values
      images/0001.jpg                PNG or JPEG; stored as they are when they are RGB
      masks/0001.png                 8-bit grey or palette PNG: class indices, 255 = ignore

or, with splits, images/train/, images/val/ (and test/) and the same in masks/.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample, default_palette
from encsearch.data.importers.pairs import Pair, find_pairs, read_pair
from encsearch.data.manifest import Manifest
from encsearch.data.store import write_store
from encsearch.errors import UserError
from encsearch.text import format_param

_SPLITS = ("train", "val", "test")


def import_folder(
    source: str | Path,
    store: str | Path,
    *,
    classes: Sequence[str] | None = None,
    val_fraction: float = 0.2,
) -> Manifest:
    """Write a store of the pairs in a folder; `classes` None reads them from classes.txt.

    Without split folders a sample's name decides whether it is in train or val, so it stays there when others
    are added. Raises UserError that names the file for anything that cannot be used.
    """
    root = Path(source)
    names = tuple(classes) if classes is not None else _read_classes(root / "classes.txt")
    info = DatasetInfo(root.resolve().name, names, default_palette(len(names)))
    pairs = _find_splits(root, val_fraction)
    return write_store(store, info, {name: _read_samples(found, len(names)) for name, found in pairs.items()})


def _find_splits(root: Path, val_fraction: float) -> dict[str, list[Pair]]:
    images, masks = root / "images", root / "masks"
    given = [name for name in _SPLITS if (images / name).is_dir() or (masks / name).is_dir()]
    if given:
        return {name: find_pairs(images / name, masks / name) for name in given}
    return _divide(find_pairs(images, masks), val_fraction)


def _divide(pairs: list[Pair], val_fraction: float) -> dict[str, list[Pair]]:
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={format_param(val_fraction)} must be between 0 and 1, as in 0.2")
    splits: dict[str, list[Pair]] = {"train": [], "val": []}
    for pair in pairs:
        splits["val" if _hash_to_position(pair.id) < val_fraction else "train"].append(pair)
    for name, found in splits.items():
        if not found:
            raise UserError(
                f"val_fraction={format_param(val_fraction)} of {len(pairs)} images leaves {name} empty; "
                "change it, or make train/ and val/ folders"
            )
    return splits


def _hash_to_position(sample_id: str) -> float:
    """A pseudo-random number in 0..1, always the same for the same name."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big") / 2**64


def _read_classes(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file; write one class name a line, or give --classes a,b,c"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _read_samples(pairs: list[Pair], num_classes: int) -> Iterator[EncodedSample]:
    for pair in pairs:
        image, mask = read_pair(pair, num_classes)
        yield EncodedSample(pair.id, image, encode_png(mask), group="")
