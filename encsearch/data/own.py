"""A data set of one's own, as a recipe names it in `data.store`: copied into a store once.

The part is called with the name of each split of the recipe, `Part(split, **args)`, and what it makes is a
`SegmentationDataset`: `info`, `fingerprint`, `len` and `[index] -> Sample`.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from encsearch.config import Config, with_values
from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample, Sample, SegmentationDataset
from encsearch.data.manifest import MANIFEST_FILE, Origin
from encsearch.data.store import write_store
from encsearch.errors import UserError, one_line
from encsearch.parts import PartName, code_from, find_code, is_part, make_part
from encsearch.text import format_count

STORES = "stores"
"""The folder beside the jobs in which the copies are."""


def with_own_store(config: Config, out: Path) -> Config:
    """The recipe with a store in place of its own data set, which is copied below `out` unless it is there.

    The copy is named by the fingerprints of the splits, so another content is another copy; its manifest says
    which code made it. Raises UserError for what does not keep to the contract.
    """
    name = config.data.store
    if not is_part(name):
        return config
    with code_from(config.code):
        origin = Origin(_describe_code(name))  # before it runs, so that it is the code that runs
        args = config.data.args.get(name, {})
        splits = {
            split: _check(make_part("dataset", name, args, split), name, split)
            for split in dict.fromkeys((config.data.train_split, config.data.val_split))
        }
        infos = [dataset.info for dataset in splits.values()]
        if any(info != infos[0] for info in infos):
            raise UserError(f"dataset {name}: its splits differ in `info`; classes must be the same")
        lines = "".join(f"{split} {dataset.fingerprint}\n" for split, dataset in splits.items())
        key = hashlib.sha256(lines.encode()).hexdigest()[:12]
        folder = out / STORES / f"{name.replace(':', '-')}-{key}"
        if not (folder / MANIFEST_FILE).is_file():
            number = sum(map(len, splits.values()))
            samples = format_count(number, "sample")
            logging.getLogger(__name__).warning("copying %s of %s to %s", samples, name, folder)
            samples_of = {split: _encode(dataset, name, split) for split, dataset in splits.items()}
            write_store(folder, infos[0], samples_of, origin=origin)
    return with_values(config, {"data.store": str(folder), "data.args": {}})


def _describe_code(name: PartName) -> str:
    code = find_code([name])
    packages = [f"{package} {version}" for package, version in sorted(code.installed.items())]
    own = [f"code SHA-256 {code.digest}"] if code.files else []
    return ", ".join([name, *own, *packages])


def _check(dataset: Any, name: PartName, split: str) -> SegmentationDataset:
    where = f"dataset {name}, split {split}"
    for needed in ("info", "fingerprint", "__len__", "__getitem__"):
        if not hasattr(dataset, needed):
            raise UserError(f"{where}: has no {needed}; it needs info, fingerprint, len and [index]")
    try:
        info, fingerprint, number = dataset.info, dataset.fingerprint, len(dataset)
    except Exception as error:
        raise UserError(f"{where}: cannot be read ({type(error).__name__}: {one_line(error)})") from None
    if not isinstance(info, DatasetInfo) or not isinstance(fingerprint, str):
        raise UserError(
            f"{where}: info must be a DatasetInfo of encsearch.data.datasets and fingerprint text, but got "
            f"{type(info).__name__} and {type(fingerprint).__name__}"
        )
    if not number:
        raise UserError(f"{where}: has 0 samples")
    first, again = (_take(dataset, 0, where) for _ in range(2))
    if not np.array_equal(first.image, again.image) or not np.array_equal(first.mask, again.mask):
        raise UserError(f"{where}: sample 0 differs when it is read again; random changes are `augment`'s")
    found: SegmentationDataset = dataset
    return found


def _encode(dataset: SegmentationDataset, name: PartName, split: str) -> Iterator[EncodedSample]:
    for index in range(len(dataset)):
        sample = _take(dataset, index, f"dataset {name}, split {split}")
        yield EncodedSample(sample.id, encode_png(sample.image), encode_png(sample.mask), "")


def _take(dataset: SegmentationDataset, index: int, where: str) -> Sample:
    try:
        sample = dataset[index]
    except Exception as error:
        raise UserError(
            f"{where}: sample {index} cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from None
    image, mask = (getattr(sample, part, None) for part in ("image", "mask"))
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)
    is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 2
    if not (is_image and is_mask):
        found = [
            f"{getattr(part, 'dtype', type(part).__name__)} {getattr(part, 'shape', '')}"
            for part in (image, mask)
        ]
        raise UserError(
            f"{where}: sample {index} must have image (H, W, 3) and mask (H, W), both uint8, but has "
            f"{' and '.join(found)}"
        )
    if not isinstance(sample.id, str) or not sample.id:
        raise UserError(f"{where}: sample {index} must have a text as its id, but has {sample.id!r}")
    return sample
