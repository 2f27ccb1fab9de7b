"""Fetch models from where they are kept: a bundle's folder, the registry, or a run."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from encsearch.config import with_overrides
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, Unfinished, read_bundle, unfinished_model, write_bundle
from encsearch.inference.predictor import Predictor
from encsearch.reports import SUMMARY_FILE, job_kind, read_summary
from encsearch.tracking.uris import existing_store


def load(
    source: str | Path, device: str = "cpu", overrides: Sequence[str] = (), batch_size: int = 8
) -> Predictor:
    """Load a model, ready to predict; see `fetch_bundle` and `Predictor`."""
    return Predictor(fetch_bundle(source, overrides), device, batch_size)


def fetch_bundle(source: str | Path, overrides: Sequence[str] = ()) -> Bundle:
    """Read a model from a job's folder (its best one), a bundle's folder, or MLflow.

    `overrides` change the eval section of its recipe.

    A training that has not finished gives its best checkpoint, which `describe_unfinished` says; a sweep or
    an ablation gives none before its end.
    MLflow's sources are "models:/NAME@ALIAS", "models:/NAME/VERSION" and "runs:/RUN_ID/PATH";
    MLFLOW_TRACKING_URI names the store. Raises UserError for a source that does not exist and for other
    paths, since the model is trained, PreflightError for a store that cannot be used or, if it is an SQLite
    file, is absent: reading creates none.
    """
    for item in overrides:
        if not item.startswith("eval."):
            raise UserError(f"{item}: the model is trained; only paths below eval. can be changed now")
    with bundle_folder(source) as folder:
        bundle = read_bundle(folder)
    return replace(bundle, config=with_overrides(bundle.config, overrides)) if overrides else bundle


def describe_unfinished(source: str | Path) -> str | None:
    """What is used of a training that has not finished, for people; None for any other source."""
    folder = Path(source)
    if (folder / SUMMARY_FILE).is_file() or not job_kind(folder):
        return None
    found = _unfinished(folder)
    note = (
        f"{folder}: the training has not finished; its best checkpoint so far is of epoch {found.best.epoch}"
    )
    if found.lost:
        note += f"; epoch {found.lost.epoch} scored higher, but its checkpoint is damaged or missing"
    return note


def _unfinished(folder: Path) -> Unfinished:
    kind = job_kind(folder)
    if kind != "training":
        raise UserError(f"{folder}: the {kind} has not finished; go on with `encsearch resume {folder}`")
    found = unfinished_model(folder)
    if found is None:
        raise UserError(
            f"{folder}: no epoch of the training is complete; go on with `encsearch resume {folder}`"
        )
    return found


@contextmanager
def bundle_folder(source: str | Path) -> Iterator[Path]:
    """Yield the folder of a model's bundle, kept until the block ends. Raises as `fetch_bundle` does."""
    if not str(source).startswith(("models:/", "runs:/")):
        folder = Path(source)
        if (folder / SUMMARY_FILE).is_file():
            yield folder / read_summary(folder).bundle
        elif job_kind(folder):
            with tempfile.TemporaryDirectory() as scratch:
                write_bundle(_unfinished(folder).bundle, Path(scratch) / "bundle")
                yield Path(scratch) / "bundle"
        else:
            yield folder
        return
    uri = existing_store()
    # Importing mlflow costs seconds, which a folder need not pay.
    from encsearch.tracking.mlflow import connect
    from encsearch.tracking.registry.versions import download_bundle

    # Every store has "Default": loading must not create an experiment.
    tracking = connect(uri, experiment="Default")
    with tempfile.TemporaryDirectory() as scratch:
        yield download_bundle(tracking, str(source), Path(scratch))
