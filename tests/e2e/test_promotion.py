"""Promotion against a real MLflow: the gate, the log of decisions, races, deaths, hands and rollbacks."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from encsearch.cli.main import main
from encsearch.config import Config, with_values
from encsearch.data.datasets import IGNORE
from encsearch.data.manifest import read_manifest
from encsearch.data.store import Store
from encsearch.data.transforms import to_image_tensor
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.model.encnet import EncNet
from encsearch.parts import Code, PartName, code_from, find_code
from encsearch.reports import RunSummary
from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.registry.aliases import move, settle, sign
from encsearch.tracking.registry.decisions import Draft, resolve
from encsearch.tracking.registry.mlflow_registry import MlflowRegistry
from encsearch.workflow.job import BUNDLE, write_summary
from tests.e2e.shell import refusal_in

STEPS = {"poor": 1, "good": 12, "better": 60}
NUM_RACERS = 4

Run = Callable[..., Any]


@dataclass(frozen=True)
class Jobs:
    """Folders of finished trainings by how good their model is, and the store that has their runs."""

    tracking: Tracking
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, toy_store: Path, empty_database: Path) -> Jobs:
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copy(empty_database, folder)
    tracking = connect(f"sqlite:///{folder}/mlflow.db", "toys")
    config = Config.model_validate(
        {
            "name": "toy",
            "data": {"store": str(toy_store)},
            "model": {"backbone": "tiny", "output_stride": 4, "num_codewords": 4, "channels": 16},
            "train": {"val_batch_size": 4},
            "promote": {"model_name": "toy"},
        }
    )
    return Jobs(tracking, {name: finished(folder / name, config, tracking, STEPS[name]) for name in STEPS})


def finished(
    folder: Path, config: Config, tracking: Tracking, num_steps: int, code: Code | None = None
) -> Path:
    """The folder that a training leaves, of a model that saw all images `num_steps` times."""
    manifest = read_manifest(config.data.store)
    split = Store(config.data.store).split("train")
    samples = [split[index] for index in range(len(split))]
    images = torch.stack([to_image_tensor(sample.image) for sample in samples])
    labels = torch.stack([torch.tensor(sample.mask) for sample in samples]).long()
    torch.manual_seed(0)
    model = EncNet.from_config(config.model, len(manifest.info.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(num_steps):
        loss = F.cross_entropy(model(images).logits, labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bundle = Bundle(
        model.eval(), config, manifest.info, manifest.fingerprint, metrics={"mIoU": 0.5}, code=code
    )
    write_bundle(bundle, folder / BUNDLE)
    run_id = tracking.client.create_run(tracking.experiment_id, run_name=folder.name).info.run_id
    write_summary(
        folder,
        RunSummary(
            kind="train",
            name=folder.name,
            metric="mIoU",
            value=0.5,
            fingerprint=manifest.fingerprint,
            store=config.data.store,
            split="val",
            tracking_uri=tracking.uri,
            experiment_id=tracking.experiment_id,
            run="training",
            run_id=run_id,
            bundle=str(BUNDLE),
        ),
    )
    return folder


@pytest.fixture
def run(jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with --json to the exit code 0 and returns its result, or its one line of refusal."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", jobs.tracking.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "toys")

    def command(*arguments: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        if code:
            return refusal_in(err)
        return json.loads(out)

    return command


@pytest.fixture(scope="module")
def registry(jobs: Jobs) -> MlflowRegistry:
    return MlflowRegistry(jobs.tracking, "toy")


@pytest.mark.fast
def test_the_gate_decides_and_every_decision_is_in_the_log(
    jobs: Jobs, registry: MlflowRegistry, run: Run, notices: list[dict[str, Any]]
) -> None:
    assert "`encsearch models" not in run("rollback", "toy", code=2)
    first = run("promote", str(jobs.folders["good"]))
    assert (first["version"], first["replaced"], first["decision"]) == ("1", None, 1)

    again = run("promote", str(jobs.folders["good"]), code=4)
    assert "is already the current model, version 1" in again
    assert "the candidate is not better" in again
    gates = ("promote.class_floor={red: 0.9}", "promote.min_images=11", "promote.latency_limit_ms=0.001")
    worse = run("promote", str(jobs.folders["poor"]), *gates, code=4)
    for reason in (
        "10 labelled images, fewer than",
        "the candidate is not better",
        "floor",
        "over the limit",
    ):
        assert reason in worse

    second = run("promote", str(jobs.folders["better"]), "promote.max_class_drop=0.1")
    assert (second["version"], second["replaced"], second["decision"]) == ("2", "1", 4)
    assert second["figures"]["gain.lower"] > 0
    assert "on which 3 candidates had been judged before" in second["reasons"][-1]
    assert (registry.holder("champion"), registry.holder("champion-previous")) == ("2", "1")
    assert [notice["title"] for notice in notices] == ["toy has a new champion"] * 2
    assert notices[1]["message"].startswith("models:/toy@champion is now version 2: ")

    found = run("models", "toy")
    assert [row["verdict"] for row in found["decisions"]] == ["promoted", "refused", "refused", "promoted"]
    assert [row["aliases"] for row in found["versions"]] == [["champion"], ["champion-previous"]]
    assert found["warnings"] == []
    page = jobs.tracking.client.get_model_version("toy.decisions", "4").description
    assert page.startswith("**champion: promoted, version 1 to version 2**")


def test_another_alias_has_a_gate_of_its_own_and_a_run_is_registered_once(jobs: Jobs, run: Run) -> None:
    challenger = run("promote", str(jobs.folders["good"]), "--to", "challenger")
    assert (challenger["version"], challenger["replaced"]) == ("1", None)
    assert len(run("models")["versions"]) == 2, "the log is no model"


def test_a_rollback_leads_back_and_says_what_is_wrong(jobs: Jobs, registry: MlflowRegistry, run: Run) -> None:
    assert run("rollback", "toy")["version"] == "1"
    assert registry.holder("champion-previous") is None
    assert "has nothing before version 1 as champion; name a version with --to" in run(
        "rollback", "toy", code=2
    )
    assert "has no version 9; its versions are 2, 1" in run("rollback", "toy", "--to", "9", code=2)
    assert "is the champion already" in run("rollback", "toy", "--to", "1", code=2)
    assert "has no model boat with a version" in run("rollback", "boat", code=2)
    assert run("rollback", "toy", "--to", "2")["replaced"] == "1"


def test_a_rollback_of_a_reserved_name_writes_nothing(registry: MlflowRegistry, run: Run) -> None:
    before = registry.log()
    for alias in ("latest", "v1", "a b", "champion-previous"):
        assert "alias=" in run("rollback", "toy", "--to", "1", "--alias", alias, code=2)
    assert "is kept for the decisions" in run("rollback", "toy.decisions", "--to", "1", code=2)
    assert registry.log() == before


def test_tags_that_people_wrote_are_one_line(jobs: Jobs, run: Run) -> None:
    client = jobs.tracking.client
    client.create_registered_model("boat")
    client.create_model_version("boat", "decision:/none", tags={"mIoU": "fair"})
    assert run("models", "boat")["versions"][0]["mean_iou"] is None
    client.create_registered_model("boat.decisions")
    client.create_model_version("boat.decisions", "decision:/none", tags={"id": "1", "decision": "promoted"})
    assert "boat.decisions version 1: no decision that this encsearch can read" in run(
        "models", "boat", code=3
    )
    for name in ("boat", "boat.decisions"):
        client.delete_registered_model(name)


def test_a_hand_in_mlflow_is_written_down(jobs: Jobs, registry: MlflowRegistry, run: Run) -> None:
    jobs.tracking.client.set_registered_model_alias("toy", "champion", "1")
    (warning,) = run("models", "toy")["warnings"]
    assert "toy@champion is version 1, but by the log it is version 2: somebody changed it by hand" in warning
    done = run("promote", str(jobs.folders["better"]))
    assert done["notes"] == ["champion was moved by hand from version 2 to version 1; the log says so now"]
    assert (done["version"], done["replaced"]) == ("2", "1")
    assert run("models", "toy")["decisions"][1]["verdict"] == "adopted"


def test_what_a_killed_promotion_left_is_told_and_finished(registry: MlflowRegistry, run: Run) -> None:
    state = resolve(registry.log(), "champion")
    registry.append(Draft(sign(), "promoted", "champion", state.version, "1", state.head))
    assert registry.holder("champion") == "2"
    (warning,) = run("models", "toy")["warnings"]
    assert warning.startswith(f"toy@champion is version 2, but decision {state.head + 1} is for version 1")
    done = run("rollback", "toy")
    assert done["notes"] == [f"champion had not followed decision {state.head + 1}; it is at version 1 now"]
    assert (done["replaced"], done["version"], registry.holder("champion")) == ("1", "2", "2")


def _race(uri: str, number: int, start: Any, outcomes: Any) -> None:
    registry = MlflowRegistry(connect(uri, "toys"), "toy")
    state = settle(registry, "champion").state
    start.wait()
    target = str(1 + number % 2)
    draft = Draft(sign(), "promoted", "champion", state.version, target, state.head)
    outcomes.put((move(registry, draft).won, target))


def test_of_processes_that_race_one_wins(jobs: Jobs, registry: MlflowRegistry) -> None:
    before = registry.log()
    fork = multiprocessing.get_context("fork")  # importing MLflow takes 5 s a process
    start, outcomes = fork.Barrier(NUM_RACERS), fork.Queue()
    racers = [
        fork.Process(target=_race, args=(jobs.tracking.uri, number, start, outcomes))
        for number in range(NUM_RACERS)
    ]
    for racer in racers:
        racer.start()
    found = [outcomes.get(timeout=240) for _ in racers]
    for racer in racers:
        racer.join()
    (winner,) = [target for won, target in found if won]
    assert registry.holder("champion") == winner == resolve(registry.log(), "champion").version
    assert len(registry.log()) == len(before) + NUM_RACERS


def test_a_champion_that_was_deleted_leaves_a_place_that_the_next_takes(
    jobs: Jobs, registry: MlflowRegistry, run: Run
) -> None:
    holder = registry.holder("champion")
    assert holder
    jobs.tracking.client.delete_model_version("toy", holder)
    (warning, *_) = run("models", "toy")["warnings"]
    assert f"is not set, but by the log it is version {holder}, which was deleted" in warning
    done = run("promote", str(jobs.folders["better"]))
    assert done["notes"] == [
        f"champion, which was version {holder}, was deleted in MLflow; the log says so now"
    ]
    assert done["replaced"] is None


def test_a_floor_for_no_class_and_other_classes_are_refused_in_one_line(
    jobs: Jobs, run: Run, tmp_path: Path
) -> None:
    folder = str(jobs.folders["good"])
    assert "is none of the model's 3 classes" in run(
        "promote", folder, "promote.class_floor={cat: 1}", code=2
    )
    assert "only paths below promote. can be changed" in run("promote", folder, "optim.lr=1", code=2)
    assert "no such store" in run("promote", folder, "--store", str(tmp_path / "none"), code=2)


OWN_METRIC = """
import torch


