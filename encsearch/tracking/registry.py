"""Models in the MLflow registry: register a bundle, move an alias, fetch a bundle back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
from mlflow.exceptions import MlflowException

from encsearch.errors import UserError
from encsearch.redaction import without_secrets
from encsearch.tracking.mlflow import Tracking, answering

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
MAX_NAMED = 10  # names or versions that an error lists


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model; `tags` are those that `register` was given."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


def set_alias(tracking: Tracking, model_name: str, alias: str, version: str) -> str | None:
    """Point `alias` at a version, and `<alias>-previous` at the one that it replaces, which is returned.

    MLflow keeps no history of aliases, so the new version is tagged with the time and what it replaced.
    Raises UserError for an unknown model or version.
    """
    _find_version(tracking, model_name, version)
    replaced = champion(tracking, model_name, alias)
    if replaced and replaced.version == version:
        return None
    client = tracking.client
    with answering(tracking.uri):
        if replaced:
            client.set_registered_model_alias(model_name, f"{alias}-previous", replaced.version)
        client.set_registered_model_alias(model_name, alias, version)
        moved_at = datetime.now(UTC).isoformat(timespec="seconds")
        client.set_model_version_tag(model_name, version, f"{alias}.since", moved_at)
        client.set_model_version_tag(
            model_name, version, f"{alias}.replaced", replaced.version if replaced else "none"
        )
    return replaced.version if replaced else None


def champion(tracking: Tracking, model_name: str, alias: str) -> ModelVersion | None:
    """The version that `alias` points at; None if the model or the alias does not exist."""
    found = [version for version in model_versions(tracking, model_name) if alias in version.aliases]
    return found[0] if found else None


def model_versions(tracking: Tracking, model_name: str) -> list[ModelVersion]:
    """Every version of a registered model, the newest first; none if the model does not exist."""
    with answering(tracking.uri):
        registered = _registered_model(tracking, model_name)
        if registered is None:
            return []
        found = _all_pages(tracking.client.search_model_versions, filter_string=f"name = '{model_name}'")
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
    """The names of all registered models."""
    with answering(tracking.uri):
        return sorted(model.name for model in _all_pages(tracking.client.search_registered_models))


def download_bundle(tracking: Tracking, source: str, folder: Path) -> Path:
    """Fetch the bundle behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN_ID/PATH`.

    Returns the bundle's folder, which lies in `folder`. Raises UserError, naming what exists, for a source
    that does not.
    """
    uri = _resolve(tracking, source)
    with answering(tracking.uri):
        try:
            root = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking.uri, registry_uri=tracking.uri
            )
        except (MlflowException, FileNotFoundError) as error:
            if source.startswith("runs:/"):
                raise UserError(f"{source}: the run has no such artifact") from None
            raise error
    weights = list(Path(root).rglob(WEIGHTS_FILE))
    if len(weights) != 1:
        raise UserError(f"{source}: holds {len(weights)} files {WEIGHTS_FILE}, but a model bundle has one")
    return weights[0].parent


def _registered_model(tracking: Tracking, name: str) -> Any:
    try:
        return tracking.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _resolve(tracking: Tracking, source: str) -> str:
    """Where the artifacts lie; MLflow 3.17 would look "models:/" up in its global store, not the client's."""
    if re.fullmatch(r"runs:/[^/]+/.+", source):
        return source
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/]+)|/(\d+))", source)
    if parts is None:
        raise UserError(
            f"{source}: not a model source; use models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/PATH"
            " or a bundle's folder"
        )
    name, alias, version = parts.groups()
    found = _find_version(tracking, name, version) if version else _find_alias(tracking, name, alias)
    with answering(tracking.uri):
        return str(tracking.client.get_model_version_download_uri(name, found.version))


def _find_version(tracking: Tracking, name: str, version: str) -> ModelVersion:
    versions = _existing_versions(tracking, name)
    found = next((v for v in versions if v.version == version), None)
    if found is None:
        listed = _some([v.version for v in versions])
        raise UserError(f"model {name} has no version {version}; its versions are {listed}")
    return found


def _find_alias(tracking: Tracking, name: str, alias: str) -> ModelVersion:
    versions = _existing_versions(tracking, name)
    found = next((v for v in versions if alias in v.aliases), None)
    if found is None:
        listed = _some([f"{a} (version {v.version})" for v in versions for a in v.aliases])
        raise UserError(f"model {name} has no alias {alias}; its aliases are {listed}")
    return found


def _existing_versions(tracking: Tracking, name: str) -> list[ModelVersion]:
    versions = model_versions(tracking, name)
    if not versions:
        listed = _some(model_names(tracking))
        where = without_secrets(tracking.uri)
        raise UserError(f"MLflow at {where} has no model {name} with a version; its models are {listed}")
    return versions


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED]) or "none"
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _all_pages(search: Any, **arguments: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found
