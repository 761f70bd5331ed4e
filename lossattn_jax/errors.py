"""Errors that are the user's to mend, and what their sentences share."""

from collections.abc import Sequence


class UserError(Exception):
    """A user's mistake, described in one sentence with the way out.

    The sentence says what is wrong and what is allowed.

    Commands print that sentence and exit with code 2, without a traceback. Any other exception is a bug
    of ours and keeps its traceback.
    """


class UnknownName(UserError, ValueError):
    """A name that no part has.

    In a command it is a user's mistake, in Python an argument of a wrong value.
    """


class Incomplete(UserError):
    """A part of the work could not be done.

    The text says which; the rest was done.

    Commands print it as they do any `UserError`, and exit with code 3.
    """


class DamagedCheckpoint(UserError):
    """A checkpoint is damaged or cannot be read.

    Training goes on from an older one.
    """


class UntrustedCode(UserError):
    """A stored reference names code that nobody trusts.

    Nothing was imported.

    Attributes:
      key: what names the code, such as "model.pooling".
      value: the reference.
    """

    def __init__(self, place: object, key: str, value: str):
        super().__init__(
            f"{key} in {place} is {value!r}, which is code that this command would import and run; say "
            "--trust_code, or trust_code=True in Python, if you trust it"
        )
        self.key, self.value = key, value


def name_first(names: Sequence[str], most: int) -> str:
    """Names the first of some things, and counts the rest.

    Args:
      names: of all of them.
      most: that are named.
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
