"""What the log of decisions on a model says: who holds an alias, who held it before, what is unfinished.

Aliases of MLflow have neither a history nor a compare-and-set, so the log decides and the alias follows.
Every decision is one numbered entry, appended and never changed. An entry that moves an alias names the
entry it is `based_on`: the last one that had moved that alias when it was decided. It takes effect if that
is still the last one when it is appended. So of two that race the one with the lower number wins, and every
reader of the log agrees on that. `aliases.py` acts on the log, docs/promotion.md explains it.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from encsearch.text import format_count

Verdict = Literal["promoted", "refused", "rolled back", "adopted"]

ID_TAG = "id"
WRITER_TAG = "writer."
FOLLOWED, SETTING_OUT = "followed", "setting out"
NO_VERSION = "none"
MAX_DESCRIPTION = 5000  # characters of a version, in MLflow's database
NONE_BEFORE = 0  # the first entry of an alias is based on this number; entries are numbered from 1


@dataclass(frozen=True)
class Signature:
    """Who decides, where and when (UTC).

    `id` is unique: it shows whether an append that failed was stored all the same.
    """

    id: str
    when: str
    who: str
    host: str


@dataclass(frozen=True)
class Draft:
    """A decision to append.

    `source` is the version that has the alias, None for no model; `target` is the version that the alias
    moves to. A refusal has the target None and moves nothing. The target of an adoption is the version that
    somebody moved the alias to by hand, None if the alias was deleted. `looks` counts the earlier decisions
    on the same data and split; the decision was made on `figures`.
    """

    signature: Signature
    verdict: Verdict
    alias: str
    source: str | None
    target: str | None
    based_on: int
    run_id: str = ""
    fingerprint: str = ""
    split: str = ""
    looks: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A decision in the log.

    `writers` maps the processes that set out to make the alias follow to whether they have done so. One that
    has not may have died, or may yet write the alias.
    """

    number: int
    draft: Draft
    writers: Mapping[str, bool] = field(default_factory=dict)

    @property
    def is_followed(self) -> bool:
        """Whether the alias has followed this entry, even if it has moved on since."""
        return any(self.writers.values())

    @property
    def is_open(self) -> bool:
        """Whether a process has set out for this entry and not finished: it may still write, or be dead."""
        return not all(self.writers.values())


Log = tuple[Entry, ...]


@dataclass(frozen=True)
class AliasState:
    """The log's view of one alias: `moves` are the entries that took effect, `head` the number of the last.

    A rollback goes back through `history`: the versions that held the alias, the present one last.
    """

    alias: str
    head: int = NONE_BEFORE
    moves: Log = ()
    history: tuple[str, ...] = ()

    @property
    def version(self) -> str | None:
        return self.moves[-1].draft.target if self.moves else None

    def previous(self, versions: Collection[str]) -> str | None:
        """Return the target of a rollback: the last earlier version among the `versions` that exist."""
        before = self.history[:-1] if self.version else self.history
        return next((version for version in reversed(before) if version in versions), None)


def resolve(log: Log, alias: str) -> AliasState:
    """Follow the log in its order. Entries of other aliases and refusals move nothing.

    An entry that somebody deleted in MLflow leaves a hole. A decision that is based on it shows that it had
    taken effect, so the other entries count as if it were still there.
    """
    ours = [e for e in log if e.draft.alias == alias and e.draft.verdict != "refused"]
    lost = {entry.draft.based_on for entry in ours} - {entry.number for entry in log} - {NONE_BEFORE}
    head = NONE_BEFORE
    moves: list[Entry] = []
    history: list[str] = []
    by_number = {entry.number: entry for entry in ours}
    for number in sorted(by_number.keys() | lost):
        if number in lost:
            head = number
        elif by_number[number].draft.based_on == head:
            head = number
            moves.append(by_number[number])
            _remember(history, by_number[number].draft)
    return AliasState(alias, head, tuple(moves), tuple(history))


def list_aliases(log: Log) -> list[str]:
    return sorted({entry.draft.alias for entry in log})


def find_overtaken(log: Log) -> set[int]:
    """Return the numbers of the entries that were to move an alias, but came after another one."""
    effective = {entry.number for alias in list_aliases(log) for entry in resolve(log, alias).moves}
    return {e.number for e in log if e.draft.verdict != "refused" and e.number not in effective}


def count_looks(log: Log, fingerprint: str, split: str) -> int:
    """Count the candidates that were judged on this set before."""
    judged = [e.draft for e in log if e.draft.verdict in ("promoted", "refused")]
    return sum((draft.fingerprint, draft.split) == (fingerprint, split) for draft in judged)


def missing_entries(log: Log) -> list[int]:
    """List the numbers of entries that were deleted in MLflow, except for those after the last one."""
    numbers = {entry.number for entry in log}
    return [number for number in range(1, max(numbers, default=0)) if number not in numbers]


