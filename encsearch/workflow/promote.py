"""`encsearch promote` and `rollback`.

A promotion scores the candidate and the champion on the same images, decides, and moves the alias; a rollback
moves it back to the previous version, or to a named one.
"""

import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from encsearch.config import Config, PromoteConfig, check_alias, with_overrides
from encsearch.data.store import Store
from encsearch.errors import GateRefusedError, PreflightError, UserError
from encsearch.inference.bundle import Bundle, find_device, read_bundle, weights_digest
from encsearch.inference.evaluation import (
    count_images,
    find_own_metric,
    median_latencies_ms,
    open_same_store,
    score_counts,
)
from encsearch.redaction import without_user
from encsearch.reports import read_summary
from encsearch.text import format_count
from encsearch.tracking.browse.links import model_link, run_link, ui_base
from encsearch.tracking.browse.rows import PARENT_TAG
from encsearch.tracking.mlflow import Tracking, check_run, connect, translate_failures
from encsearch.tracking.outbox.forward import read_sent
from encsearch.tracking.outbox.notices import check_address, send_notice
from encsearch.tracking.outbox.record import NOTE_TAG
from encsearch.tracking.registry.aliases import Moved, Settled, move, settle, sign
from encsearch.tracking.registry.decisions import AliasState, Draft, count_looks, resolve
from encsearch.tracking.registry.fetch import bundle_folder, describe_unfinished
from encsearch.tracking.registry.gate import (
    Candidate,
    Figure,
    GateDecision,
    check_floors,
    class_ious,
    decide,
)
from encsearch.tracking.registry.mlflow_registry import MlflowRegistry
from encsearch.tracking.registry.packaging import WEIGHTS_TAG, register
from encsearch.tracking.registry.versions import (
    download_bundle,
    existing_versions,
    find_version,
    model_versions,
)
from encsearch.tracking.uris import RUN_ID, existing_store

OVERTAKEN_TAG = "encsearch.overtaken"


@dataclass(frozen=True)
class NewHolder:
    """The version that an alias now points at, its page and store, the reasons; a rollback has no figures.

    `decision` is the decision's number in the log; `notes` list what had to be finished or adopted first, and
    what came right after.
    """

    model: str
    version: str
    alias: str
    uri: str
    link: str
    store: str
    replaced: str | None
    decision: int
    figures: dict[str, float]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def promote(
    source: str,
    *,
    alias: str | None = None,
    store: str | None = None,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
) -> NewHolder:
    """Promote the best model of a job if the gate of its recipe lets it pass.

    `source` is the job's folder or the MLflow run id of a training or finalist; a training that has not
    finished stands for its best checkpoint, see `describe_unfinished`. Candidate and champion are
    both scored on the validation split of `store`; by default it is the one that the candidate was trained
    on, whose data must be unchanged. `overrides` change the recipe's promote section. Every decision is
    appended to the log of the model. Raises UserError for bad input, a changed store or different classes,
    and GateRefusedError with all reasons when the candidate is refused, or when another decision came first.
    """
    check_address()
    with tempfile.TemporaryDirectory() as scratch:
        tracking, run_id, folder = _find(source, Path(scratch))
        check_run(tracking, run_id)
        bundle = read_bundle(folder)
        gate = _gate(bundle.config, alias, overrides)
        check_floors(gate, bundle.info.classes)
        model = _Model(bundle, run_id, weights_digest(folder), None)
        registry = MlflowRegistry(tracking, gate.model_name)
        settled = settle(registry, gate.alias)
        with settled.report_done():
            champion = _champion(registry, settled.state, Path(scratch) / "champion")
            judged = _judge(model, champion, Store(store) if store else open_same_store(bundle), gate, device)
            draft = _draft(judged, settled.state, registry, run_id)
            if not judged.decision.promote:
                registry.append(draft)
                reasons = "; ".join(draft.reasons)
                raise GateRefusedError(f"{source} is not promoted to {gate.alias}: {reasons}")
            target = _version(registry, draft, folder, model.weights)
            draft = replace(draft, verdict="promoted", target=target)
            moved = move(registry, draft)
            if not moved.won:
                _mark_overtaken(registry, draft, moved)
                raise GateRefusedError(
                    f"{source} is not promoted to {gate.alias}: {moved.holder} came meanwhile"
                    f" (decision {moved.state.head}); promote again to compare with that"
                )
    holder = _new_holder(registry, draft, moved, settled)
    _link_from_parent(registry, draft.run_id, holder.version)
    # The decision stands, and a person may be waiting: one try.
    body = f"{holder.uri} is now version {holder.version}: {'; '.join(holder.reasons)}\n{holder.link}"
    send_notice(f"{holder.model} has a new {holder.alias}", body, tries=1)
    return holder


