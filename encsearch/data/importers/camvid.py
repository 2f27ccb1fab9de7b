"""CamVid in the form of the SegNet tutorial: 480 x 360 frames, 11 classes and void.

    source/
      train/0001TP_006690.png    trainannot/0001TP_006690.png    grey, 0-10 and 11 = void
      val/                       valannot/
      test/                      testannot/                      (optional)

The val frames come from a video that train also uses, so scores on val are optimistic.
"""

from collections.abc import Iterator
from pathlib import Path

from encsearch.data.codec import encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.importers.pairs import Pair, find_pairs, read_pair
from encsearch.data.manifest import Manifest
from encsearch.data.store import write_store

CAMVID = DatasetInfo(
    name="camvid",
    classes=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
VOID = 11


def import_camvid(source: str | Path, store: str | Path) -> Manifest:
    """Write a store with the splits train, val and, where the folder has it, test.

    The group of a sample is its video, the part of the name before the first underscore. Raises UserError
    that names the file for anything that does not fit the layout above.
    """
    root = Path(source)
    names = ["train", "val"] + (["test"] if (root / "test").exists() else [])
    pairs = {name: find_pairs(root / name, root / f"{name}annot") for name in names}
    return write_store(store, CAMVID, {name: _read_samples(found) for name, found in pairs.items()})


def _read_samples(pairs: list[Pair]) -> Iterator[EncodedSample]:
    for pair in pairs:
        image, mask = read_pair(pair, len(CAMVID.classes), void=VOID)
        yield EncodedSample(pair.id, image, encode_png(mask), group=pair.id.partition("_")[0])
