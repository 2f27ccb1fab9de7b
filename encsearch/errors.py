"""Errors that people can fix, each with its exit code; and messages as a terminal may have them."""

import logging
import re
import sys
import traceback
from types import TracebackType

from encsearch.redaction import without_secrets
from encsearch.text import printable

MAX_LENGTH = 300


class UserError(Exception):
    """Bad input or configuration. The message names the problem, the place, the number and the way out."""

    exit_code = 2


class PreflightError(UserError):
    """The recipe is valid, but this machine, store or server cannot run it now."""

    exit_code = 3


class GateRefusedError(UserError):
    """The candidate model does not pass the promotion gate."""

    exit_code = 4


class TrainingError(Exception):
    """A training ended without a result, for a reason that the message names."""

    exit_code = 1


class StorageError(TrainingError):
    """Something cannot be written, as on a full disk; all that runs would fail too, and is resumed later."""


class NoticeError(Exception):
    """A training was told to end, as before its machine goes; its state is saved, and `resume` goes on."""


def one_line(error: object, max_length: int | None = MAX_LENGTH) -> str:
    """The whole message of an error without secrets, or the name of its type if it has none."""
    # Mask before cutting: the text that identifies a secret may come after it.
    return without_secrets(" ".join(str(error).split()))[:max_length] or type(error).__name__


def first_line(error: object) -> str:
    """The first line of a message, for libraries that follow it with a long explanation."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: object) -> str:
    """The last line of a message, for Ray, whose errors are a worker's traceback, the cause at its end.

    Of Ray's memory monitor, whose last line is advice (2.60), what it measured.
    """
    lines = [type(error).__name__, *str(error).strip().splitlines()]
    measured = re.search(r"^.*low on memory.*?(Memory on the node.*?)$", str(error), re.MULTILINE | re.DOTALL)
    if measured:
        return f"the node ran low on memory, and Ray ended a process: {measured[1]}"
    return without_secrets(lines[-1])


def for_terminal(text: str) -> str:
    """The text without secrets and without what could command a terminal."""
    return printable(without_secrets(text))


def guard_terminal() -> None:
    """From now on the tracebacks of this process, and warnings that no handler takes, are `for_terminal`."""
    sys.excepthook = _print_traceback
    if logging.lastResort:
        logging.lastResort.setFormatter(_TerminalFormatter())


def _print_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, place))
    print(for_terminal(text), end="", file=sys.stderr, flush=True)


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))