@dataclass(frozen=True)
class _Model:
    bundle: Bundle
    run_id: str
    weights: str
    version: str | None


@dataclass(frozen=True)
class _Judged:
    """A decision and the data that it was made on."""

    decision: GateDecision
    fingerprint: str
    split: str
    alias: str
    figures: dict[str, float] = field(default_factory=dict)


def rollback(model: str, *, alias: str = "champion", version: str | None = None) -> NewHolder:
    """Point the alias at `version`, by default at its previous holder.

    There is no gate: a rollback is a person's decision. Raises UserError for a model or a
    version that does not exist, and when there is nothing to go back to; GateRefusedError when another
    decision came first.
    """
    check_alias(model, alias)
    tracking = connect(existing_store(), experiment="Default")
    existing_versions(tracking, model)
    registry = MlflowRegistry(tracking, model)
    settled = settle(registry, alias)
    with settled.report_done():
        target = _target(tracking, registry, settled.state, version)
        reason = f"back to version {target}, {'as named' if version else 'the one before'}"
        state = settled.state
        draft = Draft(sign(), "rolled back", alias, state.version, target, state.head, reasons=(reason,))
        moved = move(registry, draft)
        if not moved.won:
            raise GateRefusedError(
                f"{model}@{alias} is not rolled back: {moved.holder} came meanwhile"
                f" (decision {moved.state.head}); look at it with `encsearch models {model}`"
            )
    return _new_holder(registry, draft, moved, settled)


def _find(source: str, scratch: Path) -> tuple[Tracking, str, Path]:
    """The tracking store, the MLflow run and the bundle that `source` stands for."""
    if RUN_ID.fullmatch(source):
        tracking = connect(existing_store())
        return tracking, source, download_bundle(tracking, f"runs:/{source}/bundle", scratch / "candidate")
    job = Path(source).absolute()
    if describe_unfinished(job):
        with bundle_folder(job) as bundle:
            folder = Path(shutil.copytree(bundle, scratch / "candidate"))
        sent = read_sent(job)
        run_id, uri = sent.runs.get(job.name), sent.uri
    else:
        summary = read_summary(job)
        folder = job / summary.bundle
        # A job that ended while the store was away has no run id; its record has it once it is sent.
        run_id, uri = summary.run_id or read_sent(job).runs.get(summary.run), summary.tracking_uri
    if run_id is None:
        raise UserError(f"{source}: its record is not in MLflow yet; send it with `encsearch sync {source}`")
    # The recorded URI holds no password; the environment's may.
    return connect(existing_store(os.environ.get("MLFLOW_TRACKING_URI") or uri)), run_id, folder


def _gate(config: Config, alias: str | None, overrides: tuple[str, ...]) -> PromoteConfig:
    for item in overrides:
        if not item.startswith("promote."):
            raise UserError(f"{item}: the model is trained; only paths below promote. can be changed now")
    named = (f"promote.alias={alias}",) if alias else ()
    return with_overrides(config, (*overrides, *named)).promote


def _champion(registry: MlflowRegistry, state: AliasState, scratch: Path) -> _Model | None:
    if state.version is None:
        return None
    found = find_version(registry.tracking, registry.model, state.version)
    folder = download_bundle(registry.tracking, f"models:/{registry.model}/{state.version}", scratch)
    return _Model(read_bundle(folder), found.run_id, weights_digest(folder), state.version)


