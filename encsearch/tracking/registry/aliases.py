"""Move an alias by the log of decisions; any number of processes may do so, and die, at any moment.

No process waits for another. It appends a decision, whose place in the log says whether it takes effect. Then
it sets the alias to the version that the log ends with and reads the log again: if the log went on meanwhile,
it sets the alias again. So whoever writes the alias last has read the log since, and alias and log agree once
all are done. A process that dies in between leaves a note on the entry, and the next one finishes the move.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from encsearch.config import PREVIOUS_SUFFIX
from encsearch.errors import UserError
from encsearch.tracking.registry.decisions import AliasState, Draft, Log, Signature, next_action, resolve


class Registry(Protocol):
    """One model in a registry. A call takes effect in full or not at all, and later reads see it."""

    def log(self) -> Log:
        """Return every decision, in order."""

    def append(self, draft: Draft) -> int:
        """Add a decision; return its number, which is higher than any before and never used again."""

    def note_writer(self, number: int, writer: str, followed: bool) -> None:
        """Note on an entry that `writer` sets out to make the alias follow it, or has done so."""

    def holder(self, alias: str) -> str | None:
        """Return the version that the alias points at."""

    def set_holder(self, alias: str, version: str | None) -> None:
        """Point the alias at a version that exists; None deletes it."""

    def versions(self) -> Collection[str]:
        """Return the versions that exist."""


@dataclass(frozen=True)
class Settled:
    """An alias that agrees with its log; `done` are sentences about what it took to get there."""

    state: AliasState
    done: tuple[str, ...] = ()

    @contextmanager
    def report_done(self) -> Iterator[None]:
        """Add `done` to the message of a refusal inside the block: the alias may have moved."""
        try:
            yield
        except UserError as error:
            if not self.done:
                raise
            raise type(error)(f"{error} (before that: {'; '.join(self.done)})") from None


@dataclass(frozen=True)
class Moved:
    """The outcome of a decision: its number, whether it took effect, and the alias as it is now."""

    number: int
    won: bool
    state: AliasState

    @property
    def since(self) -> tuple[str, ...]:
        """What has happened to the alias since the move, as sentences for people."""
        if not self.won or self.state.head == self.number:
            return ()
        return (f"decision {self.state.head} has moved {self.state.alias} on to {self.holder} since",)

    @property
    def holder(self) -> str:
        return f"version {self.state.version}" if self.state.version else "no version"


def settle(registry: Registry, alias: str) -> Settled:
    """Make alias and log agree before anything is decided on them.

    An unfinished move of the log is finished. If somebody moved the alias by hand, an entry is added to the
    log.
    """
    done: list[str] = []
    log = registry.log()
    while True:
        # The log must be read before the alias: an adoption is then based on an older entry than any move in
        # between, and has no effect.
        state = resolve(log, alias)
        holder = registry.holder(alias)
        action = next_action(state, holder, registry.versions())
        if action == "nothing":
            return Settled(state, tuple(done))
        if action == "follow":
            log = _follow(registry, log, alias, sign().id)
            done.append(
                f"{alias} had not followed decision {state.head}; it is at version {state.version} now"
            )
            continue
        # A writer may have come and gone while the alias was read: then nobody moved it by hand.
        again = registry.log()
        if again == log:
            number = registry.append(_draft_adoption(state, holder))
            again = registry.log()
            now = resolve(again, alias)
            if now.head == number:
                _set_previous(registry, now)
                done.append(_describe_adoption(state, holder))
        log = again


def move(registry: Registry, draft: Draft) -> Moved:
    """Append a decision that moves its alias; if it takes effect, make the alias follow."""
    number = registry.append(draft)
    log = registry.log()
    won = number in {entry.number for entry in resolve(log, draft.alias).moves}
    if won:
        log = _follow(registry, log, draft.alias, draft.signature.id)
    return Moved(number, won, resolve(log, draft.alias))


def sign() -> Signature:
    """Return a new signature of this user, here and now."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = f"uid {os.getuid()}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Signature(uuid.uuid4().hex, now, who, socket.gethostname())


def _follow(registry: Registry, log: Log, alias: str, writer: str) -> Log:
    """Set the alias as the log says until a later read of the log says the same; return that log."""
    entered: list[int] = []
    while True:
        state = resolve(log, alias)
        if state.version and state.version not in registry.versions():
            return log  # somebody deleted the version, which the next `settle` adopts
        if writer not in state.moves[-1].writers:
            registry.note_writer(state.head, writer, followed=False)
        entered.append(state.head)
        _set_previous(registry, state)
        registry.set_holder(alias, state.version)
        log = registry.log()
        if resolve(log, alias).head == state.head:
            break
    # The last entry comes first: if this process dies in between, it must not look as if nobody followed it.
    for number in reversed(entered):
        registry.note_writer(number, writer, followed=True)
    return registry.log()


def _set_previous(registry: Registry, state: AliasState) -> None:
    registry.set_holder(f"{state.alias}{PREVIOUS_SUFFIX}", state.previous(registry.versions()))


def _draft_adoption(state: AliasState, holder: str | None) -> Draft:
    how = "deleted in MLflow, or with its version" if holder is None else "moved by hand"
    return Draft(
        sign(), "adopted", state.alias, state.version, holder, state.head, reasons=(f"the alias was {how}",)
    )


def _describe_adoption(state: AliasState, holder: str | None) -> str:
    before = f"version {state.version}" if state.version else "no version"
    if holder is None:
        return f"{state.alias}, which was {before}, was deleted in MLflow; the log says so now"
    return f"{state.alias} was moved by hand from {before} to version {holder}; the log says so now"
