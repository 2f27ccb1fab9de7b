"""Errors that a person can mend: one line, no traceback, and the exit code that goes with them."""


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
