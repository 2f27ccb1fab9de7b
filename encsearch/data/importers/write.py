"""Write a planned import: shards in parallel processes, resumed after a kill, whole or not at all.

A shard is a slice of a split's pairs that the sizes of its files decide, so that any number of processes
writes the same shards. They lie in `.STORE.import` beside the store until all are done; a shard whose pairs
have not changed is taken over from an import that was killed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from encsearch.data.datasets import DatasetInfo
from encsearch.data.importers.labels import LabelTable
from encsearch.data.importers.plan import ImportPlan, Pair, check_plan, describe_source, read_row
from encsearch.data.importers.sheet import SHEET_FILE, read_planned, save_sheet
from encsearch.data.importers.workers import work
from encsearch.data.manifest import (
    MANIFEST_FILE,
    VERSION,
    Manifest,
    Origin,
    Shard,
    SplitManifest,
    content_fingerprint,
    manifest_json,
)
from encsearch.data.remote import check_local
from encsearch.data.rows import content_line
from encsearch.data.shards import ShardWriter, build_cache, shard_files
from encsearch.errors import TrainingError, UserError, one_line
from encsearch.files import check_free, hold_lock, sync, write_whole
from encsearch.text import format_count, format_share

OnBad = Literal["fail", "skip"]

_SMALLEST_SHARD, _LARGEST_SHARD = 8 * 2**20, 128 * 2**20  # bytes
_SHARDS = 16  # of a split at least, where they are not smaller than that
_PARTS = ".parts"


@dataclass(frozen=True)
class ImportSettings:
    """`on_bad` decides about a sample that cannot be used: end the import, or leave it out and name it.

    More than `bad_limit` of a split's samples, a share, end it in any case. With `sheet` the store gets a
    picture of four samples. `progress` gets the samples that are done and all of them after every shard.
    """

    on_bad: OnBad = "fail"
    bad_limit: float = 0.05
    processes: int = 1
    sheet: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class _Task:
    """One shard to write; `key` changes with anything that its rows depend on."""

    split: str
    file: str
    key: str
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class _Written:
    """What a task has written; `shard` is None if all of its pairs were skipped.

    `lines` are the content lines of its rows as text; `skipped` names a pair and the reason.
    """

    shard: Shard | None
    lines: tuple[str, ...]
    skipped: tuple[str, ...]


def import_store(
    store: str | Path, make_plan: Callable[[Path], ImportPlan], settings: ImportSettings | None = None
) -> Manifest:
    """Plan an import and write the store, or nothing; `make_plan` gets a folder for what it unpacks.

    Raises UserError when the store is in use, another process imports into it, or a sample cannot be used.
    What is written stays when the process is killed or interrupted, and goes after any other error.
    """
    settings = settings or ImportSettings()
    check_local(store)
    store = Path(store)
    check_free(store)
    building = store.absolute().with_name(f".{store.name}.import")
    with _locked(building):
        try:
            plan = make_plan(building / _PARTS)
            check_plan(plan)
            # If no sample can be read, the writing says why.
            if settings.sheet and (samples := read_planned(plan)):
                save_sheet(samples, plan.info, building / SHEET_FILE)
            manifest = _write(plan, building, settings)
            check_free(store)
            (building / ".lock").unlink()  # it is held until the block ends, whatever its name
            os.replace(building, store)
            sync(store.absolute().parent)
        except (UserError, TrainingError):  # TrainingError: a note could not be written
            shutil.rmtree(building, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise UserError(
                f"{store}: cannot write the store ({one_line(error)}); nothing was left behind"
            ) from error
    return manifest


def write_plan(plan: ImportPlan, store: str | Path, settings: ImportSettings | None = None) -> Manifest:
    """Write the store of a plan, or nothing; raises as `import_store` does."""
    return import_store(store, lambda scratch: plan, settings)


def _write(plan: ImportPlan, building: Path, settings: ImportSettings) -> Manifest:
    info = plan.info
    tasks = list(_divide(plan, settings.on_bad))
    notes = building / _PARTS
    notes.mkdir(exist_ok=True)
    finished = {task.file: found for task in tasks if (found := _taken_over(task, building))}
    _remove_others(building, finished)
    done, total = 0, plan.num_samples
    skipped: dict[str, list[str]] = {split: [] for split in plan.splits}
    for task, written in _run(plan, info, building, tasks, finished, settings):
        finished[task.file] = written
        done += len(task.pairs)
        skipped[task.split] += written.skipped
        count, of = len(skipped[task.split]), len(plan.splits[task.split])
        if count > settings.bad_limit * of:
            raise UserError(
                f"split {task.split}: {format_count(count)} of {format_count(of, 'sample')} cannot be used, "
                f"over the limit of {format_share(settings.bad_limit)}; the last one: {written.skipped[-1]}"
            )
        settings.progress(done, total)
    splits = {}
    for split in plan.splits:
        parts = [finished[task.file] for task in tasks if task.split == split]
        splits[split] = _join(split, parts)
    origin = Origin(
        plan.importer,
        plan.licence,
        (*plan.lines, *plan.left_out.lines()),
        tuple(f"{split}/{line}" for split, lines in skipped.items() for line in lines),
    )
    digests = {name: split.digest for name, split in splits.items()}
    manifest = Manifest(VERSION, info, content_fingerprint(info, digests), splits, origin)
    shutil.rmtree(notes)
    (building / MANIFEST_FILE).write_text(manifest_json(manifest), encoding="utf-8")
    sync(building / MANIFEST_FILE, building)
    return manifest


def _divide(plan: ImportPlan, on_bad: OnBad) -> Iterator[_Task]:
    settings = f"{VERSION} {on_bad} {plan.info.to_dict()} {plan.labels!r}"
    for split, pairs in plan.splits.items():
        sizes = [pair.image.size for pair in pairs]
        target = min(max(sum(sizes) // _SHARDS, _SMALLEST_SHARD), _LARGEST_SHARD)
        first = number = filled = 0
        for last, size in enumerate(sizes, start=1):
            filled += size
            if filled >= target or last == len(pairs):
                part = pairs[first:last]
                names = [(e.id, e.group, describe_source(e.image), describe_source(e.mask)) for e in part]
                key = hashlib.sha256(f"{settings} {names!r}".encode()).hexdigest()
                yield _Task(split, f"{split}-{number:05d}.parquet", key, part)
                first, number, filled = last, number + 1, 0


def _run(
    plan: ImportPlan,
    info: DatasetInfo,
    building: Path,
    tasks: Sequence[_Task],
    finished: dict[str, _Written],
    settings: ImportSettings,
) -> Iterator[tuple[_Task, _Written]]:
    """Every task with what it wrote, the ones that are finished first, the others as they end."""
    for task in tasks:
        if task.file in finished:
            yield task, finished[task.file]
    waiting = [task for task in tasks if task.file not in finished]
    writer = _Writer(building, info, plan.labels, settings.on_bad)
    yield from work(writer, waiting, settings.processes)


@dataclass(frozen=True)
class _Writer:
    """Writes the shard of a task, its Arrow copy, and a note of it that a resumed import reads."""

    building: Path
    info: DatasetInfo
    labels: LabelTable
    on_bad: OnBad

    def __call__(self, task: _Task) -> _Written:
        """Raises UserError for a sample that cannot be used and is not to be skipped."""
        lines: list[str] = []
        skipped: list[str] = []
        writer: ShardWriter | None = None
        try:
            for pair in task.pairs:
                try:
                    row = read_row(pair, self.labels)
                except UserError as error:
                    if self.on_bad == "fail":
                        raise
                    skipped.append(f"{pair.id}: {error}")
                    continue
                if writer is None:
                    writer = ShardWriter(self.building / task.file, self.info)
                writer.write(row)
                lines.append(content_line(row).decode())
            shard = writer.close() if writer else None
        except BaseException:
            if writer:
                writer.abort()
            raise
        if shard:
            build_cache(self.building, shard)
        written = _Written(shard, tuple(lines), tuple(skipped))
        write_whole(_note(self.building, task.file), json.dumps({"key": task.key, **asdict(written)}))
        return written


def _note(building: Path, file: str) -> Path:
    return building / _PARTS / f"{file}.json"


def _taken_over(task: _Task, building: Path) -> _Written | None:
    """What an import that was killed has written for the task, None if nothing or something else."""
    try:
        values = json.loads(_note(building, task.file).read_bytes())
        if values["key"] != task.key:
            return None
        shard = Shard(**values["shard"]) if values["shard"] else None
        if shard and (building / shard.file).stat().st_size != shard.bytes:
            return None
        return _Written(shard, tuple(values["lines"]), tuple(values["skipped"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_others(building: Path, finished: Mapping[str, _Written]) -> None:
    """Remove the shards of an import that was killed and that are not taken over, and parts of files."""
    kept = {name for written in finished.values() if written.shard for name in shard_files(written.shard)}
    for file in (*building.glob("*.parquet"), *building.glob(".cache/*")):
        if str(file.relative_to(building)) not in kept:
            file.unlink()
            _note(building, file.name).unlink(missing_ok=True)


def _join(split: str, parts: Sequence[_Written]) -> SplitManifest:
    digest = hashlib.sha256()
    for part in parts:
        for line in part.lines:
            digest.update(line.encode())
    shards = tuple(part.shard for part in parts if part.shard)
    if not shards:
        raise UserError(f"split {split} has no samples left; all of them were skipped")
    return SplitManifest(sum(shard.num_samples for shard in shards), digest.hexdigest(), shards)


@contextmanager
def _locked(building: Path) -> Iterator[None]:
    """Hold the lock of an import. Raises UserError while another process has it."""
    try:
        building.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{building.parent}: cannot be written ({error.strerror})") from None
    with hold_lock(building / ".lock") as is_held:
        if not is_held:
            raise UserError(f"{building}: another process imports into this store; wait for it or stop it")
        yield
