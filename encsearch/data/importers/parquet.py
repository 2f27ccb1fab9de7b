"""Parquet files with an image and a mask column, as Hugging Face's `datasets` writes them.

    source/train-00000-of-00004.parquet      (or data/train-..., or train/0000.parquet)

With other names the rows are divided.

A column holds the bytes of a picture, or a struct with them in `bytes`.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from encsearch.data.importers.folder import SPLIT_NAMES
from encsearch.data.importers.pairs import Pairs, PairSettings, divide, plan_pairs
from encsearch.data.importers.plan import ImportPlan, MaskFile, Pair
from encsearch.data.importers.tree import File, ParquetCell, Tree
from encsearch.data.importers.write import OnBad
from encsearch.errors import UserError, one_line
from encsearch.text import format_count, format_list

IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg")
MASK_COLUMNS = ("annotation", "label", "mask", "labels", "semantic_segmentation", "segmentation_mask", "png")
_ID_COLUMNS = ("id", "image_id", "file_name", "filename")


def plan_parquet(
    source: Path,
    settings: PairSettings,
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    on_bad: OnBad = "fail",
    processes: int = 1,
    scratch: Path | None = None,
) -> ImportPlan:
    """Read the footers of the Parquet files of a folder, or of one, then all masks, and decide what to write.

    Raises UserError as `plan_folder` does, and for columns that are not there.
    """
    if settings.needs_classes:
        raise UserError(f"{source}: give the class names by --classes a,b,c, --labels or --colours")
    tree = Tree([source], scratch)
    splits: dict[str, list[Pair]] = {}
    for name in tree.names():
        if not name.endswith(".parquet"):
            tree.left_out.add("not a .parquet file", [name])
            continue
        splits.setdefault(_find_split(name), []).extend(
            _read_pairs(tree.files[name], name, image_column, mask_column)
        )
    if not splits:
        raise UserError(f"{source}: no .parquet files")
    count = format_count(sum(map(len, splits.values())), "row")
    pairs = Pairs(source.resolve().name.partition(".")[0], splits, tree.left_out, (count,))
    return plan_pairs(
        "parquet", divide(pairs, settings, on_bad), settings, on_bad=on_bad, processes=processes
    )


def _find_split(name: str) -> str:
    """The split that a file's name begins with, or one of its folders is called, "" if none."""
    *folders, file = name.split("/")
    match = re.match(rf"({'|'.join(SPLIT_NAMES)})(?=[-_.])", file)
    named = [match[1]] if match else [folder for folder in folders if folder in SPLIT_NAMES]
    return SPLIT_NAMES[named[-1]] if named else ""


def _read_pairs(file: File, name: str, image_column: str | None, mask_column: str | None) -> list[Pair]:
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True) as parquet:
            columns = [field.name for field in parquet.schema_arrow if _holds_files(field.type)]
            image = _choose(file, "image", image_column, columns, IMAGE_COLUMNS)
            mask = _choose(file, "mask", mask_column, columns, MASK_COLUMNS)
            named = next((column for column in _ID_COLUMNS if column in parquet.schema_arrow.names), None)
            found: list[Pair] = []
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                ids = parquet.read_row_group(group, columns=[named]).column(0).to_pylist() if named else []
                if named and len(ids) != rows:
                    raise ValueError(f"{len(ids)} of {rows} rows in row group {group}")
                size = parquet.metadata.row_group(group).total_byte_size // max(rows, 1)
                for row in range(rows):
                    sample_id = (
                        str(ids[row]) if named else f"{name.removesuffix('.parquet')}-{len(found):06d}"
                    )
                    image_cell, mask_cell = (
                        ParquetCell(file.path, size, file.stamp, group, row, column)
                        for column in (image, mask)
                    )
                    found.append(Pair(sample_id, image_cell, MaskFile(mask_cell), name=sample_id))
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a whole Parquet file ({one_line(error)})") from None
    return found


def _holds_files(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct))


def _choose(file: File, kind: str, given: str | None, columns: list[str], known: tuple[str, ...]) -> str:
    chosen = given or next((name for name in known if name in columns), None)
    if chosen is None or chosen not in columns:
        wanted = f"no column {given}" if given else f"no {kind} column"
        there = format_list(columns) or "none"
        raise UserError(f"{file}: {wanted} of picture files; there are {there}; give --{kind}-column")
    return chosen