def _judge(model: _Model, champion: _Model | None, store: Store, gate: PromoteConfig, device: str) -> _Judged:
    """Score both on the validation split of the candidate's recipe, and decide."""
    split = model.bundle.config.data.val_split
    dataset = store.split(split)
    models = [model, champion] if champion else [model]
    latencies_ms: list[float | None] = [None] * len(models)
    place = ""
    if gate.latency_limit_ms is not None:
        device = str(find_device(device))  # the decision is kept, and "auto" would say nothing
        latencies_ms = [*median_latencies_ms([each.bundle for each in models], dataset, device)]
        height, width = dataset[0].mask.shape
        threads = format_count(torch.get_num_threads(), "thread")
        place = f"{socket.gethostname()} ({device}, {threads}, {width}x{height} px)"
    # Both by the candidate's metric: another version of it would be another figure.
    own = find_own_metric(model.bundle) if gate.figure == "metric" else None
    # The same batch size for both, so that the batches come in the same order.
    count = partial(
        count_images,
        store=store,
        split=split,
        device=device,
        batch_size=model.bundle.config.train.val_batch_size,
        own=own[1] if own else None,
    )
    seen = []
    for each, latency_ms in zip(models, latencies_ms, strict=True):
        counts = count(each.bundle)
        seen.append(Candidate(each.run_id, each.weights, counts.pixels, each.version, latency_ms, counts.own))
    classes = store.info.classes
    champion_seen = seen[1] if champion else None
    figure = Figure(own[0], partial(score_counts, *own)) if own else None
    decision = decide(seen[0], champion_seen, classes, gate, place, model.bundle.untrained, figure)
    figures = {"mIoU": decision.mean_iou}
    if own and decision.own is not None:
        figures[own[0]] = decision.own
    if decision.gain:
        figures |= {"gain": decision.gain.value, "gain.lower": decision.gain.lower}
    figures |= {f"IoU/{classes[index]}": iou for index, iou in class_ious(seen[0].pixels.sum(axis=0)).items()}
    return _Judged(decision, store.fingerprint, split, gate.alias, figures)


def _draft(judged: _Judged, state: AliasState, registry: MlflowRegistry, run_id: str) -> Draft:
    """Draft the decision as a refusal, which moves nothing."""
    earlier = count_looks(registry.log(), judged.fingerprint, judged.split)
    data = f"data {judged.fingerprint[:12]}, split {judged.split}"
    note = f"{data}, on which {format_count(earlier, 'candidate')} had been judged before"
    return Draft(
        signature=sign(),
        verdict="refused",
        alias=judged.alias,
        source=state.version,
        target=None,
        based_on=state.head,
        run_id=run_id,
        fingerprint=judged.fingerprint,
        split=judged.split,
        looks=earlier,
        figures=judged.figures,
        reasons=(*judged.decision.reasons, note),
    )


def _version(registry: MlflowRegistry, draft: Draft, folder: Path, weights: str) -> str | None:
    """The candidate's version, registered if necessary; None if another decision came first."""
    if resolve(registry.log(), draft.alias).head != draft.based_on:
        return None
    for version in model_versions(registry.tracking, registry.model):
        if (version.run_id, version.tags.get(WEIGHTS_TAG)) == (draft.run_id, weights):
            return version.version
    tags = {"data.fingerprint": draft.fingerprint}
    tags |= {"encsearch.reasons": "; ".join(draft.reasons), "mIoU": f"{draft.figures['mIoU']:.6g}"}
    return register(registry.tracking, draft.run_id, folder, registry.model, tags)


def _link_from_parent(registry: MlflowRegistry, run_id: str, version: str) -> None:
    """Link the model in the description of the sweep or ablation whose run it came from."""
    client = registry.tracking.client
    with suppress(PreflightError), translate_failures(registry.tracking.uri):  # the decision stands without
        parent_id = client.get_run(run_id).data.tags.get(PARENT_TAG)
        if parent_id is None:
            return
        parent = client.get_run(parent_id)
        run = run_link("", parent.info.experiment_id, run_id).lstrip("/")
        model = model_link("", registry.model, version).lstrip("/")
        link = f"Model: [{registry.model}, version {version}]({model}), of [this run]({run})."
        note = parent.data.tags.get(NOTE_TAG, "")
        if note.startswith("Model: "):  # of the promotion before
            note = note.partition("\n\n")[2]
        client.set_tag(parent_id, NOTE_TAG, f"{link}\n\n{note}".rstrip())


def _mark_overtaken(registry: MlflowRegistry, draft: Draft, moved: Moved) -> None:
    if draft.target:
        with translate_failures(registry.tracking.uri):
            registry.tracking.client.set_model_version_tag(
                registry.model, draft.target, OVERTAKEN_TAG, f"by decision {moved.state.head}"
            )


def _new_holder(registry: MlflowRegistry, draft: Draft, moved: Moved, settled: Settled) -> NewHolder:
    assert draft.target, "an effective decision has a version"
    return NewHolder(
        model=registry.model,
        version=draft.target,
        alias=draft.alias,
        uri=f"models:/{registry.model}@{draft.alias}",
        link=model_link(ui_base(registry.tracking.uri), registry.model, draft.target),
        store=without_user(registry.tracking.uri),
        replaced=draft.source,
        decision=moved.number,
        figures=dict(draft.figures),
        reasons=draft.reasons,
        notes=(*settled.done, *moved.since),
    )


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
