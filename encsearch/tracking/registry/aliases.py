"""Moving an alias by the log of decisions, so that any number of processes may do it, and die, at any moment.

Nobody waits for anybody. A decision is appended, and where it stands in the log says whether it holds. Then
the alias is set to what the log says last, and the log is read again: if it went on meanwhile, the alias is
set again. So whoever writes the alias last has read the log after it, and alias and log agree once all are
done. A process that dies in between leaves a note on the entry, and the next one finishes what the log says.
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
    """One model in a registry. A call is done whole or not at all, and seen by all who read after it."""

    def log(self) -> Log:
        """Every decision, in order."""

    def append(self, draft: Draft) -> int:
        """Add a decision; returns its number, which is higher than any before and is given once."""

    def note_writer(self, number: int, writer: str, followed: bool) -> None:
        """Write down on an entry that `writer` sets out to make the alias follow it, or has."""

    def holder(self, alias: str) -> str | None:
        """The version that the alias points at."""

    def set_holder(self, alias: str, version: str | None) -> None:
        """Point the alias at a version that exists; None deletes it."""

    def versions(self) -> Collection[str]:
        """Those that exist."""


@dataclass(frozen=True)
class Settled:
    """An alias and its log in agreement, and what had to be done for it, as sentences for people."""

    state: AliasState
    done: tuple[str, ...] = ()

    @contextmanager
    def report_done(self) -> Iterator[None]:
        """A refusal inside the block tells what was done before it, too: the alias may have moved."""
        try:
            yield
        except UserError as error:
            if not self.done:
                raise
            raise type(error)(f"{error} (before that: {'; '.join(self.done)})") from None


@dataclass(frozen=True)
class Moved:
    """What became of a decision: its number, whether it was effective, and the alias as it is now."""

    number: int
    won: bool
    state: AliasState

    @property
    def since(self) -> tuple[str, ...]:
        """What has happened to the alias since it was moved, as sentences for people."""
        if not self.won or self.state.head == self.number:
            return ()
        return (f"decision {self.state.head} has moved {self.state.alias} on to {self.holder} since",)

    @property
    def holder(self) -> str:
        return f"version {self.state.version}" if self.state.version else "no version"


def settle(registry: Registry, alias: str) -> Settled:
    """Bring alias and log together before anything is decided on them.

    What the log says and nobody finished is finished. If somebody moved the alias by hand, the log is made to
    say so.
    """
    done: list[str] = []
    log = registry.log()
    while True:
        # The log is read before the alias: a move that is in between is then newer than what an adoption is
        # based on, which makes that ineffective.
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
        # A writer may have come and gone while the alias was read: that is no hand.
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
    """Append a decision that moves its alias, and make the alias follow if it is effective."""
    number = registry.append(draft)
    log = registry.log()
    won = number in {entry.number for entry in resolve(log, draft.alias).moves}
    if won:
        log = _follow(registry, log, draft.alias, draft.signature.id)
    return Moved(number, won, resolve(log, draft.alias))


def sign() -> Signature:
    """Of this user, here and now."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = f"uid {os.getuid()}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Signature(uuid.uuid4().hex, now, who, socket.gethostname())


def _follow(registry: Registry, log: Log, alias: str, writer: str) -> Log:
    """Set the alias to what the log says until it says so still afterwards; returns the log as read then."""
    entered: list[int] = []
    while True:
        state = resolve(log, alias)
        if state.version and state.version not in registry.versions():
            return log  # somebody deleted it, which the next `settle` adopts
        if writer not in state.moves[-1].writers:
            registry.note_writer(state.head, writer, followed=False)
        entered.append(state.head)
        _set_previous(registry, state)
        registry.set_holder(alias, state.version)
        log = registry.log()
        if resolve(log, alias).head == state.head:
            break
    # The last one first: a death in between must not leave it looking as if nobody had followed it.
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
