"""A job's folder: the newest checkpoint whole or not at all, and every epoch's report once."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from encsearch.reports import Report, append, distinct_reports
from encsearch.train.checkpoint_files import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    checkpoint_name,
    drop_checkpoints,
    find_best,
    find_newest,
    intact,
    write_best,
    write_newest,
)


def whole(model: bytes, optimizer: bytes = b"o") -> dict[str, bytes]:
    """Files of a checkpoint, with the one that says what they are."""
    files = {MODEL_FILE: model, OPTIMIZER_FILE: optimizer}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    content = json.dumps({"step": 1, "samples_seen": 8, "sha256": hashes})
    return {**files, "checkpoint.json": content.encode()}


def filled(model: bytes, optimizer: bytes = b"o") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, content in whole(model, optimizer).items():
            (folder / name).write_bytes(content)

    return fill


def read_newest(folder: Path) -> dict[str, bytes]:
    """The files of the newest intact checkpoint; empty without any."""
    found = next((place for place, _ in intact(folder)), None)
    return {path.name: path.read_bytes() for path in found.iterdir()} if found else {}


def test_a_damaged_one_is_passed_over_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in (1, 2, 3):
        write_newest(tmp_path, checkpoint_name(epoch), filled(model=b"%d" % epoch), keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "checkpoint-epoch00003" / MODEL_FILE).write_bytes(b"?")
    assert read_newest(tmp_path) == whole(model=b"2")
    (line,) = caplog.messages
    assert "checkpoint-epoch00003/model.safetensors: damaged, its SHA-256 is not the one" in line
    (tmp_path / "checkpoint-epoch00002" / "checkpoint.json").unlink()
    assert read_newest(tmp_path) == {}
    write_best(tmp_path, filled(model=b"best"))
    assert read_newest(tmp_path) == whole(model=b"best")


def test_the_newest_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    assert read_newest(tmp_path) == {}
    for epoch in (9, 10):
        write_newest(tmp_path, checkpoint_name(epoch), filled(model=b"%d" % epoch, optimizer=b"o"))

    assert read_newest(tmp_path) == whole(model=b"10", optimizer=b"o")
    assert len(list(tmp_path.iterdir())) == 1
    write_newest(tmp_path, checkpoint_name(10), filled(model=b"again"))
    assert read_newest(tmp_path) == whole(model=b"again")


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_newest(tmp_path, checkpoint_name(1), filled(model=b"whole"))

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_newest(tmp_path, checkpoint_name(2), filled(model=b"half"))

    assert read_newest(tmp_path) == whole(model=b"whole")
    (tmp_path / ".checkpoint-epoch00002.0123.tmp").mkdir()  # of a kill that nothing could clean up after
    write_newest(tmp_path, checkpoint_name(2), filled(model=b"second"))
    assert read_newest(tmp_path) == whole(model=b"second")
    assert len(list(tmp_path.iterdir())) == 1
    drop_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert find_newest(tmp_path) is None


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_best_is_replaced_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    write_best(tmp_path, filled(model=b"old"))
    replace, done = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(done) == renames:
            os._exit(9)
        done.append(target)
        replace(source, target)

    child = os.fork()
    if not child:
        monkeypatch.setattr("os.replace", killed)
        write_best(tmp_path, filled(model=b"new"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert find_best(tmp_path).exists() == (renames == 0)

    assert read_newest(tmp_path) == whole(model=b"old")
    write_best(tmp_path, filled(model=b"newer"))
    assert read_newest(tmp_path) == whole(model=b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_of_an_epoch_that_was_trained_again_the_first_report_stands(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    for epoch, value in ((1, 0.1), (2, 0.2), (2, 0.9), (3, 0.3)):
        append(path, Report(epoch=epoch, step=epoch, seconds=1.0, metrics={"mIoU": value}))

    assert [(r.epoch, r.metrics["mIoU"]) for r in distinct_reports(path)] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert distinct_reports(tmp_path / "none.jsonl") == []


def test_a_kill_while_dropping_leaves_no_part_of_a_checkpoint_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_newest(tmp_path, checkpoint_name(1), filled(model=b"m", optimizer=b"o"))

    def killed(path: Path, ignore_errors: bool) -> None:
        if path.exists():
            (path / MODEL_FILE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            drop_checkpoints(tmp_path)

    assert find_newest(tmp_path) is None
    drop_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []
