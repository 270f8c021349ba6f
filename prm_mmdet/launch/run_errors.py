"""Errors that stop a run, with messages for the user."""


class RunError(Exception):
    """A run cannot start or go on. The message says why, and what the user can do.

    The command lines print the message alone, without a traceback.
    """


class DivergedError(RunError):
    """The loss or the weights are NaN or infinite."""