Action = Literal["nothing", "follow", "adopt"]


def next_action(state: AliasState, holder: str | None, versions: Collection[str]) -> Action:
    """Decide how to make log and alias agree; `holder` has the alias now, `versions` are those that exist.

    The alias must "follow" the log if the last entry was never followed, or if the present holder may come
    from the late write of a process that set out for an earlier entry. Otherwise somebody has moved the alias
    by hand, or deleted the version (with which MLflow drops the alias): the log must "adopt" that.
    """
    if holder == state.version:
        return "nothing" if not state.moves or state.moves[-1].is_followed else "follow"
    if state.version is None or state.version not in versions:
        return "adopt"
    if not state.moves[-1].is_followed or _may_be_late(state, holder):
        return "follow"
    return "adopt"


def to_tags(draft: Draft) -> dict[str, str]:
    """Return the tags of the decision's version in MLflow, the tag of its first writer included."""
    given = {
        "decision": draft.verdict,
        "alias": draft.alias,
        "from": draft.source or NO_VERSION,
        "to": draft.target or NO_VERSION,
        "based_on": str(draft.based_on),
        "when": draft.signature.when,
        "who": draft.signature.who,
        "host": draft.signature.host,
        "run": draft.run_id,
        "data.fingerprint": draft.fingerprint,
        "data.split": draft.split,
        "looks": str(draft.looks),
        "reasons": json.dumps(draft.reasons),
        # One tag for all: class names have brackets, commas and quotes, which MLflow takes in no tag's name.
        "figures": json.dumps(dict(draft.figures)),
        ID_TAG: draft.signature.id,
    }
    if draft.verdict != "refused":
        # The alias has already made the move that is adopted.
        given[f"{WRITER_TAG}{draft.signature.id}"] = FOLLOWED if draft.verdict == "adopted" else SETTING_OUT
    return given


def from_tags(number: int, tags: Mapping[str, str]) -> Entry:
    """The inverse of `to_tags`. Raises KeyError or ValueError for tags of no decision."""
    verdict: Any = tags["decision"]
    draft = Draft(
        signature=Signature(tags[ID_TAG], tags["when"], tags["who"], tags["host"]),
        verdict=verdict,
        alias=tags["alias"],
        source=_version(tags["from"]),
        target=_version(tags["to"]),
        based_on=int(tags["based_on"]),
        run_id=tags["run"],
        fingerprint=tags["data.fingerprint"],
        split=tags["data.split"],
        looks=int(tags["looks"]),
        figures=json.loads(tags["figures"]),
        reasons=tuple(json.loads(tags["reasons"])),
    )
    writers = {
        tag.removeprefix(WRITER_TAG): text == FOLLOWED
        for tag, text in tags.items()
        if tag.startswith(WRITER_TAG)
    }
    return Entry(number, draft, writers)


def description(draft: Draft) -> str:
    """Describe the decision in Markdown, for the page of its version in MLflow."""
    by = draft.signature
    lines = [
        f"**{headline(draft)}**",
        "",
        f"By {_escape_markdown(by.who)} on {_escape_markdown(by.host)}, {by.when}.",
    ]
    lines += ["", *(f"- {_escape_markdown(reason)}" for reason in draft.reasons)]
    if draft.fingerprint:
        looks = format_count(draft.looks, "time")
        lines += ["", f"Data `{draft.fingerprint[:12]}`, split `{draft.split}`, judged {looks} before."]
    if draft.run_id:
        lines += ["", f"Source: run `{draft.run_id}`."]
    if draft.based_on:
        lines += ["", f"Decided on version {draft.based_on} of this log."]
    return "\n".join(lines)[:MAX_DESCRIPTION]


def headline(draft: Draft) -> str:
    if draft.verdict == "refused":
        return f"{draft.alias}: refused; it stays {_name_version(draft.source)}"
    return f"{draft.alias}: {draft.verdict}, {_name_version(draft.source)} to {_name_version(draft.target)}"


def _remember(history: list[str], draft: Draft) -> None:
    """Add the target to the history; a rollback forgets what came after the version that it goes back to."""
    if draft.target is None:
        if history:
            history.pop()
        return
    if draft.verdict == "rolled back" and draft.target in history:
        while history[-1] != draft.target:
            history.pop()
    elif not history or history[-1] != draft.target:
        history.append(draft.target)


def _may_be_late(state: AliasState, holder: str | None) -> bool:
    return any(entry.is_open and entry.draft.target == holder for entry in state.moves[:-1])


def _version(text: str) -> str | None:
    return None if text == NO_VERSION else text


def _name_version(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _escape_markdown(text: str) -> str:
    """Class names and people's names come from outside, so MLflow must not draw Markdown in them."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|!" else c for c in text)