class Accuracy:
    def __init__(self, power=1):
        self.power = power

    def count(self, labels, predictions, num_classes):
        known = labels != 255
        right = ((labels == predictions) & known).sum() * FACTOR
        return torch.stack([right.double(), known.sum().double()])

    def score(self, counts):
        return float(counts[0] / counts[1]) ** self.power
"""


def test_an_own_metric_decides_as_the_candidate_has_it(jobs: Jobs, run: Run, tmp_path: Path) -> None:
    """The holder's own metric, of the same name, halves its figure; both are judged by the candidate's."""
    name = PartName("promoted_by:Accuracy")
    recipe = read_config(jobs).model_copy(update={"metric": name})
    values = {"promote.model_name": "own", "promote.figure": "metric", "promote.floor": 0.1}
    values |= {f"eval.args.{name}.power": 2}
    config = with_values(recipe, values)
    folders = {}
    for quality, factor in (("good", 0.5), ("better", 1.0)):
        (tmp_path / quality).mkdir()
        (tmp_path / quality / "promoted_by.py").write_text(OWN_METRIC.replace("FACTOR", str(factor)))
        with code_from(tmp_path / quality):
            code = find_code([name])
        folders[quality] = finished(tmp_path / f"job-{quality}", config, jobs.tracking, STEPS[quality], code)

    first = run("promote", str(folders["good"]))
    scored = run("eval", str(folders["good"]))
    assert first["figures"][name] == scored["metrics"][name] == scored["own"][name]
    assert scored["metrics"][name] == pytest.approx((scored["metrics"]["pixAcc"] / 2) ** 2)
    assert any(f"the candidate has {name} " in reason for reason in first["reasons"])

    second = run("promote", str(folders["better"]))
    accuracies = [run("eval", str(folders[quality]))["metrics"]["pixAcc"] for quality in folders]
    assert second["figures"][name] == pytest.approx(accuracies[1] ** 2)
    assert second["figures"]["gain"] == pytest.approx(accuracies[1] ** 2 - accuracies[0] ** 2)
    assert 0 < second["figures"]["gain.lower"] < second["figures"]["gain"]
    assert second["figures"]["mIoU"] == pytest.approx(run("eval", str(folders["better"]))["mean_iou"])
    assert [row["figure"] for row in run("models", "own")["decisions"]] == [name, name]


def test_an_own_metric_is_asked_for_only_where_there_is_one(jobs: Jobs, run: Run) -> None:
    line = run("promote", str(jobs.folders["good"]), "promote.figure=metric", code=2)
    assert "promote.figure=metric needs an own metric, as module:Object, but metric=mIoU" in line


def read_config(jobs: Jobs) -> Config:
    return read_bundle(jobs.folders["good"] / BUNDLE).config
