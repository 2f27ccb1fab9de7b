"""A training that was killed goes on, and its best model so far can be used meanwhile."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from encsearch.files import hold_lock
from encsearch.reports import best_report, distinct_reports
from encsearch.tracking.outbox.record import OWNER_LOCK, OWNER_WAIT_S
from tests.e2e.shell import Shell

EPOCHS = 5
SHORT = (f"train.epochs={EPOCHS}", "train.steps_per_epoch=8")


def kill_after(shell: Shell, sign: str, *arguments: str) -> Path:
    """Start a training, kill it with all of its processes once it says `sign`, and return its folder."""
    before = set(shell.folder.glob("killed/*"))
    process = shell.start("encsearch", "train", "toy.yaml", *SHORT, "--out", "killed", *arguments)
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if sign in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert sign in said[-1], "".join(said)
    process.stderr.close()
    (folder,) = set(shell.folder.glob("killed/*")) - before
    return folder


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "artifacts" / "bundle" / "model.safetensors")


def test_in_this_process_the_same_weights_arrive(shell: Shell) -> None:
    folder = kill_after(shell, "epoch 2/", "--in-process")
    used = shell.encsearch("eval", str(folder))
    assert "the training has not finished; its best checkpoint so far is of epoch" in used.stderr
    shell.encsearch("sync", str(folder))
    promoted = shell.encsearch("promote", str(folder), "promote.model_name=unfinished")
    assert "the training has not finished; its best checkpoint so far is of epoch" in promoted.stderr
    assert "models:/unfinished@champion is now version 1" in promoted.stdout
    resumed = shell.encsearch("resume", str(folder), "--json")
    assert "goes on: 2 of 5 epochs" in resumed.stderr or "goes on: 3 of 5 epochs" in resumed.stderr
    assert "epoch 1/" not in resumed.stderr, "what was shown is not shown again"
    done = json.loads(resumed.stdout)
    whole = json.loads(shell.encsearch("train", "toy.yaml", *SHORT, "--in-process", "--json").stdout)
    assert done["value"] == whole["value"]
    assert done["best"]["epoch"] == whole["best"]["epoch"]
    one, other = weights(folder), weights(shell.folder / whole["folder"])
    assert all(torch.equal(one[name], other[name]) for name in one)
    finished = shell.encsearch("resume", str(folder))
    assert "the training is finished, mIoU" in finished.stdout
    assert not list((folder / "checkpoints").glob("checkpoint-*"))
    line = shell.refusal("resume", str(folder), "optim.lr=9", code=2)
    assert (
        "optim.lr=9: the job has begun; only scaling. and train.checkpoint_every. can be changed now" in line
    )
    shell.encsearch("resume", str(folder), *SHORT)


def test_a_notice_saves_the_state_at_once(shell: Shell) -> None:
    long = ("train.epochs=1", "train.steps_per_epoch=3000", "train.checkpoint_every.steps=500")
    process = shell.start("encsearch", "train", "toy.yaml", *long, "--out", "noticed", "--in-process")
    while not list(shell.folder.glob("noticed/*/checkpoints/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    (folder,) = shell.folder.glob("noticed/*")
    assert f"continue with `encsearch resume {folder}`" in said
    assert "terminated, saved at step" in said
    checkpoint = max((folder / "checkpoints").glob("checkpoint-epoch00000-step*"))
    step = json.loads((checkpoint / "checkpoint.json").read_text())["step"]
    assert f"saved at step {step} of 3000" in said
    assert step % 500, "at once, and not when the next was due"


def test_what_would_make_it_another_training_is_refused(shell: Shell) -> None:
    folder = kill_after(shell, "epoch 1/", "--in-process")
    line = shell.refusal("resume", str(folder), "optim.lr=0.5", code=2)
    assert (
        "optim.lr=0.5: the job has begun; only scaling. and train.checkpoint_every. can be changed now"
        in line
    )
    line = shell.refusal("resume", str(folder), "--extend", "2", code=2)
    assert "holds a training; only a sweep has trials to add" in line
    assert "not the folder of a training, sweep or ablation" in shell.refusal(
        "resume", str(shell.folder), code=2
    )


def test_another_process_of_it_changes_nothing(shell: Shell) -> None:
    folder = kill_after(shell, "epoch 1/", "--in-process")
    before = (folder / "config.yaml").read_bytes()
    with hold_lock(folder / "record" / OWNER_LOCK, wait_s=OWNER_WAIT_S) as is_held:
        assert is_held
        line = shell.refusal("resume", str(folder), "scaling.cpus_per_worker=2", code=2)
    assert "another process is recording this job" in line
    assert (folder / "config.yaml").read_bytes() == before


def test_a_best_checkpoint_that_is_damaged_is_told_and_trained_again(shell: Shell) -> None:
    folder = kill_after(shell, "epoch 3/", "--in-process")
    checkpoints = folder / "checkpoints"
    reports = distinct_reports(checkpoints / "reports.jsonl")
    best = best_report(tuple(reports), "mIoU").epoch
    for file in checkpoints.glob("*/model.safetensors"):
        step = json.loads((file.parent / "checkpoint.json").read_text())["step"]
        if step == next(report.step for report in reports if report.epoch == best):
            file.write_bytes(b"damaged")
    told = shell.encsearch("eval", str(folder)).stderr
    assert f"; epoch {best} scored higher, but its checkpoint is damaged or missing" in told
    resumed = shell.run("resume", str(folder), "--json")
    assert "model.safetensors: damaged" in resumed.stderr
    whole = shell.encsearch("train", "toy.yaml", *SHORT, "--in-process", "--json").stdout
    assert json.loads(resumed.stdout)["value"] == json.loads(whole)["value"]
    one, other = weights(folder), weights(shell.folder / json.loads(whole)["folder"])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.own_ray
def test_by_ray_train_and_from_the_checkpoint_before_a_damaged_one(shell: Shell) -> None:
    folder = kill_after(shell, "epoch 3/")
    newest = max((folder / "checkpoints").glob("checkpoint-*/model.safetensors"))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    resumed = json.loads(shell.run("resume", str(folder), "--json").stdout)
    steps = [
        json.loads(line)["epoch"]
        for line in (folder / "checkpoints" / "reports.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, EPOCHS + 1)), "every epoch once"
    assert resumed["kind"] == "training"
    assert (folder / "run.json").exists()
