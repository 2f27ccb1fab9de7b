"""The first SIGTERM is a notice, and none is lost."""

import signal
from collections.abc import Iterator

import pytest

from encsearch.errors import NoticeError
from encsearch.runner.notice import sigterm_notice


class TerminatedError(Exception):
    """What SIGTERM does outside of the block."""


@pytest.fixture(autouse=True)
def _terminates() -> Iterator[None]:
    def terminate(signum: int, frame: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def work(notices: int, heeds: bool) -> list[bool]:
    """Be told so often, and say after each whether that was heard."""
    heard = []
    with sigterm_notice() as notice:
        heard.append(notice())
        for _ in range(notices):
            signal.raise_signal(signal.SIGTERM)
            heard.append(notice())
        told.extend(heard)
        if heeds:
            raise NoticeError("saved")
    return heard


told: list[bool] = []


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    told.clear()


def test_a_notice_that_is_heeded_is_all_that_happens() -> None:
    with pytest.raises(NoticeError):
        work(1, heeds=True)
    assert told == [False, True]


def test_one_that_comes_too_late_to_be_heeded_ends_the_process_after_the_block() -> None:
    with pytest.raises(TerminatedError):
        work(1, heeds=False)
    assert told == [False, True]


def test_a_second_one_ends_it_at_once() -> None:
    with pytest.raises(TerminatedError):
        work(2, heeds=True)
    assert told == [], "the block was left within"


def test_without_one_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_notice() as notice:
        assert not notice()
    assert signal.getsignal(signal.SIGTERM) is before
