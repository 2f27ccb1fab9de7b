"""Errors that a person can mend, each with its exit code; and what any error says, as one line."""

from encsearch.redaction import without_secrets

MAX_LENGTH = 300


class UserError(Exception):
    """Bad input or configuration. The message says what, where, the number and the way out."""

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


def one_line(error: object, max_length: int | None = MAX_LENGTH) -> str:
    """All that an error says, without secrets; the name of its type if it says nothing."""
    # Masked before it is cut: what gives a secret away may stand behind it.
    return without_secrets(" ".join(str(error).split()))[:max_length] or type(error).__name__


def first_line(error: object) -> str:
    """For libraries that explain themselves at length below it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: object) -> str:
    """For Ray, whose errors are a worker's whole traceback, the cause at its end."""
    return [type(error).__name__, *str(error).strip().splitlines()][-1]
