"""The Python API with MLflow, and the notebook with Ray too."""

import threading
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import encsearch
from encsearch.config import Config, with_values
from encsearch.errors import GateRefusedError, PreflightError, UserError

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which mlflow.db is the record."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_refused_job_leaves_nothing(toy_config: Config, folder: Path) -> None:
    wrong = with_values(toy_config, {"data.store": "nowhere"})
    for refuse, message in (
        (lambda: encsearch.train(wrong), "nowhere"),
        (lambda: encsearch.train(toy_config, name="a/b"), "--name: 'a/b' is not of letters"),
        (lambda: encsearch.train(toy_config, progress=True), "such as print, but got True"),  # type: ignore[arg-type]
        (lambda: encsearch.sweep(toy_config), "has no search: block"),
        (lambda: encsearch.sweep(wrong, {"search.space": {"optim.lr": {"uniform": [0.1, 1]}}}), "nowhere"),
        (lambda: encsearch.resume("runs/none"), "no such folder"),
        (lambda: encsearch.evaluate("runs/none"), "runs/none"),
        (lambda: encsearch.evaluate(3), "a model is a job, a folder or an address, but got int"),  # type: ignore[arg-type]
        (lambda: encsearch.promote("runs/none"), "runs/none"),
        (lambda: encsearch.open_store("nowhere"), "nowhere"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            refuse()  # type: ignore[no-untyped-call]
        assert "\n" not in str(refused.value)
    with pytest.raises(PreflightError, match="nothing is recorded in this folder yet"):
        encsearch.runs()
    assert not list(folder.iterdir())


class Stop(KeyboardInterrupt):
    """A person interrupts the kernel."""


def test_a_training_in_a_thread_is_interrupted_goes_on_and_is_used(
    toy_config: Config, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = with_values(toy_config, {"promote.floor": 0.0, "promote.min_class_share": 0.0})

    def interrupt(line: str) -> None:
        if "epoch 1/2" in line:
            raise Stop

    with pytest.raises(Stop) as stopped:
        encsearch.train(recipe, name="first", in_process=True, progress=interrupt)
    assert stopped.value.__notes__ == [f"continue with `encsearch resume {folder}/runs/first`"]

    found, lines = [], []
    again = threading.Thread(
        target=lambda: found.append(
            encsearch.train(recipe, name="first", in_process=True, progress=lines.append)
        )
    )
    again.start()
    again.join()
    [trained] = found
    assert [report.epoch for report in trained.result.reports] == [1, 2]
    assert any("training toy goes on: 1 of 2 epochs" in line for line in lines)

    read = encsearch.resume(trained.folder)
    assert isinstance(read, type(trained))
    assert (read.summary, read.result.best) == (trained.summary, trained.result.best)
    assert encsearch.evaluate(read).mean_iou == pytest.approx(trained.summary.value)

    holder = encsearch.promote(trained)
    assert encsearch.load(holder.uri).info.name == "toy"
    with pytest.raises(GateRefusedError, match="is not promoted to champion"):
        encsearch.promote(str(trained.folder))
    [row] = encsearch.runs(sort="best/mIoU").to_dict("records")
    assert (row["name"], row["kind"], row["status"]) == ("first", "training", "FINISHED")
    assert row["metrics.best/mIoU"] == pytest.approx(trained.summary.value)
    assert row["params.optim.lr"] == 0.02
    assert encsearch.runs("metrics.`best/mIoU` > 2").empty
    assert capfd.readouterr().out == "", "progress is optional"


@pytest.mark.own_ray
def test_the_notebook_runs_in_an_empty_folder(folder: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()

    jobs = encsearch.runs()
    assert list(jobs["kind"]) == ["sweep", "training"]
    assert set(jobs["status"]) == {"FINISHED"}
    assert set(encsearch.runs(sweep=jobs["name"][0])["kind"]) == {"finalist", "trial"}
    assert encsearch.load("models:/encnet-scenes@champion").info.name == "scenes"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"], "nothing to be worried about"
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "trial 0 COMPLETE" in printed, "Ray deletes nothing of what the cell has printed"
