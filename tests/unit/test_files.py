"""Files that a kill or a full disk leaves whole, lines that count once they are complete, and locks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from encsearch.errors import PreflightError, TrainingError, UserError
from encsearch.files import (
    append_line,
    beside,
    check_free,
    hold_lock,
    instead_of,
    lines_after,
    read_lines,
    remove_torn_line,
    write_whole,
)

KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from encsearch import files

os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path(sys.argv[1]), "new")
"""

HOLDS_THE_LOCK = """
import signal, sys
from pathlib import Path
from encsearch.files import hold_lock

with hold_lock(Path(sys.argv[1])) as is_held:
    print(is_held, flush=True)
    signal.pause()
"""


def test_a_kill_between_the_write_and_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_written_is_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    for write in (lambda path: write_whole(path, "text"), lambda path: append_line(path, {})):
        with pytest.raises(
            TrainingError, match=r"gone/file: cannot be written \(No such file or directory\)"
        ):
            write(tmp_path / "gone" / "file")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(TrainingError, match=r"folder: cannot be written \(Is a directory\)"):
            write(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_what_was_begun_beside_a_place_goes_when_it_is_not_finished(
    end: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")

    def begin(name: str) -> None:
        with beside(tmp_path / name) as scratch:
            if name == "file":
                scratch.write_text("half")
            else:
                scratch.mkdir()
                (scratch / "half").touch()
            raise end

    for name in ("file", "folder"):
        with pytest.raises(end):
            begin(name)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "old"


def test_two_that_make_one_file_at_once_leave_that_of_the_second(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with beside(path) as second:
        second.write_text("second")
        with beside(path) as first:
            first.write_text("first")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_an_empty_place_but_none_with_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("folder")
    place.mkdir()
    with beside(place) as scratch:
        scratch.mkdir()
        (scratch / "first").touch()
    with pytest.raises(OSError, match="not empty"), beside(place) as scratch:
        scratch.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "first"]
    with pytest.raises(UserError, match="folder: exists and is not empty; give another folder or delete it"):
        check_free(place)
    check_free(tmp_path / "none")


def fill(folder: Path, content: str, end: BaseException | None = None) -> None:
    with instead_of(folder) as scratch:
        scratch.mkdir()
        (scratch / "file").write_text(content)
        if end:
            raise end


def test_a_folder_takes_the_place_of_another_or_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a[1]"
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if source.name.endswith(".tmp"):
            raise KeyboardInterrupt
        replace(source, target)

    def state() -> list[tuple[str, str]]:
        return [(path.parent.name, path.read_text()) for path in tmp_path.glob("*/*")]

    fill(folder, "first")
    fill(folder, "second")
    assert state() == [("a[1]", "second")]
    with pytest.raises(ValueError, match="half"):
        fill(folder, "third", ValueError("half"))
    assert state() == [("a[1]", "second")]
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(folder, "third")
    assert state() == [("a[1]", "second")]
    (tmp_path / ".a[1].0123.tmp").mkdir()  # of a kill
    fill(folder, "fourth")
    assert state() == [("a[1]", "fourth")]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_lines_come_back_in_order_and_none_of_a_file_that_is_not_there(path: Path) -> None:
    assert read_lines(path) == []
    for number in range(3):
        append_line(path, {"number": number, "name": "röad"})
    assert read_lines(path) == [{"number": number, "name": "röad"} for number in range(3)]


def test_a_torn_line_does_not_count_and_the_next_one_takes_its_place(path: Path) -> None:
    for torn in (b'{"number":', b"\0\0\0\0", b'{"number":9}'):
        path.write_bytes(torn)
        append_line(path, {"number": 1})
        with open(path, "ab") as file:
            file.write(torn)
        assert read_lines(path) == [{"number": 1}]
        append_line(path, {"number": 2})
        assert read_lines(path) == [{"number": 1}, {"number": 2}]


def test_a_torn_line_is_removed_and_no_other(path: Path) -> None:
    for whole in (b"", b'{"number":1}\n'):
        for torn in (b"", b"{"):
            path.write_bytes(whole + torn)
            remove_torn_line(path)
            assert path.read_bytes() == whole


def test_reading_goes_on_where_it_ended(path: Path) -> None:
    append_line(path, {"number": 1})
    ((_, offset),) = lines_after(path)
    assert list(lines_after(path, offset)) == []
    append_line(path, {"number": 2})
    assert list(lines_after(path, offset)) == [({"number": 2}, path.stat().st_size)]


@pytest.mark.parametrize("damage", [b"\0\0\0", b"{", b"null", b"[]", b'{"name": "\xff"}', b""])
@pytest.mark.parametrize("place", [1, 2])
def test_a_damaged_line_is_named_and_nothing_is_changed(path: Path, damage: bytes, place: int) -> None:
    lines = [b'{"number":1}\n', b'{"number":2}\n']
    path.write_bytes(b"".join([*lines[:place], damage + b"\n", *lines[place:]]))
    before = path.read_bytes()
    with pytest.raises(
        PreflightError, match=rf"lines\.jsonl: line {place + 1} is damaged; restore .*, or cut"
    ):
        read_lines(path)
    rest = lines_after(path, len(lines[0]))
    with pytest.raises(
        PreflightError, match=rf"lines\.jsonl: line {place + 1} is damaged; restore the file$"
    ):
        list(rest)
    assert path.read_bytes() == before


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_dead(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    with hold_lock(path) as is_held:
        assert not is_held
    with hold_lock(path) as is_held:  # to ask takes nothing away
        assert not is_held
    started_s = time.monotonic()
    with hold_lock(path, wait_s=0.2) as is_held:
        assert not is_held
    assert time.monotonic() - started_s >= 0.2
    holder.kill()
    with hold_lock(path, wait_s=30) as is_held:
        assert is_held


def test_a_lock_goes_with_its_block_also_while_a_fork_lives_on(path: Path) -> None:
    path.write_text("kept")
    with hold_lock(path) as first, hold_lock(path) as second:
        assert (first, second) == (True, False)
        if not (child := os.fork()):
            signal.pause()
    with hold_lock(path) as again:
        assert again
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_text() == "kept"
