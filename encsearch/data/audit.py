"""Check that a store is sound."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.manifest import SplitManifest, StoreError
from encsearch.data.rows import StoreRow, content_line, make_row
from encsearch.data.shards import read_rows
from encsearch.data.store import Store
from encsearch.errors import UserError


@dataclass(frozen=True)
class StoreCheck:
    """What `check_store` found: `problems` make a store unfit for use, `warnings` deserve a look.

    `counts` are the readable samples of each split.
    """

    counts: Mapping[str, int]
    num_shards: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def check_store(path: str | Path) -> StoreCheck:
    """Verify every shard and every sample of a store.

    Problems: a damaged shard, a damaged image or mask, a mask value that is not a class, sizes that differ,
    columns that do not describe the sample, an id twice in a split, the same image in two splits.
    Warnings: a video or scene in two splits, the same image twice in a split, a mask without a labelled
    pixel, a class without one. Raises StoreError when the manifest itself is missing or damaged.
    """
    opened = Store(path)
    store, manifest = opened.path, opened.manifest
    findings = _Findings()
    for name, split in manifest.splits.items():
        opened.fetch(name, verify=True)
        _check_split(store, name, split, manifest.info, findings)
    absent = [name for index, name in enumerate(manifest.info.classes) if not findings.class_pixels[index]]
    findings.warnings += [f"class {name} has no pixel in any sound shard" for name in absent]
    return StoreCheck(
        counts={name: findings.samples[name] for name in manifest.splits},
        num_shards=sum(len(split.shards) for split in manifest.splits.values()),
        problems=tuple(findings.problems),
        warnings=tuple(dict.fromkeys(findings.warnings)),
    )


@dataclass
class _Findings:
    """What has been found so far, over all splits."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    samples: Counter[str] = field(default_factory=Counter)
    class_pixels: Counter[int] = field(default_factory=Counter)
    split_of_group: dict[str, str] = field(default_factory=dict)
    first_with_image: dict[str, tuple[str, str]] = field(default_factory=dict)


def _check_split(
    store: Path, name: str, split: SplitManifest, info: DatasetInfo, findings: _Findings
) -> None:
    ids: set[str] = set()
    digest = hashlib.sha256()
    for row in _read_sound_rows(store, split, findings):
        where = f"{name}/{row.id}"
        findings.samples[name] += 1
        findings.class_pixels.update(dict(enumerate(row.histogram)))
        digest.update(content_line(row))
        if row.id in ids:
            findings.problems.append(f"{where}: the id is in the split twice")
        ids.add(row.id)
        _check_row(row, where, info, findings)
        _check_leaks(row, name, where, findings)
    complete = findings.samples[name] == split.num_samples
    if complete and digest.hexdigest() != split.digest:
        findings.problems.append(f"{name}: the samples do not match the fingerprint in the manifest")


def _read_sound_rows(store: Path, split: SplitManifest, findings: _Findings) -> Iterator[StoreRow]:
    for shard in split.shards:
        try:
            yield from read_rows(store, shard)
        except StoreError as error:
            findings.problems.append(str(error))


def _check_row(row: StoreRow, where: str, info: DatasetInfo, findings: _Findings) -> None:
    sample = EncodedSample(row.id, row.image, row.mask, row.group)
    try:
        if make_row(sample, len(info.classes), where) != row:
            findings.problems.append(f"{where}: its columns do not describe its image and mask")
    except UserError as error:
        findings.problems.append(str(error))
    if not any(row.histogram):
        findings.warnings.append(f"{where}: no pixel is labelled")


def _check_leaks(row: StoreRow, split: str, where: str, findings: _Findings) -> None:
    first_split, first = findings.first_with_image.setdefault(row.image_sha256, (split, where))
    if first_split != split:
        findings.problems.append(f"{where}: the same image as {first}, so one split leaks into the other")
    elif first != where:
        findings.warnings.append(f"{where}: the same image as {first}")
    other = findings.split_of_group.setdefault(row.group, split) if row.group else split
    if other != split:
        findings.warnings.append(f"group {row.group} is in {other} and {split}: its scores are optimistic")
