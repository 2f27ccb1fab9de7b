"""Where a run comes from: code, data and versions as tags, uncommitted changes as a file."""

import getpass
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

from encsearch.config import Config, DataConfig, named_parts
from encsearch.data.manifest import Manifest
from encsearch.data.store import Store
from encsearch.parts import code_from, find_code
from encsearch.redaction import without_secrets
from encsearch.reports import Report
from encsearch.text import format_count, format_list
from encsearch.tracking.outbox.events import Dataset
from encsearch.tracking.outbox.record import NOTE_TAG

PACKAGES = ("encsearch", "torch", "torchvision", "numpy", "pyarrow", "ray", "optuna", "mlflow")
DIFF_FILE = Path("lineage", "git.diff")
MAX_DIFF_BYTES = 2**20
SHOWN_FINGERPRINT = 12  # hexadecimal digits, as `git log` shortens a commit


def lineage(root: Path) -> dict[str, str]:
    """Return tags: versions, the job's machine and, in a git checkout, its commit.

    The command line is not among them: it may hold secrets.
    """
    tags = {"version.python": platform.python_version()}
    tags |= {f"version.{package}": version(package) for package in PACKAGES}
    tags |= {"job.host": socket.gethostname(), "job.system": platform.platform()}
    return tags | _git_tags(root)


def code_tags(config: Config) -> dict[str, str]:
    """Return tags of what own parts are made of: the SHA-256 of their files, and packages; {} without any."""
    names = named_parts(config)
    if not names:
        return {}
    with code_from(config.code):
        code = find_code(names)
    tags = {"code.parts": ", ".join(sorted(names))}
    tags |= {f"version.{package}": version for package, version in code.installed.items()}
    if code.files:
        tags |= {"code.sha256": code.digest, "code.files": ", ".join(sorted(code.files))}
    return tags


def data_tags(manifest: Manifest) -> dict[str, str]:
    """Return tags of the data: content, and what made the store, if its manifest says so."""
    tags = {"data.fingerprint": manifest.fingerprint}
    return tags | ({"data.origin": manifest.origin.importer} if manifest.origin else {})


def describe_run(config: Config, manifest: Manifest, kind: str) -> dict[str, str]:
    """Return the tags that MLflow's table and the head of a run's page show: recipe, user, description.

    `kind` is the kind of the run, such as "training". MLflow takes the user only when it creates the run.
    """
    return {
        "mlflow.source.name": config.name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        NOTE_TAG: _note(config, manifest, kind),
    }


def describe_dataset(data: DataConfig, store: Store) -> Dataset:
    """Describe the data as MLflow shows it. Raises StoreError for a split that is missing or damaged."""
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
    """Return tags of the machine of rank 0. Only the first report of a process has them; others give none."""
    texts = [text for name, text in report.texts.items() if name.startswith("lineage/machine_epoch_")]
    facts = [line.partition(": ") for text in texts for line in text.splitlines()]
    return {f"machine.{name}": fact for name, _, fact in facts}


def write_diff(root: Path, folder: Path) -> None:
    """Write lineage/git.diff below `folder`: the uncommitted changes in the files that git tracks.

    Writes nothing outside a checkout or without changes. Untracked files are never included; what looks like
    a secret is masked, and what goes beyond MAX_DIFF_BYTES is cut off.
    """
    diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
    if not diff:
        return
    # Masking takes a second a megabyte. It reads twice what is kept, so that few secrets are cut in two.
    data = without_secrets(diff[: 2 * MAX_DIFF_BYTES]).encode()
    if len(data) > MAX_DIFF_BYTES:
        kept = data[: data.rfind(b"\n", 0, MAX_DIFF_BYTES) + 1]
        data = kept + f"(cut: {len(kept)} of {len(diff.encode())} bytes)\n".encode()
    target = folder / DIFF_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _note(config: Config, manifest: Manifest, kind: str) -> str:
    """Describe the run in a few lines of Markdown."""
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
    """Return what git prints; None without git, outside a checkout, or in one without a commit."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Nothing is stripped: a patch may end in blanks, and have lines that end in CR LF.
    return result.stdout.decode("utf-8", errors="replace") if result.returncode == 0 else None
