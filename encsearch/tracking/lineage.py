"""Where a run comes from: code, data and versions as tags, the changes that no commit holds as a file."""

import getpass
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

from encsearch.config import Config, DataConfig
from encsearch.data.manifest import Manifest
from encsearch.data.store import Store
from encsearch.redaction import without_secrets
from encsearch.reports import Report
from encsearch.text import format_count, format_list
from encsearch.tracking.outbox.events import Dataset

PACKAGES = ("encsearch", "torch", "torchvision", "numpy", "pyarrow", "ray", "optuna", "mlflow")
DIFF_FILE = Path("lineage", "git.diff")
MAX_DIFF_BYTES = 2**20
SHOWN_FINGERPRINT = 12  # hexadecimal digits, as `git log` shortens a commit


def lineage(fingerprint: str, root: Path) -> dict[str, str]:
    """Tags with the data's fingerprint, the versions, the job's machine and, in a git checkout, its commit.

    The command line is none of them: it may hold secrets.
    """
    tags = {"data.fingerprint": fingerprint, "version.python": platform.python_version()}
    tags |= {f"version.{package}": version(package) for package in PACKAGES}
    tags |= {"job.host": socket.gethostname(), "job.system": platform.platform()}
    return tags | _git_tags(root)


def describe_run(config: Config, manifest: Manifest, kind: str) -> dict[str, str]:
    """What MLflow's table and the head of a run's page show: the recipe, who started it, a description.

    `kind` is the run's, as in "training". MLflow takes the user when the run is made, and not again.
    """
    return {
        "mlflow.source.name": config.name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "mlflow.note.content": _note(config, manifest, kind),
    }


def describe_dataset(data: DataConfig, store: Store) -> Dataset:
    """What MLflow shows of the data. Raises StoreError for a split that is missing or damaged."""
    sizes = store.stats(data.train_split).sizes
    (height, width), _ = sizes[0]
    others = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    return Dataset(
        name=store.info.name,
        fingerprint=store.fingerprint,
        source=without_secrets(data.store),
        profile={
            "images": {name: split.num_samples for name, split in store.manifest.splits.items()},
            "training_image_size": f"{width}x{height}{others}",
            "num_classes": len(store.info.classes),
            "classes": list(store.info.classes),
        },
    )


def machine_tags(report: Report) -> dict[str, str]:
    """Tags of the machine that rank 0 trains on, which the first report of a process tells; else none."""
    texts = [text for name, text in report.texts.items() if name.startswith("lineage/machine_epoch_")]
    facts = [line.partition(": ") for text in texts for line in text.splitlines()]
    return {f"machine.{name}": fact for name, _, fact in facts}


def write_diff(root: Path, folder: Path) -> None:
    """Write lineage/git.diff below `folder`: what differs from the commit in the files that git tracks.

    Nothing is written outside a checkout and without changes. Files that git does not track are never in it;
    what looks like a secret is masked, and what goes beyond MAX_DIFF_BYTES cut off.
    """
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
    if not diff:
        return
    # Masking takes a second a megabyte; twice what is kept, so that most secrets at the cut are whole.
    data = without_secrets(diff[: 2 * MAX_DIFF_BYTES]).encode()
    if len(data) > MAX_DIFF_BYTES:
        kept = data[: data.rfind(b"\n", 0, MAX_DIFF_BYTES) + 1]
        data = kept + f"(cut: {len(kept)} of {len(diff.encode())} bytes)\n".encode()
    target = folder / DIFF_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _note(config: Config, manifest: Manifest, kind: str) -> str:
    """A few lines of Markdown."""
    model = config.model
    context = f", K={model.num_codewords}" if model.context == "encoding" else ""
    splits = {
        name: manifest.split(name).num_samples for name in (config.data.train_split, config.data.val_split)
    }
    images = format_list([f"{format_count(count)} of {name}" for name, count in splits.items()])
    return "\n".join(
        [
            f"**{config.name}**, {kind}: backbone {model.backbone}, head {model.head}, "
            f"context {model.context}{context}; {format_count(config.train.epochs, 'epoch')}.",
            "",
            f"Data: {manifest.info.name}, {format_count(len(manifest.info.classes), 'class')}, "
            f"images: {images}; fingerprint {manifest.fingerprint[:SHOWN_FINGERPRINT]}.",
            "",
            f"Judged by `{config.metric}`; `best/{config.metric}` is its best epoch's. "
            "Under Artifacts, `config.yaml` repeats this run.",
        ]
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a number without a name; OSError from Python 3.13 on
        return "unknown"


def _git_tags(root: Path) -> dict[str, str]:
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    tags = {"mlflow.source.git.commit": commit.strip(), "git.dirty": "true" if changes else "false"}
    branch = _git(root, "symbolic-ref", "--short", "HEAD")  # none where a commit itself is checked out
    return tags | ({"mlflow.source.git.branch": branch.strip()} if branch else {})


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None without git, outside a checkout, or in one without a commit."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # To the letter: a patch may end in blanks, and have lines that end in CR LF.
    return result.stdout.decode("utf-8", errors="replace") if result.returncode == 0 else None
