"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake the user can mend: its text is one sentence saying what is wrong and what is allowed.

    Commands print that sentence and exit with code 2, without a traceback. Any other exception is a bug
    of ours and keeps its traceback.
    """


class UnknownName(UserError, ValueError):
    """A name that no part has.

    In a command it is a user's mistake, in Python an argument of a wrong value.
    """


class Incomplete(UserError):
    """A part of what was asked for could not be done, and the rest was: the text says which.

    Commands print it as they do any `UserError`, and exit with code 3.
    """


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or is not as it was saved. Training goes on from an older one."""
