"""`encsearch promote`: score the candidate and the champion on the same data, decide, move the alias."""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from encsearch.bundle import Bundle, read_bundle
from encsearch.config import with_values
from encsearch.errors import GateRefusedError
from encsearch.evaluation import score_bundle, unchanged_store
from encsearch.tracking.links import model_link, ui_base
from encsearch.tracking.mlflow import Tracking, check_run, connect
from encsearch.tracking.packaging import register
from encsearch.tracking.promotion import Candidate, Decision, decide
from encsearch.tracking.registry import champion, download_bundle, set_alias
from encsearch.tracking.uris import existing_store
from encsearch.workflow.folder import read_summary

RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Promoted:
    """The version that the alias now points at, its page, and the figures that the decision was made on."""

    model: str
    version: str
    alias: str
    uri: str
    link: str
    replaced: str | None
    reasons: tuple[str, ...]


def promote(source: str, *, alias: str | None = None, store: str | None = None) -> Promoted:
    """Promote the best model of a finished sweep or training if the gate of its recipe lets it pass.

    `source` is the job's folder or the MLflow run id of a training or finalist. Candidate and champion are
    both scored on the validation split of `store`; by default it is the one that the candidate was trained
    on, which must hold the same data still. Raises UserError for a bad alias or a store that was changed, and
    GateRefusedError with the figures when the candidate is refused; then nothing was registered.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tracking, run_id, folder = _find(source, Path(scratch))
        check_run(tracking, run_id)
        candidate = read_bundle(folder)
        config = with_values(candidate.config, {} if alias is None else {"promote.alias": alias})
        settings, alias = config.promote, config.promote.alias
        store = store or unchanged_store(candidate)
        current = champion(tracking, settings.model_name, alias)
        rival = None
        if current:
            uri = f"models:/{current.name}/{current.version}"
            bundle = read_bundle(download_bundle(tracking, uri, Path(scratch) / "champion"))
            rival = _scored(bundle, current.run_id, store, config.data.val_split, current.version)
        decision: Decision = decide(
            _scored(candidate, run_id, store, config.data.val_split), rival, settings.margin
        )
        if not decision.promote:
            raise GateRefusedError(f"{source} is not promoted to {alias}: {'; '.join(decision.reasons)}")
        tags = {"data.fingerprint": candidate.fingerprint, "encsearch.reasons": "; ".join(decision.reasons)}
        tags |= {name: f"{value:.6g}" for name, value in candidate.metrics.items() if name.startswith("mIoU")}
        version = register(tracking, run_id, folder, settings.model_name, tags)
        replaced = set_alias(tracking, settings.model_name, alias, version)
    uri = f"models:/{settings.model_name}@{alias}"
    link = model_link(ui_base(tracking.uri), settings.model_name, version)
    return Promoted(settings.model_name, version, alias, uri, link, replaced, decision.reasons)


def _find(source: str, scratch: Path) -> tuple[Tracking, str, Path]:
    """The tracking store, the MLflow run and the bundle that `source` stands for."""
    if RUN_ID.fullmatch(source):
        tracking = connect(existing_store())
        return tracking, source, download_bundle(tracking, f"runs:/{source}/bundle", scratch / "candidate")
    summary = read_summary(Path(source))
    # The recorded URI holds no password; the environment's may.
    tracking = connect(existing_store(os.environ.get("MLFLOW_TRACKING_URI") or summary.tracking_uri))
    return tracking, summary.run_id, Path(source) / summary.bundle


def _scored(bundle: Bundle, run_id: str, store: str, split: str, version: str | None = None) -> Candidate:
    result = score_bundle(bundle, store, split)
    return Candidate(run_id=run_id, mean_iou=result.mean_iou, version=version)
