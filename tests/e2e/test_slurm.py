"""`cluster/slurm/encsearch.sbatch` on a real Slurm of two nodes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from encsearch.reports import distinct_reports
from tests.e2e.hosts import wait_until
from tests.e2e.shell import Shell
from tests.e2e.slurm import Slurm, read_logs, running_slurm

pytestmark = pytest.mark.hosts

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "encsearch.sbatch"
EPOCHS = 4
# A worker needs all of a node.
ON_BOTH = ("scaling.num_workers=2", "scaling.cpus_per_worker=2")


@pytest.fixture(scope="module")
def slurm(shell: Shell) -> Iterator[Slurm]:
    with running_slurm(shell.folder) as slurm:
        yield slurm


def test_a_preempted_training_saves_its_state_and_goes_on_by_itself(shell: Shell, slurm: Slurm) -> None:
    """The preemption lasts for the two minutes that Slurm leaves between a job's end and its next start."""
    runs = shell.folder / "runs"
    recipe = ("train", "toy.yaml", *ON_BOTH, f"train.epochs={EPOCHS}", "--out", str(runs))
    job = slurm.submit("--job-name=first", "--nodes=2", str(SCRIPT), *recipe)
    folder, log = runs / f"first-{job}", shell.folder / f"first-{job}.log"
    wait_until(lambda: log.exists() and "epoch 1/" in log.read_text(), lambda: read_logs(shell.folder))

    slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    slurm.wait_for(job, "PENDING")
    assert "terminated, saved at step" in log.read_text()
    assert f"job {job} is queued again" in log.read_text()
    assert slurm.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", read_logs(shell.folder)

    assert "training toy goes on" in log.read_text()
    reports = distinct_reports(folder / "checkpoints" / "reports.jsonl")
    assert [report.epoch for report in reports] == list(range(1, EPOCHS + 1))
    assert {report.metrics["world_size"] for report in reports} == {2}
    runs_of_mlflow = json.loads(shell.encsearch("runs", "list", "--json").stdout)
    assert [run["status"] for run in runs_of_mlflow if run["name"] == folder.name] == ["FINISHED"]


def test_what_is_refused_or_cancelled_is_not_queued_again(shell: Shell, slurm: Slurm) -> None:
    refused = slurm.submit(str(SCRIPT), "train", "toy.yaml", "optim.lr=none")
    assert slurm.wait_for(refused, "FAILED", "COMPLETED") == "FAILED"
    assert slurm.show(refused)["ExitCode"] == "2:0"

    cancelled = slurm.submit(
        "--job-name=long", str(SCRIPT), "train", "toy.yaml", "train.epochs=1000", "--in-process"
    )
    log = shell.folder / f"long-{cancelled}.log"
    wait_until(lambda: log.exists() and "epoch 1/" in log.read_text(), lambda: read_logs(shell.folder))
    slurm.run("scancel", cancelled)
    assert slurm.wait_for(cancelled, "CANCELLED", "PENDING") == "CANCELLED"
    assert slurm.show(cancelled).get("Restarts") == "0"
