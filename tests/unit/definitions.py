"""The tools that check the files below cluster/, each from a package that the lock names."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]


def run_tool(name: str, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of this environment, whether or not it is on the PATH."""
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, cwd=ROOT)


def render(folder: Path) -> dict[str, dict[str, Any]]:
    """What `kubectl apply -k` would send, by kind. Raises ValueError with what kubectl says."""
    done = run_tool("kubectl", "kustomize", folder)
    if done.returncode:
        raise ValueError(done.stderr)
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def validate_builtin(manifest: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless it has the fields of Kubernetes' own schemas and no others."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
