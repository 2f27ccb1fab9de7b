"""Where a run comes from: tags, the description, and the changes that no commit holds."""

import subprocess
from pathlib import Path

import pytest

from encsearch.config import Config
from encsearch.data.store import Store
from encsearch.reports import Report
from encsearch.tracking.lineage import (
    MAX_DIFF_BYTES,
    data_tags,
    describe_dataset,
    describe_run,
    lineage,
    machine_tags,
    write_diff,
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One commit with one file, recipe.yaml."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "recipe.yaml").write_text("lr: 0.01\n")
    git(root, "init", "--quiet", "--initial-branch=trunk")
    git(root, "add", "recipe.yaml")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def test_outside_a_checkout_the_lineage_names_no_commit(tmp_path: Path) -> None:
    tags = lineage(tmp_path)
    write_diff(tmp_path, tmp_path / "artifacts")
    packages = {"torch", "torchvision", "numpy", "ray", "mlflow", "python"}
    assert {f"version.{package}" for package in packages} <= set(tags)
    assert not any("git" in name for name in tags)
    assert not (tmp_path / "artifacts").exists()


def test_a_commit_is_named_with_its_branch_and_whether_it_is_all(checkout: Path, tmp_path: Path) -> None:
    clean = lineage(checkout)
    write_diff(checkout, tmp_path)
    assert (clean["mlflow.source.git.branch"], clean["git.dirty"]) == ("trunk", "false")
    assert len(clean["mlflow.source.git.commit"]) == 40
    assert not (tmp_path / "lineage").exists()

    (checkout / "recipe.yaml").write_text("lr: 0.02\n")
    assert lineage(checkout)["git.dirty"] == "true"


def test_the_diff_has_tracked_files_alone_and_no_secrets(checkout: Path, tmp_path: Path) -> None:
    (checkout / "recipe.yaml").write_text("lr: 0.02\nstore: http://me:hunter2@data/x\npassword: hunter3\n")
    (checkout / "notes.txt").write_text("hunter4\n")

    write_diff(checkout, tmp_path)

    diff = (tmp_path / "lineage" / "git.diff").read_text()
    assert "-lr: 0.01\n+lr: 0.02\n" in diff
    assert "hunter" not in diff


def test_the_diff_is_a_patch_to_the_letter(checkout: Path, tmp_path: Path) -> None:
    (checkout / "recipe.yaml").write_bytes(b"lr: 1\r\nseed: 0\n\n")
    git(checkout, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-am", "second")
    (checkout / "recipe.yaml").write_bytes(b"lr: 2\r\nseed: 0\n\n")

    write_diff(checkout, tmp_path)
    git(checkout, "checkout", "--quiet", "recipe.yaml")
    git(checkout, "apply", str(tmp_path / "lineage" / "git.diff"))

    assert (checkout / "recipe.yaml").read_bytes() == b"lr: 2\r\nseed: 0\n\n"


def test_a_commit_that_is_checked_out_itself_has_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "--quiet", "--detach")
    tags = lineage(checkout)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert "mlflow.source.git.branch" not in tags


def test_a_large_diff_is_cut_at_a_line(checkout: Path, tmp_path: Path) -> None:
    (checkout / "recipe.yaml").write_text("a line of twenty-two b\n" * (MAX_DIFF_BYTES // 20))

    write_diff(checkout, tmp_path)

    *_, before, last = (tmp_path / "lineage" / "git.diff").read_text().splitlines()
    assert before == "+a line of twenty-two b"
    assert last.startswith("(cut: ")
    assert (tmp_path / "lineage" / "git.diff").stat().st_size < MAX_DIFF_BYTES + 100


def test_a_run_is_described_by_recipe_data_and_metric(toy_config: Config) -> None:
    tags = describe_run(toy_config, Store(toy_config.data.store).manifest, "training")

    assert tags["mlflow.source.name"] == "toy"
    note = tags["mlflow.note.content"]
    for told in ("**toy**, training", "K=4", "3 classes", "24 of train and 10 of val", "`best/mIoU`"):
        assert told in note


def test_the_data_is_named_counted_and_fingerprinted(toy_config: Config) -> None:
    dataset = describe_dataset(toy_config.data, Store(toy_config.data.store))

    assert (dataset.name, dataset.source) == ("toy", toy_config.data.store)
    assert dataset.fingerprint == Store(toy_config.data.store).fingerprint
    assert data_tags(Store(toy_config.data.store).manifest) == {"data.fingerprint": dataset.fingerprint}
    assert dataset.profile == {
        "images": {"train": 24, "val": 10},
        "training_image_size": "32x32",
        "num_classes": 3,
        "classes": ["ground", "red", "blue"],
    }


def test_the_machine_of_a_report_becomes_tags() -> None:
    texts = {"lineage/machine_epoch_3.txt": "host: a\ncpu: 2 x Some: CPU\n", "profile.txt": "x: y\n"}

    assert machine_tags(Report(3, 9, 1.0, {}, texts=texts)) == {
        "machine.host": "a",
        "machine.cpu": "2 x Some: CPU",
    }
    assert machine_tags(Report(4, 12, 1.0, {})) == {}
