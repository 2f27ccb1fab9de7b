"""`encsearch models`: the registered versions, the holder of each alias, and the decisions."""

from dataclasses import dataclass

from encsearch.parts import is_part
from encsearch.tracking.mlflow import Tracking, connect
from encsearch.tracking.registry.decisions import (
    Log,
    find_overtaken,
    list_aliases,
    missing_entries,
    next_action,
    resolve,
)
from encsearch.tracking.registry.mlflow_registry import MlflowRegistry
from encsearch.tracking.registry.versions import ModelVersion, existing_versions, model_names, model_versions
from encsearch.tracking.uris import existing_store


@dataclass(frozen=True)
class VersionRow:
    """`since` is the time, by the log, from which the version has held each of its aliases."""

    model: str
    version: str
    aliases: tuple[str, ...]
    since: dict[str, str]
    mean_iou: float | None
    run_id: str


@dataclass(frozen=True)
class DecisionRow:
    """`figure` is what decided, and what the gain is of."""

    number: int
    when: str
    who: str
    host: str
    alias: str
    verdict: str
    source: str | None
    target: str | None
    mean_iou: float | None
    figure: str
    gain: float | None
    gain_lower: float | None
    looks: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Models:
    """`decisions` belong to one model, newest first; `warnings` report where the log and MLflow differ."""

    versions: tuple[VersionRow, ...]
    decisions: tuple[DecisionRow, ...]
    warnings: tuple[str, ...]


def models(name: str | None = None) -> Models:
    """List every model, or the one of that name with its decisions. Reading repairs nothing.

    Raises UserError for a model that has no version.
    """
    tracking = connect(existing_store(), experiment="Default")
    if name is None:
        found = {each: _versions(tracking, each) for each in model_names(tracking)}
        rows = tuple(row for versions, log in found.values() for row in _rows(versions, log))
        warnings = tuple(text for each, pair in found.items() for text in _warnings(each, *pair))
        return Models(rows, (), warnings)
    existing_versions(tracking, name)
    versions, log = _versions(tracking, name)
    return Models(_rows(versions, log), _decisions(log), tuple(_warnings(name, versions, log)))


def _versions(tracking: Tracking, name: str) -> tuple[list[ModelVersion], Log]:
    # The log is read first, or a promotion in between would look like a move by hand.
    log = MlflowRegistry(tracking, name).log()
    return model_versions(tracking, name), log


def _rows(versions: list[ModelVersion], log: Log) -> tuple[VersionRow, ...]:
    states = {alias: resolve(log, alias) for alias in list_aliases(log)}
    return tuple(
        VersionRow(
            model=version.name,
            version=version.version,
            aliases=tuple(sorted(version.aliases)),
            since={
                alias: states[alias].moves[-1].draft.signature.when
                for alias in version.aliases
                if alias in states and states[alias].version == version.version
            },
            mean_iou=_number(version.tags.get("mIoU")),
            run_id=version.run_id,
        )
        for version in versions
    )


def _number(text: str | None) -> float | None:
    """Parse a tag, which people may have written."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _decisions(log: Log) -> tuple[DecisionRow, ...]:
    late = find_overtaken(log)
    return tuple(
        DecisionRow(
            number=entry.number,
            when=entry.draft.signature.when,
            who=entry.draft.signature.who,
            host=entry.draft.signature.host,
            alias=entry.draft.alias,
            verdict=f"{entry.draft.verdict}, overtaken" if entry.number in late else entry.draft.verdict,
            source=entry.draft.source,
            target=entry.draft.target,
            mean_iou=entry.draft.figures.get("mIoU"),
            figure=next(filter(is_part, entry.draft.figures), "mIoU"),
            gain=entry.draft.figures.get("gain"),
            gain_lower=entry.draft.figures.get("gain.lower"),
            looks=entry.draft.looks,
            reasons=entry.draft.reasons,
        )
        for entry in reversed(log)
    )


def _warnings(name: str, versions: list[ModelVersion], log: Log) -> list[str]:
    holders = {alias: version.version for version in versions for alias in version.aliases}
    numbers = [version.version for version in versions]
    found = []
    for alias in list_aliases(log):
        state, holder = resolve(log, alias), holders.get(alias)
        now = f"{name}@{alias} is {f'version {holder}' if holder else 'not set'}"
        action = next_action(state, holder, numbers)
        if action == "follow":
            found.append(
                f"{now}, but decision {state.head} is for version {state.version}; it is running still, or"
                " the next promote or rollback finishes it"
            )
        elif action == "adopt":
            gone = "" if state.version is None or state.version in numbers else ", which was deleted"
            found.append(
                f"{now}, but by the log it is version {state.version or 'none'}{gone}: somebody changed it by"
                " hand; the next promote or rollback records that"
            )
    holes = missing_entries(log)
    if holes:
        found.append(f"{name}: decisions {', '.join(map(str, holes))} of the log were deleted in MLflow")
    return found
