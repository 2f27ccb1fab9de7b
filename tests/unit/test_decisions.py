"""The log of decisions, read: who holds an alias, who did before, and what is left to be done."""

import re
from dataclasses import replace

import pytest

from encsearch.tracking.registry.decisions import (
    Draft,
    Entry,
    Log,
    Signature,
    Verdict,
    count_looks,
    description,
    find_overtaken,
    from_tags,
    missing_entries,
    next_action,
    resolve,
    to_tags,
)

CHAMPION = "champion"
BY = Signature("0", "2026-01-01T00:00:00+00:00", "ada", "host")


def draft(target: str | None, based_on: int, verdict: Verdict = "promoted", id: str = "0") -> Draft:
    return Draft(replace(BY, id=id), verdict, CHAMPION, None, target, based_on)


def entry(number: int, target: str | None, based_on: int, verdict: Verdict = "promoted") -> Entry:
    return Entry(number, draft(target, based_on, verdict), {"w": True})


def test_of_two_decisions_on_the_same_state_the_first_in_the_log_holds() -> None:
    log = (entry(1, "1", 0), entry(2, "2", 1), entry(3, "3", 1), entry(4, "4", 2))
    state = resolve(log, CHAMPION)
    assert (state.version, state.head, state.history) == ("4", 4, ("1", "2", "4"))
    assert find_overtaken(log) == {3}
    assert resolve((), CHAMPION).version is None
    assert resolve(log, "challenger").head == 0


def test_a_refusal_moves_nothing_and_counts_as_a_look() -> None:
    refusal = replace(draft(None, 1, "refused"), fingerprint="f", split="val")
    log = (entry(1, "1", 0), Entry(2, refusal), entry(3, "2", 1))
    assert resolve(log, CHAMPION).version == "2"
    assert find_overtaken(log) == set()
    assert (count_looks(log, "f", "val"), count_looks(log, "f", "test")) == (1, 0)


def test_a_rollback_goes_further_back_each_time_and_past_deleted_versions() -> None:
    log: Log = (entry(1, "1", 0), entry(2, "2", 1), entry(3, "3", 2), entry(4, "2", 3, "rolled back"))
    assert resolve(log, CHAMPION).previous({"1", "2", "3"}) == "1"
    log = (*log, entry(5, "4", 4))
    assert resolve(log, CHAMPION).history == ("1", "2", "4")
    assert resolve(log, CHAMPION).previous({"1", "4"}) == "1"
    assert resolve(log, CHAMPION).previous({"4"}) is None


def test_after_the_champion_was_deleted_the_one_before_is_still_known() -> None:
    log = (entry(1, "1", 0), entry(2, "2", 1), entry(3, None, 2, "adopted"))
    assert resolve(log, CHAMPION).version is None
    assert resolve(log, CHAMPION).previous({"1"}) == "1"


def test_an_entry_that_was_deleted_leaves_a_hole_and_not_another_champion() -> None:
    whole = (entry(1, "1", 0), entry(2, "2", 1), entry(3, "3", 2), entry(4, "4", 2), entry(5, "5", 3))
    for lost in range(1, 5):
        log = tuple(e for e in whole if e.number != lost)
        assert resolve(log, CHAMPION).version == "5"
        assert missing_entries(log) == [lost]


@pytest.mark.parametrize(
    ("writers", "holder", "action"),
    [
        ({"w": True}, "2", "nothing"),
        ({"w": False}, "2", "follow"),  # set, but nobody has seen to it
        ({"w": False}, "1", "follow"),  # its promoter died before it set the alias
        ({"w": False, "helper": True}, "2", "nothing"),
        ({"w": True}, "1", "adopt"),
        ({"w": True}, "7", "adopt"),
        ({"w": True}, None, "adopt"),
    ],
)
def test_what_makes_alias_and_log_agree(writers: dict[str, bool], holder: str | None, action: str) -> None:
    log = (entry(1, "1", 0), Entry(2, draft("2", 1), writers))
    assert next_action(resolve(log, CHAMPION), holder, {"1", "2", "7"}) == action


def test_the_late_write_of_a_promoter_that_died_is_no_hand() -> None:
    log = (Entry(1, draft("1", 0), {"late": False}), entry(2, "2", 1))
    assert next_action(resolve(log, CHAMPION), "1", {"1", "2"}) == "follow"


def test_a_deleted_version_and_an_alias_older_than_the_log_are_adopted() -> None:
    log = (Entry(1, draft("1", 0), {"w": False}),)
    assert next_action(resolve(log, CHAMPION), None, {"2"}) == "adopt"
    assert next_action(resolve((), CHAMPION), "3", {"3"}) == "adopt"
    assert next_action(resolve((), CHAMPION), None, {"3"}) == "nothing"


@pytest.mark.parametrize("verdict", ["promoted", "refused", "rolled back", "adopted"])
def test_a_decision_comes_back_from_its_tags(verdict: Verdict) -> None:
    given = Draft(
        BY,
        verdict,
        CHAMPION,
        None,
        "4",
        3,
        "run",
        "f",
        "val",
        2,
        {"mIoU": 0.1 + 0.2, "IoU/a b": 0.5},
        ("a; b",),
    )
    found = from_tags(7, to_tags(given))
    assert (found.number, found.draft) == (7, given)
    assert (found.is_followed, found.is_open) == (
        verdict == "adopted",
        verdict in ("promoted", "rolled back"),
    )


@pytest.mark.parametrize("name", ["person (adult)", "door;double door", "driver's seat", "a//b", "a, b"])
def test_a_class_of_any_name_has_its_figure_and_mlflow_takes_the_tags(name: str) -> None:
    given = replace(draft("2", 1), figures={f"IoU/{name}": 0.5})
    tags = to_tags(given)
    assert all(re.fullmatch(r"[\w.]+", tag) for tag in tags)
    assert from_tags(2, tags).draft == given


def test_names_from_outside_draw_no_markdown() -> None:
    text = description(replace(draft("2", 1), reasons=("[car](javascript:x) <b> falls",)))
    assert "[car](" not in text
    assert "<b>" not in text.replace("\\<b\\>", "")
