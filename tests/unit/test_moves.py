"""Many processes move one alias: whatever they do in between and whenever they die, the log decides.

The processes are threads of which one runs at a time; after every call of the registry a seeded generator
says which goes on, and which dies.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Semaphore, Thread

import pytest

from encsearch.errors import GateRefusedError
from encsearch.tracking.registry.aliases import Moved, Settled, move, settle, sign
from encsearch.tracking.registry.decisions import (
    AliasState,
    Draft,
    Entry,
    Log,
    find_overtaken,
    from_tags,
    resolve,
    to_tags,
)

ALIAS = "champion"
NEW = AliasState(ALIAS)
PROMOTERS = 8
VERSIONS = [str(number) for number in range(1, 40)]


class Registry:
    """`moves.Registry` in memory; `pause` is called before every call of it."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.aliases: dict[str, str] = {}
        self.existing = set(VERSIONS)
        self.pause: Callable[[], None] = lambda: None

    def log(self) -> Log:
        self.pause()
        return tuple(self.entries.values())

    def append(self, draft: Draft) -> int:
        self.pause()
        number = len(self.entries) + 1
        self.entries[number] = from_tags(number, to_tags(draft))
        return number

    def note_writer(self, number: int, writer: str, followed: bool) -> None:
        self.pause()
        entry = self.entries[number]
        self.entries[number] = replace(entry, writers={**entry.writers, writer: followed})

    def holder(self, alias: str) -> str | None:
        self.pause()
        return self.aliases.get(alias)

    def set_holder(self, alias: str, version: str | None) -> None:
        self.pause()
        if version is None:
            self.aliases.pop(alias, None)
        else:
            assert version in self.existing
            self.aliases[alias] = version

    def versions(self) -> Collection[str]:
        self.pause()
        return self.existing


class Killed(BaseException):
    """The process is gone; not an Exception, as no code could handle it."""


class Processes:
    """Runs each of some functions in a process of its own, one at a time, in an order that the seed gives."""

    def __init__(self, registry: Registry, seed: int, deaths: int) -> None:
        """At most `deaths` of them die, each at a moment of the generator's choice."""
        self._random = random.Random(seed)
        self._deaths = deaths
        self._go: dict[int, Semaphore] = {}
        self._stopped = Semaphore(0)
        self._now = 0
        self._dies = False
        registry.pause = self._pause

    def run(self, programs: list[Callable[[], None]]) -> None:
        threads = [Thread(target=self._live, args=(index, each)) for index, each in enumerate(programs)]
        self._go = {index: Semaphore(0) for index in range(len(programs))}
        alive = set(self._go)
        for thread in threads:
            thread.start()
        while alive:
            self._now = self._random.choice(sorted(alive))
            self._dies = self._deaths > 0 and self._random.random() < 0.03
            self._deaths -= self._dies
            self._ended = False
            self._go[self._now].release()
            self._stopped.acquire()
            if self._ended:
                alive.remove(self._now)
        for thread in threads:
            thread.join()

    def _live(self, index: int, program: Callable[[], None]) -> None:
        self._go[index].acquire()
        try:
            program()
        except Killed:
            pass
        finally:
            self._ended = True
            self._stopped.release()

    def _pause(self) -> None:
        mine = self._now
        self._stopped.release()
        self._go[mine].acquire()
        if self._dies:
            raise Killed


def decision(based_on: int, source: str | None, target: str) -> Draft:
    return Draft(sign(), "promoted", ALIAS, source, target, based_on)


def promote(registry: Registry, version: str) -> Moved:
    state = settle(registry, ALIAS).state
    return move(registry, decision(state.head, state.version, version))


def after(registry: Registry) -> Settled:
    """What the next command finds and mends."""
    registry.pause = lambda: None
    return settle(registry, ALIAS)


def promoter(registry: Registry, versions: list[str], results: list[Moved]) -> Callable[[], None]:
    def program() -> None:
        results.extend(promote(registry, version) for version in versions)

    return program


def raced(seed: int, deaths: int) -> tuple[Registry, list[Moved]]:
    registry, results = Registry(), list[Moved]()
    programs = [
        promoter(registry, [VERSIONS[2 * index], VERSIONS[2 * index + 1]], results)
        for index in range(PROMOTERS)
    ]
    Processes(registry, seed, deaths).run(programs)
    return registry, results


def effective(registry: Registry) -> list[Entry]:
    return list(resolve(tuple(registry.entries.values()), ALIAS).moves)


@pytest.mark.parametrize("seed", range(12))
def test_of_eight_promoters_each_learns_the_truth_and_the_alias_is_the_logs(seed: int) -> None:
    registry, results = raced(seed, deaths=0)
    moves = effective(registry)
    assert registry.aliases[ALIAS] == moves[-1].draft.target
    assert {moved.number for moved in results if moved.won} == {entry.number for entry in moves}
    assert {moved.number for moved in results if not moved.won} == find_overtaken(
        tuple(registry.entries.values())
    )
    # Every attempt is in the log, and nobody took another's write for a person's.
    assert sorted(entry.draft.target or "" for entry in registry.entries.values()) == sorted(
        VERSIONS[: 2 * PROMOTERS]
    )
    assert not after(registry).done


def test_the_races_of_this_file_have_losers() -> None:
    lost = [moved for seed in range(12) for moved in raced(seed, deaths=0)[1] if not moved.won]
    assert len(lost) > 20


