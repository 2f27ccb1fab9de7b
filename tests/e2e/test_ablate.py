"""`encsearch ablate` as people use it, and what it refuses to go on with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from encsearch.cli.console import say
from encsearch.config import CONFIG_FILE, Config, load_config, to_yaml
from encsearch.errors import PreflightError, UserError
from encsearch.reports import RESULTS_FILE
from encsearch.tracking.outbox.events import Dataset, Ended
from encsearch.tracking.outbox.record import Record, now_ms, own_record
from encsearch.workflow.progress import LineProgress
from encsearch.workflow.resume import resume
from tests.e2e.shell import Shell

pytestmark = pytest.mark.ray

# Four rows with two seeds and one step each, the multi-scale row, and two dictionaries of 8 words.
BRIEF = (
    "train.epochs=1",
    "train.steps_per_epoch=1",
    "ablate.seeds=[0,1]",
    "ablate.heads=[]",
    "ablate.codewords=[]",
    "ablate.se_weights=[]",
    "ablate.scales=[0.5,1.0]",
    "ablate.words=[8]",
)


def test_an_ablation_compares_its_rows_and_is_not_trained_again_when_resumed(
    shell: Shell, ray_here: None
) -> None:
    def ablated(*options: str) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(
            shell.encsearch("ablate", "toy.yaml", *BRIEF, "--json", *options).stdout
        )
        return done

    first = ablated("--name", "rows")
    assert first["folder"] == str(shell.folder / "runs" / "rows")
    assert first["failures"] == {}
    labels: dict[str, list[str]] = {}
    for figures in first["figures"]:
        labels.setdefault(figures["point"]["series"], []).append(figures["point"]["label"])
        assert all(len(estimate["values"]) == 2 for estimate in figures["estimates"].values())
    assert labels == {
        "rows": ["FCN", "+ Encoding", "+ SE-loss", "+ multi-scale", "pooled gate + SE-loss"],
        "sizes": ["FCN", "+ SE-loss", "pooled gate + SE-loss"],
        "presence": ["+ SE-loss", "pooled gate + SE-loss", "8 words of features", "8 words of patches"],
    }
    folder = shell.folder / first["folder"]
    written = {path.name for path in (folder / "artifacts").iterdir()}
    assert written >= {"ablation.md", "ablation.csv", "trainings.csv", "rows.png", "pictures.png"}
    assert written >= {"words_of_patches.png", "words_of_features.png"}
    lines = (folder / "trainings.jsonl").read_text()
    assert len(lines.splitlines()) == 20, "8 trainings, 2 + 6 + 4 scorings"
    # Weights that only a scoring needed are gone: FCN's picture and all EncNets stay.
    kept = {path.name for path in (folder / "models").iterdir()}
    assert kept == {"FCN-1-epochs-seed0", "SE-loss-1-epochs-seed0", "SE-loss-1-epochs-seed1"}

    # As if a kill had come between a training's line and the end of its run.
    trained = json.loads(lines.splitlines()[0])["name"]
    record = Record(folder)
    assert record.find(trained)
    record.append(Ended(trained, now_ms(), "KILLED"))

    again = ablated("--name", "rows", "scaling.timeout_s=90")
    state = Record(folder).find(trained)
    assert state
    assert state.status == "FINISHED"
    assert again["figures"] == first["figures"]
    assert load_config(folder / CONFIG_FILE).scaling.timeout_s == 90
    assert again["parent_run_id"] == first["parent_run_id"]
    assert (folder / "trainings.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("overrides", "fingerprint", "error", "message"),
    [
        (["optim.lr=0.5"], None, UserError, "optim.lr=0.5: the job has begun; only scaling"),
        ([], "another", PreflightError, "holds other data than at the start of the job"),
    ],
)
def test_only_an_ablation_of_the_same_recipe_and_data_goes_on(
    toy_config: Config,
    tmp_path: Path,
    overrides: list[str],
    fingerprint: str | None,
    error: type[UserError],
    message: str,
) -> None:
    """Rows of two recipes, or of two data sets, would stand side by side."""
    (tmp_path / CONFIG_FILE).write_text(to_yaml(toy_config), encoding="utf-8")
    (tmp_path / RESULTS_FILE).touch()
    if fingerprint:
        with own_record(tmp_path) as record:
            record.start("toy", params={}, tags={}, dataset=Dataset("toy", fingerprint, "", {}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        resume(tmp_path, overrides, LineProgress(say))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_weights_stay_until_everything_is_scored_with_them(shell: Shell, ray_here: None) -> None:
    """A scoring that fails is run again when the ablation is resumed, with the weights that it needs."""
    options = ("ablate", "toy.yaml", *BRIEF, "ablate.seeds=[0]", "ablate.words=[9]", "--json")
    first = json.loads(shell.encsearch(*options).stdout)
    folder = shell.folder / first["folder"]
    results = folder / "trainings.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    lost = next(line for line in lines if '"9-words-of-features' in line)
    results.write_text("".join(line for line in lines if line != lost))

    again = json.loads(shell.encsearch("resume", first["folder"], "--json").stdout)
    assert again["failures"] == {}
    assert [f["estimates"] for f in again["figures"]] == [f["estimates"] for f in first["figures"]]

    # As a version that kept fewer weights would have left it.
    shutil.rmtree(folder / "models" / "FCN-1-epochs-seed0")
    results.write_text("".join(line for line in lines if line != lost))
    without = json.loads(shell.encsearch("resume", first["folder"], "--json").stdout)
    name = json.loads(lost)["name"]
    assert without["failures"] == {name: "the weights of FCN-1-epochs-seed0 were not kept"}


def test_a_pattern_without_scenes_is_refused_before_anything_is_trained(shell: Shell) -> None:
    refused = shell.encsearch(
        "ablate", "toy.yaml", *BRIEF, r"ablate.scene_pattern=_(\w+)$", "--dry-run", code=3
    )
    assert "finds 0 scenes in the ids of 48 training images, such as train-000000-" in refused.stderr
