"""An import that is killed, interrupted or out of room leaves no process and no half of a store."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from encsearch.data.audit import check_store
from encsearch.data.manifest import read_manifest
from tests.e2e.shell import BIN, clean_environment

POLL_S, TIMEOUT_S = 0.02, 120
FREED_S = 3  # until the processes of a killed import have ended
SAMPLES, SIDE = 300, 220  # more than one process reads at once, and five shards of 8 MiB


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("import") / "source"
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\n")
    for number in range(SAMPLES):
        noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)  # which no PNG makes smaller
        Image.fromarray(noise).save(root / "images" / f"{number}.png", compress_level=0)
        mask = np.full((SIDE, SIDE), number % 2, np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def fingerprint(source: Path) -> str:
    """Of the store that nothing disturbs."""
    store = source.parent / "undisturbed"
    with Importing(source, store) as process:
        assert end(process) == 0
    return read_manifest(store).fingerprint


class Importing:
    """The command as a user runs it, the leader of a process group; all its processes end with the block."""

    def __init__(self, source: Path, store: Path, prepare: Callable[[], None] | None = None) -> None:
        self._command = [str(BIN / "encsearch"), "data", "import", "folder", str(source), str(store)]
        self._log, self._prepare = source.parent / "log", prepare

    def __enter__(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "--processes", "2"],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._prepare,
            )
        return self._process

    def __exit__(self, *error: object) -> None:
        for process in tree(self._process):
            process.kill()
        self._process.wait()


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        leader = psutil.Process(process.pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[bytes]) -> int:
    return process.wait(TIMEOUT_S)


def wait_until(process: subprocess.Popen[bytes], is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert process.poll() is None, f"it ended with {process.returncode} before"
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def moments(process: subprocess.Popen[bytes], store: Path) -> Iterator[Callable[[], bool]]:
    """Its processes begin to read; they have written a shard; they have written three."""
    notes = store.with_name(f".{store.name}.import") / ".parts"
    yield lambda: len(tree(process)) >= 4  # itself, two, and the one that watches over their semaphores
    yield lambda: any(notes.glob("*.json"))
    yield lambda: len(list(notes.glob("*.json"))) >= 3


def are_gone(processes: list[psutil.Process]) -> bool:
    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + FREED_S
    while any(map(lives, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def test_killed_at_any_moment_it_ends_as_without_the_kills(source: Path, fingerprint: str) -> None:
    store = source.parent / "killed"
    chance = random.Random()
    for number in range(3):
        with Importing(source, store) as process:
            wait_until(process, list(moments(process, store))[number])
            time.sleep(chance.uniform(0, 0.3))
            processes = tree(process)
            process.kill()
            assert end(process) == -signal.SIGKILL
            assert are_gone(processes[1:]), "a process outlived the import"
        assert not store.exists()
    notes = list((source.parent / ".killed.import" / ".parts").glob("*.json"))
    kept = {file.stem: (source.parent / ".killed.import" / file.stem).stat().st_mtime_ns for file in notes}
    assert len(kept) >= 3
    with Importing(source, store) as process:
        assert end(process) == 0, (source.parent / "log").read_text()

    assert read_manifest(store).fingerprint == fingerprint
    assert check_store(store).problems == ()
    assert {name: (store / name).stat().st_mtime_ns for name in kept} == kept  # they were taken over
    shards = [shard for split in read_manifest(store).splits.values() for shard in split.shards]
    assert sorted(file.name for file in (store / ".cache").iterdir()) == sorted(
        f"{shard.sha256}.arrow" for shard in shards
    )


@pytest.mark.parametrize("moment", [0, 1])
def test_interrupted_it_says_one_word(moment: int, source: Path) -> None:
    """Ctrl-C reaches the whole process group."""
    store = source.parent / f"interrupted{moment}"
    with Importing(source, store, heed_interrupts) as process:
        wait_until(process, list(moments(process, store))[moment])
        processes = tree(process)
        os.killpg(process.pid, signal.SIGINT)
        assert end(process) == 130
        assert are_gone(processes)
    said = (source.parent / "log").read_text()
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert "Error" not in said
    assert not store.exists()


def heed_interrupts() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and so may have done with these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))


@pytest.mark.parametrize("kind", ["limit of a file", "full disk"])
def test_out_of_room_it_leaves_nothing(kind: str, source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    is_mounted = kind == "full disk"
    if is_mounted:
        mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]
        if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("no right to mount a small disk")
    try:
        with Importing(source, disk / "store", None if is_mounted else limit_files) as process:
            code = end(process)
        lines = (source.parent / "log").read_text().splitlines()
        assert code == 2, lines
        errors = [line for line in lines if line.startswith("error: ")]
        assert errors == lines[-1:], lines
        assert ("No space left" if is_mounted else "File too large") in errors[0]
        assert list(disk.iterdir()) == []
    finally:
        if is_mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(disk, ignore_errors=True)
