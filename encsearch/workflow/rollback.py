"""`encsearch rollback`: move an alias back to the version before, or to one that is named."""

from dataclasses import dataclass

from encsearch.config import check_alias
from encsearch.errors import GateRefusedError, UserError
from encsearch.tracking.champions import MlflowRegistry
from encsearch.tracking.decisions import AliasState, Draft
from encsearch.tracking.links import model_link, ui_base
from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.moves import move, settle, sign
from encsearch.tracking.registry import existing_versions, find_version
from encsearch.tracking.uris import existing_store


@dataclass(frozen=True)
class RolledBack:
    """The version that the alias now points at, the one before, and the number of the decision.

    `notes` are those of `Promoted`.
    """

    model: str
    version: str
    alias: str
    uri: str
    link: str
    replaced: str | None
    decision: int
    notes: tuple[str, ...]


def rollback(model: str, *, alias: str = "champion", version: str | None = None) -> RolledBack:
    """Point the alias at `version`, by default at the one that held it before the present one.

    No gate is asked: a rollback is what people do when they know better. Raises UserError for a model or a
    version that does not exist, and when there is nothing to go back to; GateRefusedError when another
    decision came first.
    """
    check_alias(model, alias)
    tracking = connect(existing_store(), experiment="Default")
    existing_versions(tracking, model)
    registry = MlflowRegistry(tracking, model)
    settled = settle(registry, alias)
    with settled.told():
        target = _target(tracking, registry, settled.state, version)
        reason = f"back to version {target}, {'as named' if version else 'the one before'}"
        state = settled.state
        moved = move(
            registry,
            Draft(sign(), "rolled back", alias, state.version, target, state.head, reasons=(reason,)),
        )
        if not moved.won:
            raise GateRefusedError(
                f"{model}@{alias} is not rolled back: {moved.holder} came meanwhile"
                f" (decision {moved.state.head}); look at it with `encsearch models {model}`"
            )
    link = model_link(ui_base(tracking.uri), model, target)
    uri = f"models:/{model}@{alias}"
    notes = (*settled.done, *moved.since)
    return RolledBack(model, target, alias, uri, link, state.version, moved.number, notes)


def _target(tracking: Tracking, registry: MlflowRegistry, state: AliasState, version: str | None) -> str:
    if version is None:
        before = state.previous(registry.versions())
        if before is None:
            now = f"version {state.version}" if state.version else "no version"
            raise UserError(
                f"model {registry.model} has nothing before {now} as {state.alias}; name a version with --to"
            )
        return before
    found = find_version(tracking, registry.model, version).version
    if found == state.version:
        raise UserError(f"version {found} of model {registry.model} is the {state.alias} already")
    return found
