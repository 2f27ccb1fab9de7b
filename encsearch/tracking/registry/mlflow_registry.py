"""The log of decisions in MLflow: a second registered model, NAME.decisions, one version for each decision.

MLflow numbers the versions of a model in one transaction and never reuses a number, so they are an
append-only log in a total order, on SQLite, on PostgreSQL and through a server (read in MLflow 3.17:
`create_model_version` of its SQLAlchemy store takes the highest number, of deleted versions too, plus one,
under a primary key, and tries again when another transaction was first).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from encsearch.config import DECISIONS_SUFFIX
from encsearch.errors import PreflightError
from encsearch.tracking.mlflow import Tracking, call_with_retries
from encsearch.tracking.registry.decisions import (
    FOLLOWED,
    ID_TAG,
    SETTING_OUT,
    WRITER_TAG,
    Draft,
    Entry,
    Log,
    description,
    from_tags,
    to_tags,
)
from encsearch.tracking.registry.versions import fetch_all_pages, model_versions, registered_model

# A version must have a source, and a server refuses paths and the addresses of its own artifacts.
SOURCE = "decision:/none"


@dataclass(frozen=True)
class MlflowRegistry:
    """`aliases.Registry` in MLflow. Each call is retried for a minute, then raises PreflightError."""

    tracking: Tracking
    model: str

    @property
    def decisions(self) -> str:
        return f"{self.model}{DECISIONS_SUFFIX}"

    def log(self) -> Log:
        return call_with_retries(self.tracking.uri, self._read_log)

    def append(self, draft: Draft) -> int:
        """A call that fails may have stored the draft, so every try looks for it first."""
        call_with_retries(self.tracking.uri, self._ensure_log)

        def create() -> int:
            for entry in self._read_log():
                if entry.draft.signature.id == draft.signature.id:
                    return entry.number
            created = self.tracking.client.create_model_version(
                self.decisions,
                SOURCE,
                tags=to_tags(draft),
                description=description(draft),
                await_creation_for=0,
            )
            return int(created.version)

        return call_with_retries(self.tracking.uri, create)

    def note_writer(self, number: int, writer: str, followed: bool) -> None:
        tag, value = f"{WRITER_TAG}{writer}", FOLLOWED if followed else SETTING_OUT
        client = self.tracking.client
        call_with_retries(
            self.tracking.uri, lambda: client.set_model_version_tag(self.decisions, str(number), tag, value)
        )

    def holder(self, alias: str) -> str | None:
        found = call_with_retries(self.tracking.uri, lambda: registered_model(self.tracking, self.model))
        version = found.aliases.get(alias) if found else None
        return None if version is None else str(version)

    def set_holder(self, alias: str, version: str | None) -> None:
        client = self.tracking.client
        if version is not None:
            call_with_retries(
                self.tracking.uri, lambda: client.set_registered_model_alias(self.model, alias, version)
            )
        elif self.holder(alias) is not None:
            call_with_retries(
                self.tracking.uri, lambda: client.delete_registered_model_alias(self.model, alias)
            )

    def versions(self) -> Collection[str]:
        found = call_with_retries(self.tracking.uri, lambda: model_versions(self.tracking, self.model))
        return {version.version for version in found}

    def _read_log(self) -> Log:
        versions = fetch_all_pages(
            self.tracking.client.search_model_versions,
            filter_string=f"name = '{self.decisions}'",
            max_results=1000,
            # By default MLflow sorts by the time of the last change, so a version could slip between pages.
            order_by=["version_number ASC"],
        )
        return tuple(self._entry(int(v.version), v.tags) for v in versions if ID_TAG in v.tags)

    def _entry(self, number: int, tags: Mapping[str, str]) -> Entry:
        try:
            return from_tags(number, tags)
        except (KeyError, ValueError, TypeError) as error:
            raise PreflightError(
                f"{self.decisions} version {number}: no decision that this encsearch can read ({error!r}); "
                "repair its tags in MLflow, or delete that version, which leaves a hole in the log"
            ) from None

    def _ensure_log(self) -> None:
        if registered_model(self.tracking, self.decisions) is None:
            text = f"The decisions on {self.model}, one a version; written by encsearch, never changed."
            try:
                self.tracking.client.create_registered_model(self.decisions, description=text)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
