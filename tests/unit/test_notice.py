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


def test_a_notice_that_is_heeded_is_all_that_happens() -> None:
    with pytest.raises(NoticeError), sigterm_notice() as notice:
        assert not notice()
        signal.raise_signal(signal.SIGTERM)
        assert notice()
        raise NoticeError("saved")


def test_a_notice_that_comes_too_late_to_be_heeded_ends_the_process_after_the_block() -> None:
    reached = False
    with pytest.raises(TerminatedError), sigterm_notice():
        signal.raise_signal(signal.SIGTERM)
        reached = True
    assert reached


def test_a_second_one_ends_it_at_once() -> None:
    reached = False
    with pytest.raises(TerminatedError), sigterm_notice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        reached = True
    assert not reached


def test_without_one_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_notice() as notice:
        assert not notice()
    assert signal.getsignal(signal.SIGTERM) is before
