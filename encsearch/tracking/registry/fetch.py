"""Fetch models from where they are kept: a bundle's folder, the registry, or a run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle, read_bundle, unfinished_model, write_bundle
from encsearch.inference.predictor import Predictor
from encsearch.reports import SUMMARY_FILE, Report, read_summary
from encsearch.tracking.uris import existing_store
from encsearch.train.checkpoint_files import CHECKPOINTS


def load(source: str | Path, device: str = "cpu") -> Predictor:
    """Load a model, ready to predict, from a source that `fetch_bundle` takes."""
    return Predictor(fetch_bundle(source), device)


def fetch_bundle(source: str | Path) -> Bundle:
    """Read a model from a job's folder (its best one), a bundle's folder, or MLflow.

    A training that has not finished gives its best checkpoint, which `describe_unfinished` says.
    MLflow's sources are "models:/NAME@ALIAS", "models:/NAME/VERSION" and "runs:/RUN_ID/PATH";
    MLFLOW_TRACKING_URI names the store. Raises UserError for a source that does not exist, PreflightError for
    a store that cannot be used or, if it is an SQLite file, is absent: reading creates none.
    """
    with bundle_folder(source) as folder:
        return read_bundle(folder)


def describe_unfinished(source: str | Path) -> str | None:
    """What is used of a training that has not finished, for people; None for any other source."""
    folder = Path(source)
    if (folder / SUMMARY_FILE).is_file() or not (folder / CHECKPOINTS).is_dir():
        return None
    _, best = _unfinished(folder)
    return f"{folder}: the training has not finished; its best checkpoint so far is of epoch {best.epoch}"


def _unfinished(folder: Path) -> tuple[Bundle, Report]:
    found = unfinished_model(folder)
    if found is None:
        raise UserError(
            f"{folder}: the training has no checkpoint yet; go on with `encsearch resume {folder}`"
        )
    return found


@contextmanager
def bundle_folder(source: str | Path) -> Iterator[Path]:
    """Yield the folder of a model's bundle, kept until the block ends. Raises as `fetch_bundle` does."""
    if not str(source).startswith(("models:/", "runs:/")):
        folder = Path(source)
        if (folder / SUMMARY_FILE).is_file():
            yield folder / read_summary(folder).bundle
        elif (folder / CHECKPOINTS).is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                write_bundle(_unfinished(folder)[0], Path(scratch) / "bundle")
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
