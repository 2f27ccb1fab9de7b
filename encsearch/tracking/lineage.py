"""Where a run comes from, as tags: code, data and the versions of what it runs on."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("encsearch", "torch", "ray", "optuna", "mlflow")


def lineage(fingerprint: str, root: Path) -> dict[str, str]:
    """Tags with the data's fingerprint, the versions and, where `root` lies in a git checkout, its commit."""
    tags = {"data.fingerprint": fingerprint, "version.python": platform.python_version()}
    tags |= {"mlflow.source.name": "encsearch", "mlflow.source.type": "LOCAL"}
    tags |= {f"version.{package}": version(package) for package in PACKAGES}
    return tags | _git_tags(root)


def _git_tags(root: Path) -> dict[str, str]:
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if changes else "false"}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None without git, outside a checkout, or in one without a commit."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
