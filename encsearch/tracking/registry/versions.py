"""Models in the MLflow registry: list their versions, fetch a bundle back. `aliases.py` moves aliases."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
from mlflow.exceptions import MlflowException

from encsearch.config import DECISIONS_SUFFIX
from encsearch.errors import UserError
from encsearch.redaction import without_secrets
from encsearch.tracking.mlflow import Tracking, translate_failures

CODE_TAG = "code.sha256"  # of the own parts' files
BUNDLE_PATH = "artifacts/bundle"  # below a model version, where MLflow puts the pyfunc's artifact "bundle"
MAX_NAMED = 10  # names or versions that an error lists


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model; `tags` were given to `register`."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


def find_champion(tracking: Tracking, model_name: str, alias: str) -> ModelVersion | None:
    """Find the version that `alias` points at; None if the model or the alias does not exist."""
    found = [version for version in model_versions(tracking, model_name) if alias in version.aliases]
    return found[0] if found else None


def model_versions(tracking: Tracking, model_name: str) -> list[ModelVersion]:
    """List every version of a registered model, the newest first; none if the model does not exist."""
    with translate_failures(tracking.uri):
        registered = registered_model(tracking, model_name)
        if registered is None:
            return []
        found = fetch_all_pages(tracking.client.search_model_versions, filter_string=f"name = '{model_name}'")
    aliases: dict[str, list[str]] = {}
    for alias, version in registered.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    versions = [
        ModelVersion(
            model_name, str(v.version), v.run_id or "", dict(v.tags), tuple(aliases.get(str(v.version), ()))
        )
        for v in found
    ]
    return sorted(versions, key=lambda version: int(version.version), reverse=True)


def model_names(tracking: Tracking) -> list[str]:
    """List the names of all registered models, without their logs of decisions."""
    with translate_failures(tracking.uri):
        names = [model.name for model in fetch_all_pages(tracking.client.search_registered_models)]
    return sorted(name for name in names if not name.endswith(DECISIONS_SUFFIX))


def download_bundle(tracking: Tracking, source: str, folder: Path) -> Path:
    """Fetch the bundle behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN_ID/PATH`.

    Returns the bundle's folder, which lies in `folder`. Raises UserError for an unknown source, which lists
    what exists, and for a version with other code than it was registered with.
    """
    uri, version = _resolve(tracking, source)
    with translate_failures(tracking.uri):
        try:
            root = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking.uri, registry_uri=tracking.uri
            )
        except (MlflowException, FileNotFoundError) as error:
            if isinstance(error, MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"{source}: has no model bundle among its artifacts; name another run or version"
            ) from None
    # Imported here, since it imports torch, which takes time and is not needed to list versions.
    from encsearch.inference.bundle import WEIGHTS_FILE, code_digest

    weights = list(Path(root).rglob(WEIGHTS_FILE))
    if len(weights) != 1:
        raise UserError(f"{source}: holds {len(weights)} files {WEIGHTS_FILE}, but a model bundle has one")
    bundle = weights[0].parent
    if version and code_digest(bundle) != (named := version.tags.get(CODE_TAG, "")):
        raise UserError(
            f"{source}: holds code of SHA-256 {code_digest(bundle)[:12] or 'none'}, but version "
            f"{version.version} was registered with {named[:12] or 'none'}; it is not run"
        )
    return bundle


def registered_model(tracking: Tracking, name: str) -> Any:
    """Return MLflow's own record of a model, None if it does not exist. Raises what MLflow raises."""
    try:
        return tracking.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_version(tracking: Tracking, name: str, version: str) -> ModelVersion:
    """Find a version. Raises UserError, which lists what exists, for an unknown model or version."""
    versions = existing_versions(tracking, name)
    found = next((v for v in versions if v.version == version), None)
    if found is None:
        listed = _list_some([v.version for v in versions])
        raise UserError(f"model {name} has no version {version}; its versions are {listed}")
    return found


def existing_versions(tracking: Tracking, name: str) -> list[ModelVersion]:
    """List the versions, the newest first. Raises UserError for a model without one."""
    versions = model_versions(tracking, name)
    if not versions:
        listed = _list_some(model_names(tracking))
        where = without_secrets(tracking.uri)
        raise UserError(f"MLflow at {where} has no model {name} with a version; its models are {listed}")
    return versions


def fetch_all_pages(search: Any, **arguments: Any) -> list[Any]:
    """Return everything that a search of MLflow's client finds, from all pages."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found


def _resolve(tracking: Tracking, source: str) -> tuple[str, ModelVersion | None]:
    """Find the artifacts, and the version that they are of, None for those of a run.

    MLflow 3.17 would look "models:/" up in its global store, not the client's.
    """
    if re.fullmatch(r"runs:/[^/]+/.+", source):
        return source, None
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/]+)|/(\d+))", source)
    if parts is None:
        raise UserError(
            f"{source}: not a model source; use models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/PATH"
            " or a bundle's folder"
        )
    name, alias, version = parts.groups()
    found = find_version(tracking, name, version) if version else _find_alias(tracking, name, alias)
    with translate_failures(tracking.uri):
        root = tracking.client.get_model_version_download_uri(name, found.version)
    # Only the bundle: the model's code beside it is twenty times as many files.
    return f"{root}/{BUNDLE_PATH}", found


def _find_alias(tracking: Tracking, name: str, alias: str) -> ModelVersion:
    versions = existing_versions(tracking, name)
    found = next((v for v in versions if alias in v.aliases), None)
    if found is None:
        listed = _list_some([f"{a} (version {v.version})" for v in versions for a in v.aliases])
        raise UserError(f"model {name} has no alias {alias}; its aliases are {listed}")
    return found


def _list_some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED]) or "none"
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