def test_whoever_dies_the_next_one_finds_one_champion_and_mends_the_alias() -> None:
    num_mended = 0
    for seed in range(100):
        registry, results = raced(seed, deaths=PROMOTERS)
        settled = after(registry)
        moves = effective(registry)
        num_mended += bool(settled.done)
        assert (
            registry.aliases.get(ALIAS)
            == settled.state.version
            == (moves[-1].draft.target if moves else None)
        )
        assert {moved.number for moved in results if moved.won} <= {entry.number for entry in moves}
        assert all(entry.draft.verdict == "promoted" for entry in registry.entries.values()), seed
        assert not after(registry).done
    assert num_mended > 10  # there was something to mend


def test_each_effective_decision_was_made_on_the_one_before() -> None:
    for seed in range(20):
        moves = effective(raced(seed, deaths=4)[0])
        assert [entry.draft.based_on for entry in moves] == [0, *(entry.number for entry in moves[:-1])]
        assert [e.draft.source for e in moves] == [None, *(e.draft.target for e in moves[:-1])]


def test_a_champion_that_was_set_by_hand_while_nobody_moved_is_adopted_not_overwritten() -> None:
    registry = Registry()
    promote(registry, "1")
    promote(registry, "2")
    registry.aliases[ALIAS] = "7"
    settled = after(registry)
    assert settled.done == ("champion was moved by hand from version 2 to version 7; the log says so now",)
    assert (settled.state.version, registry.aliases) == ("7", {ALIAS: "7", "champion-previous": "2"})
    assert effective(registry)[-1].draft.verdict == "adopted"
    assert not after(registry).done


def test_a_refusal_tells_what_was_mended_before_it() -> None:
    def refuse(settled: Settled) -> str:
        with pytest.raises(GateRefusedError) as refused, settled.report_done():
            raise GateRefusedError("not better")
        return str(refused.value)

    assert refuse(Settled(NEW)) == "not better"
    assert refuse(Settled(NEW, ("champion was moved",))) == "not better (before that: champion was moved)"


def test_a_loser_to_a_deletion_is_not_told_of_a_version_none() -> None:
    assert Moved(3, False, NEW).holder == "no version"


def test_an_alias_from_before_there_was_a_log_is_adopted() -> None:
    registry = Registry()
    registry.aliases[ALIAS] = "4"
    moved = promote(registry, "5")
    assert [entry.draft.verdict for entry in moved.state.moves] == ["adopted", "promoted"]
    assert registry.aliases == {ALIAS: "5", "champion-previous": "4"}


def test_two_who_find_the_alias_moved_by_hand_adopt_it_once() -> None:
    for seed in range(30):
        registry, results = Registry(), list[Moved]()
        promote(registry, "1")
        registry.aliases[ALIAS] = "30"
        Processes(registry, seed, deaths=0).run(
            [promoter(registry, [version], results) for version in ("2", "3", "4")]
        )
        moves = effective(registry)
        assert [entry.draft.target for entry in moves][:2] == ["1", "30"]
        assert [entry.draft.verdict for entry in moves].count("adopted") == 1
        assert registry.aliases[ALIAS] == moves[-1].draft.target


def test_a_champion_that_was_deleted_leaves_its_place_free_and_the_log_says_so() -> None:
    registry = Registry()
    promote(registry, "1")
    promote(registry, "2")
    registry.existing.remove("2")
    del registry.aliases[ALIAS]
    settled = after(registry)
    assert settled.done == ("champion, which was version 2, was deleted in MLflow; the log says so now",)
    assert settled.state.version is None
    assert registry.aliases == {"champion-previous": "1"}
    assert promote(registry, "3").won
    assert registry.aliases == {ALIAS: "3", "champion-previous": "1"}


def test_the_late_write_of_a_dead_process_is_not_taken_for_a_hand() -> None:
    """It set out for decision 1, decision 2 was made and followed, then it wrote, and died."""
    registry = Registry()
    late = decision(0, None, "1")
    number = registry.append(late)
    settled = after(registry)
    assert settled.done == ("champion had not followed decision 1; it is at version 1 now",)
    promote(registry, "2")
    registry.aliases[ALIAS] = "1"
    assert not registry.entries[number].writers[late.signature.id]
    assert after(registry).state.version == "2"
    assert registry.aliases[ALIAS] == "2"
    assert all(entry.draft.verdict == "promoted" for entry in registry.entries.values())


def test_the_aliases_of_a_model_do_not_disturb_each_other() -> None:
    registry = Registry()
    promote(registry, "1")
    state = settle(registry, "challenger").state
    assert state.head == 0
    moved = move(registry, Draft(sign(), "promoted", "challenger", None, "2", 0))
    assert moved.won
    assert promote(registry, "3").won
    assert registry.aliases == {ALIAS: "3", "champion-previous": "1", "challenger": "2"}


def test_what_was_decided_on_an_older_state_is_told_who_won() -> None:
    registry = Registry()
    old = settle(registry, ALIAS).state
    promote(registry, "1")
    moved = move(registry, decision(old.head, old.version, "2"))
    assert (moved.won, moved.state.version, moved.state.head, moved.since) == (False, "1", 1, ())
    assert registry.aliases == {ALIAS: "1"}
    assert find_overtaken(registry.log()) == {2}


def test_a_winner_whom_another_followed_at_once_is_told_so() -> None:
    registry = Registry()
    first = promote(registry, "1")
    assert first.since == ()
    second = promote(registry, "2")
    assert replace(first, state=second.state).since == (
        "decision 2 has moved champion on to version 2 since",
    )
